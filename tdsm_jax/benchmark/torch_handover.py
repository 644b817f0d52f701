"""What the comparison with PyTorch hands over, and our outputs that PyTorch's must equal before anything is timed."""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from ml_collections import ConfigDict

from tdsm_jax import files
from tdsm_jax.diffusion import mixture, sampling
from tdsm_jax.diffusion.objectives import add_noise
from tdsm_jax.diffusion.process import make_denoiser
from tdsm_jax.errors import UserError
from tdsm_jax.interop import layout
from tdsm_jax.interop.torch_params import network_to_official
from tdsm_jax.labels.weights import posterior
from tdsm_jax.networks.backbones import ScoreNetwork
from tdsm_jax.run import Run
from tdsm_jax.sampler import sampling_call
from tdsm_jax.training import score
from tdsm_jax.training.cross_fit import cross_fitted_logits
from tdsm_jax.training.state import Params

METHODS = {"dsm": "dsm", "floor": "tdsm_floor", "published": "tdsm_threshold"}  # task -> our method
BATCHES = 8  # handed over; both sides go through them again and again
TOLERANCE = 1e-4  # of the largest entry
SAMPLE_TOLERANCE = 1e-3  # of samples: the solver adds up what the network's rounding makes


class Probe(NamedTuple):
    """What both sides compute outputs from, beside the first batch.

    n, latents [B,H,W,C], sigma [B], dropped bool [B], sample_label int [B].
    """

    n: np.ndarray
    sigma: np.ndarray
    dropped: np.ndarray
    latents: np.ndarray
    sample_label: np.ndarray


def like_for_like(config: ConfigDict, dtype: str, batch_size: int | None) -> None:
    """Sets what both sides must share: DDPM++, one small classifier, TDSM of Bayes' weights with a null label.

    Augmentation, clipping and decay are left out; an architecture that has no counterpart is a `UserError`.
    """
    if config.network.style != "ddpmpp" or config.process.kind != "edm" or config.init_from:
        raise UserError("the PyTorch side has a new ddpmpp under edm only: keep network.style, process.kind, init_from")
    config.methods = tuple(METHODS.values())
    config.network.dtype = dtype
    config.score.update(augment=0.0, clip_norm=0.0, weight_decay=0.0, decay_images=(), decay_factors=())
    config.score.batch_size = batch_size or config.score.batch_size
    config.compute.update(parts=1, steps_a_call=1)
    config.transition.estimator = "known"
    config.mixture.update(weights="bayes", dropped_label="null", own_gradient=True)
    if config.classifier.network != "stages":
        config.classifier.update(network="stages", widths=(32, 64))
    config.classifier.update(folds=1, members=1, dropout=0.0, stopping=False, calibration="off", temperature=1.0)
    config.classifier.init_from = ""
    config.stress.logit_noise = 0.0


def stirred_params(run: Run) -> Params:
    """Returns initial parameters with noise on all: branches that start at almost nothing count in a comparison."""
    rng = np.random.default_rng(run.config.seed)

    def stirred(leaf: np.ndarray) -> np.ndarray:
        scale = 0.1 if leaf.ndim == 1 else 0.5 / math.sqrt(math.prod(leaf.shape[:-1]))
        return leaf + scale * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree.map(stirred, jax.device_get(run.initial_params()))


def make_batches(run: Run) -> list[dict[str, np.ndarray]]:
    """Returns the first batches of the run, which both sides train on."""
    batches, whole = run.score_step("dsm").batches, np.arange(run.config.score.batch_size)
    return [batches(number, whole) for number in range(BATCHES)]


def make_probe(run: Run) -> Probe:
    """Draws noise, noise levels and latents for a comparison of outputs."""
    B, shape = run.config.score.batch_size, run.train_set.images.shape[1:]
    rng = np.random.default_rng(run.config.seed)
    normal = rng.standard_normal((2 * B, *shape)).astype(np.float32)
    sigma = np.exp(run.process.P_mean + run.process.P_std * rng.standard_normal(B)).astype(np.float32)
    dropped = rng.random(B) < run.config.score.label_dropout
    return Probe(normal[:B], sigma, dropped, normal[B:], np.arange(B, dtype=np.int32) % run.num_classes)


def sigmas_of(run: Run) -> list[float]:
    """The noise levels of the run's sampler."""
    c = run.config.sampling
    return sampling.edm_sigmas(c.steps, run.process.sigma_min, run.process.sigma_max, c.rho).tolist()


def hand_over(
    run: Run, params: Params, batches: list[dict], probe: Probe, folder: pathlib.Path, *, device: str, threads: int
) -> None:
    """Writes handover.npz and handover.json: all that the PyTorch process reads."""
    H, _, C = run.train_set.images.shape[1:]
    network, c, s = run.network, run.config.classifier, run.config.score
    image = {"resolution": H, "image_channels": C, "num_classes": run.num_classes}
    shape = {name: getattr(network, name) for name in ("channels", "multipliers", "blocks", "attention_resolutions")}
    names = ("batch_size", "learning_rate", "ramp_images", "ema_half_life", "ema_ramp", "label_dropout")
    settings = {name: s[name] for name in names} | {
        "network": image | shape,
        "classifier": image | {"widths": c.widths, "hidden": c.hidden},
        "dtype": run.config.network.dtype,
        "dropout_rate": network.dropout_rate,
        "P_mean": run.process.P_mean,
        "P_std": run.process.P_std,
        "sigma_data": run.process.sigma_data,
        "sigmas": sigmas_of(run),
        "tau": run.config.mixture.tau,
        "residual_slots": run.objective("tdsm_floor").residual_slots,
        "device": device,
        "threads": threads,
    }
    official = network_to_official(network, params, (H, H, C))
    state = {f"network/{name.removeprefix('model.')}": array for name, array in official.items()}
    filters = [name for name in state if name.endswith("resample_filter")]  # of boxes, which PyTorch has
    arrays = {name: array for name, array in state.items() if name not in filters}
    arrays |= {f"classifier/{name}": array for name, array in classifier_state(run).items()}
    arrays |= {"log_S": np.asarray(run.table.log_S), "residual": np.asarray(run.table.residual)}
    arrays |= {"x0": np.stack([batch["x0"] for batch in batches])}
    arrays |= {"label": np.stack([batch["label"] for batch in batches]).astype(np.int64)}
    arrays |= probe._asdict() | {"sample_label": probe.sample_label.astype(np.int64)}
    files.write_arrays(folder / "handover.npz", arrays)
    files.write_json(folder / "handover.json", settings)


def classifier_state(run: Run) -> layout.StateDict:
    """Returns the run's only classifier as a state dict: our modules' names, PyTorch's for their parameters."""
    flat = traverse_util.flatten_dict(jax.device_get(run.fitted[0][0].params)["params"])
    kinds = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    return {".".join((*modules, kinds[kind])): layout.to_torch(array) for (*modules, kind), array in flat.items()}


def outputs(run: Run, params: Params, batch: dict, probe: Probe) -> dict[str, np.ndarray]:
    """Returns w, D, losses, gradient norms and samples, in float32 at full precision and without dropout."""
    batch, probe = jax.device_put((batch, probe))
    network = run.network.clone(dtype=jnp.float32)
    noised = score.Noised(batch["x0"], add_noise(batch["x0"], probe.sigma, probe.n), probe.sigma, None)
    given = score.Given(run.table, run.cross_fitted)
    label, fold = batch["label"], batch["fold"]

    def loss_of(params: Params, task: str) -> jax.Array:
        denoise = make_denoiser(run.process, functools.partial(network.apply, params))
        frozen = make_denoiser(run.process, functools.partial(network.apply, jax.lax.stop_gradient(params)))
        objective = run.objective(METHODS[task])
        slots = score.draw_plan(run.weigher, objective, given, noised, label, fold, keys=None)
        slots = mixture.drop_labels(slots, probe.dropped, null=run.num_classes)
        return score.mixture_loss(run.process, objective, denoise, frozen, noised, slots)[0].mean()

    with jax.default_matmul_precision("highest"):
        denoise = jax.jit(make_denoiser(run.process, functools.partial(network.apply, params)))
        logits = jax.jit(functools.partial(cross_fitted_logits, run.weigher))
        found = {
            "w": posterior(run.table, logits(run.cross_fitted, noised.x_t, noised.sigma, fold), label),
            "D": denoise(noised.x_t, probe.sigma, jnp.where(probe.dropped, run.num_classes, label)),
            "samples": sampler(run, network, params, probe)(),
        }
        for task in METHODS:
            loss, gradient = jax.jit(jax.value_and_grad(loss_of), static_argnums=1)(params, task)
            found |= {f"{task} loss": loss, f"{task} gradient norm": optax.tree.norm(gradient)}
    return jax.device_get(found)


def sampler(run: Run, network: ScoreNetwork, params: Params, probe: Probe) -> Callable[[], jax.Array]:
    """Returns what makes the samples [B,H,W,C] of the probe's latents."""
    denoise = sampling_call(network, run.process)
    latents, label = jax.device_put((probe.latents, probe.sample_label))
    bound = functools.partial(lambda x, sigma: denoise(params, x, sigma, label))
    return lambda: sampling.heun(bound, latents, np.array(sigmas_of(run)))


def compare(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the largest difference of each output over its largest entry; one too large is a `UserError`."""
    errors = {}
    for name, array in ours.items():
        errors[name] = float(np.abs(array - theirs[name]).max() / np.abs(array).max())
        if not errors[name] <= (SAMPLE_TOLERANCE if name == "samples" else TOLERANCE):
            raise UserError(f"{name} differs by {errors[name]:.1e} of its size; nothing is timed: this is a bug")
    return errors
