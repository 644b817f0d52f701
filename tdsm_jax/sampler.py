"""Samples of a trained model: how they are drawn, from which key and labels, and at what cost."""

import dataclasses
import functools
import math
import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from tdsm_jax import files, hosts, paths
from tdsm_jax.data.dataset import to_uint8
from tdsm_jax.diffusion import guidance, sampling
from tdsm_jax.diffusion.guidance import Guidance
from tdsm_jax.diffusion.process import Denoise, NoiseLevels, Process, make_denoiser
from tdsm_jax.diffusion.sampling import SOLVERS, Churn, Noise
from tdsm_jax.diffusion.unmixing import Terms, unmixed
from tdsm_jax.errors import UserError
from tdsm_jax.networks.backbones import ScoreNetwork
from tdsm_jax.training import model_file, parallel
from tdsm_jax.training.cross_fit import CrossFitted, Weigher, averaged_logits
from tdsm_jax.training.logs import Progress
from tdsm_jax.training.model_file import Model
from tdsm_jax.training.state import Params, example_keys, normal_like

Interval = tuple[float, float] | tuple[()]  # (low, high) noise levels, () for all


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How images are drawn from a model: the keys of config section `sampling` that say so, see configs/base.py."""

    batch_size: int
    steps: int = 18
    solver: str = "heun"
    schedule: str = "edm"
    rho: float = 7.0
    churn: float = 0.0
    churn_interval: Interval = ()
    churn_noise: float = 1.0
    guidance: float = 1.0
    guidance_interval: Interval = ()
    guidance_rescale: float = 0.0
    adaptive_guidance: float = 0.0
    autoguidance: str = ""

    @property
    def guided_by(self) -> Guidance:
        interval = self.guidance_interval or Guidance().interval
        return Guidance(self.guidance, interval, self.guidance_rescale, self.adaptive_guidance)

    @property
    def churned_by(self) -> Churn:
        low, high = self.churn_interval or (0.0, math.inf)
        return Churn(self.churn, low, high, self.churn_noise)

    @property
    def chosen(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON values, but for how many images are made at a time."""
        fields = [field for field in dataclasses.fields(self) if field.name != "batch_size"]
        values = {field.name: getattr(self, field.name) for field in fields}
        changed = {field.name: values[field.name] for field in fields if values[field.name] != field.default}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}


def sampling_of(section: Any, **changes: Any) -> Sampling:
    """Returns the settings that the fields of a config section, or of a command's arguments, say."""
    values = {field.name: getattr(section, field.name) for field in dataclasses.fields(Sampling)}
    return Sampling(**values | changes)


def check_sampling(settings: Sampling, prefix: str) -> None:
    """Raises `UserError` where settings do not go together; `prefix` and a field's name are what the user wrote."""
    s = settings
    for name in ("churn_interval", "guidance_interval"):
        interval = getattr(s, name)
        numbers = all(isinstance(level, (int, float)) for level in interval)
        if interval and not (numbers and len(interval) == 2 and 0 <= interval[0] < interval[1]):
            raise UserError(f"{prefix}{name}={interval} must be two noise levels, the lower one first, or nothing")
    if not SOLVERS[s.solver].stochastic and (s.churn or s.churn_interval or s.churn_noise != 1):
        raise UserError(f"{prefix}churn is noise that the solver stochastic_heun adds; {s.solver} adds none")
    if SOLVERS[s.solver].stochastic and not s.churn:
        raise UserError(f"{prefix}solver=stochastic_heun needs {prefix}churn above 0; heun is the one without noise")
    if s.guidance == 1:
        for name in ("guidance_interval", "guidance_rescale", "adaptive_guidance", "autoguidance"):
            if getattr(s, name):
                raise UserError(f"{prefix}{name} changes nothing where {prefix}guidance is 1; choose another scale")
    if s.guidance == 0 and (s.guidance_rescale or s.adaptive_guidance):
        alone = "is the weaker model alone" if s.autoguidance else "looks at no label"
        raise UserError(f"{prefix}guidance=0 {alone}: leave guidance_rescale and adaptive_guidance out")


class Correction(NamedTuple):
    """What undoes the label noise of a model at sampling time, see `diffusion.unmixing`.

    The posterior is the classifiers' mean probability: an image that is being made belongs to no fold.
    """

    terms: Terms
    weigher: Weigher
    classifiers: CrossFitted
    limit: float


@dataclasses.dataclass
class Cost:
    """What drawing images took: evaluations of the networks an image, and images a second.

    The rate is that of the median batch, the first one, which compiles, left out where there are more; None where an
    earlier process has drawn them all.
    """

    evaluations: float  # of the score network, and of the weaker one of autoguidance
    classifier_evaluations: float
    images_per_second: float | None


class Drawn(NamedTuple):
    """Images uint8 [N,H,W,C] and what they cost."""

    images: np.ndarray
    cost: Cost


@functools.cache
def sampling_call(network: ScoreNetwork, process: Process) -> Callable[..., jax.Array]:
    """Returns the jitted denoise(params, x, sigma, label) -> D that a sampler calls once an evaluation.

    Shapes: x, D [B,H,W,C], sigma [B], label int [B]. The same function again for the same network and process, so that
    samplings of other settings share what is compiled.
    """

    @jax.jit
    def denoise(params: Params, x: jax.Array, sigma: jax.Array, label: jax.Array) -> jax.Array:
        return make_denoiser(process, functools.partial(network.apply, params))(x, sigma, label)

    return denoise


@functools.partial(jax.jit, static_argnums=0)
def _log_posterior(weigher: Weigher, classifiers: CrossFitted, x: jax.Array, sigma: jax.Array) -> jax.Array:
    return averaged_logits(weigher, classifiers, x, sigma)


class Sampler:
    """A model on the devices of a mesh, with all that its samples depend on but their keys and labels."""

    def __init__(self, model: Model, settings: Sampling, mesh: parallel.DataMesh, correction: Correction | None = None):
        self.model, self.settings, self.mesh, self._correction = model, settings, mesh, correction
        self._check()
        self.counts = np.zeros(2, int)  # evaluations so far: of score networks, of classifiers
        self._denoise = self._counted(model)
        self._weak = self._counted(weaker_model(settings.autoguidance, model)) if settings.autoguidance else None
        self._classifiers = None if correction is None else parallel.replicate(correction.classifiers, mesh)
        self._sigmas = sampling.noise_levels(settings.schedule, model.process, settings.steps, settings.rho)

    def _check(self) -> None:
        without = not self.model.network.num_classes
        if without and self.settings.guidance != 1 and not self.settings.autoguidance:
            raise UserError("guidance (sampling.guidance in a config) must be 1 for a network without labels")
        if self._correction is not None and self.model.network.num_classes != len(self._correction.terms.S):
            K, found = len(self._correction.terms.S), self.model.network.num_classes
            raise UserError(f"the correction is one of {K} classes and the model has {found}; give those of one run")

    def _counted(self, model: Model) -> Denoise:
        call, params = sampling_call(model.network, model.process), parallel.replicate(model.params, self.mesh)

        def denoise(x: jax.Array, sigma: NoiseLevels, label: jax.Array) -> jax.Array:
            self.counts = self.counts + (1, 0)
            return call(params, x, sigma, label)

        return denoise

    def denoiser(self) -> Denoise:
        """Returns the denoiser of one trajectory: corrected and guided as the settings say."""
        null = guidance.unconditional(self._denoise, self.model.network.num_classes)
        c = self._denoise
        if self._correction is not None:
            c = unmixed(c, null, self._log_posterior, self._correction.terms, self._correction.limit)
        return guidance.composed(c, self._weak or null, self.settings.guided_by)

    def _log_posterior(self, x: jax.Array, sigma: NoiseLevels) -> jax.Array:
        members = math.prod(jax.tree.leaves(self._classifiers.params)[0].shape[:2])
        self.counts = self.counts + (0, members)
        return _log_posterior(self._correction.weigher, self._classifiers, x, sigma)

    def images(self, latents: jax.Array, label: jax.Array, noise: Noise) -> jax.Array:
        """Solves from unit normal latents [B,H,W,C]; `noise` is read by a stochastic solver alone."""
        solver, denoise = SOLVERS[self.settings.solver], self.denoiser()
        more = (self.settings.churned_by, noise) if solver.stochastic else ()
        return solver.solve(lambda x, sigma: denoise(x, sigma, label), latents, self._sigmas, *more)


def weaker_model(path: str, model: Model) -> Model:
    """Reads the model that guides `model`; one of other images or classes is a `UserError`."""
    weak = model_file.read(path)
    for what, a, b in (
        ("image shape", weak.image_shape, model.image_shape),
        ("number of classes", weak.network.num_classes, model.network.num_classes),
    ):
        if a != b:
            raise UserError(f"autoguidance by {path}: its {what} is {a}, that of the model {b}; give one of its kind")
    return weak._replace(network=weak.network.clone(attention=model.network.attention))


def drawn(sampler: Sampler, labels: np.ndarray, key: jax.Array, parts: paths.Path, title: str) -> Drawn:
    """Returns one image for each of `labels` int [N]; image i depends on the key, i and its label.

    Every batch is kept in the folder `parts` until the caller removes it: an interrupted sampling goes on after them.
    """
    shape, mesh = sampler.model.image_shape, sampler.mesh
    latents_of = jax.jit(jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape)))
    noise_key = jax.random.fold_in(key, zlib.crc32(b"churn"))  # far beyond any image's number

    @jax.jit
    def noise_of(step: jax.Array, index: jax.Array, latents: jax.Array) -> jax.Array:
        return normal_like(example_keys(noise_key, step, index), latents)

    size = min(sampler.settings.batch_size, parallel.round_up(len(labels)))
    batches, seconds = finished_parts(parts), []
    done = sum(len(batch["images"]) for batch in batches)
    hosts.check_equal(str(done), f"number of finished images in {parts}")
    with Progress(title, -(-(len(labels) - done) // size), size) as progress:
        for start in range(done, len(labels), size):
            hosts.stop_if_asked()
            began, before = time.perf_counter(), sampler.counts
            index = (start + mesh.rows(size)) % len(labels)  # the last batch is filled up
            batch = parallel.split({"index": index, "label": labels[index]}, mesh)
            latents = latents_of(batch["index"])
            noise = functools.partial(noise_of, index=batch["index"], latents=latents)
            made = parallel.gather(sampler.images(latents, batch["label"], noise))
            seconds.append(time.perf_counter() - began)
            batch = {"images": to_uint8(made)[: len(labels) - start], "evaluations": sampler.counts - before}
            files.write_arrays(parts / f"{start:08d}.npz", batch)
            batches.append(batch)
            progress.update()
    evaluations, of_classifiers = np.mean([batch["evaluations"] for batch in batches], axis=0).tolist()
    rate = size / float(np.median(seconds[1:] or seconds)) if seconds else None
    return Drawn(np.concatenate([batch["images"] for batch in batches]), Cost(evaluations, of_classifiers, rate))


def finished_parts(folder: paths.Path) -> list[dict[str, np.ndarray]]:
    """Returns the batches that an interrupted sampling has finished, without a gap from the first on."""
    batches, done = [], 0
    while paths.exists(path := folder / f"{done:08d}.npz"):
        batches.append(files.read_arrays(path))
        done += len(batches[-1]["images"])
    return batches
