"""The stage between two trainings: the first model's verdict on the training images refines their posterior."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax import files, hosts
from tdsm_jax.data.dataset import to_float
from tdsm_jax.diffusion import likelihood
from tdsm_jax.diffusion.process import make_denoiser
from tdsm_jax.labels.stress import calibration_error
from tdsm_jax.run import Run
from tdsm_jax.training import parallel
from tdsm_jax.training.logs import Progress
from tdsm_jax.training.state import Params, example_keys, normal_like, stream_key


def refine(run: Run) -> None:
    """image_posterior.npz + score/posterior/ -> refined_posterior.npz; refinement.json: the quality of both"""
    before = run.posterior_for("posterior")
    refined = likelihood.times_evidence(before, log_evidence(run))
    files.write_arrays(run.workdir / "refined_posterior.npz", {"w": refined.astype(np.float32)})
    quality = {"before": posterior_quality(run, before), "after": posterior_quality(run, refined)}
    expected = {"expected_own_weight": 1 - run.label_file.realised_rate} if run.labels_are_clean else {}
    files.write_json(run.workdir / "refinement.json", quality | expected)


def log_evidence(run: Run) -> np.ndarray:
    """Returns log p(x0 | y) [N,K] of the training images under the model of method posterior, up to a term of each."""
    c, model, K, N = run.config.refinement, run.model("posterior"), run.num_classes, len(run.train_set.labels)
    key = stream_key(run.config.seed, "refine")
    sigmas, shares = likelihood.noise_levels(model.process, c.levels)

    @jax.jit
    def error(params: Params, batch: dict, look: int, sigma: float, label: int) -> jax.Array:
        denoise = make_denoiser(model.process, functools.partial(model.network.apply, params))
        n = normal_like(example_keys(key, look, batch["position"]), batch["x0"])
        at, labels = jnp.full(len(n), sigma), jnp.full(len(n), label)
        return likelihood.denoising_error(denoise, batch["x0"], at, n, labels)

    params, found = parallel.replicate(model.params, run.mesh), np.zeros((N, K))
    size = min(run.config.sampling.batch_size, parallel.round_up(N))
    with Progress("refine", -(-N // size), size) as progress:
        for start in range(0, N, size):
            hosts.stop_if_asked()
            index = (start + run.mesh.rows(size)) % N  # the last batch is filled up
            images = to_float(run.training_images[index])
            batch, new = parallel.split({"x0": images, "position": index}, run.mesh), min(size, N - start)
            for level, (sigma, share) in enumerate(zip(sigmas, shares, strict=True)):
                for look in range(level * c.draws, (level + 1) * c.draws):
                    # A loop over classes in Python: all at once would take K times the memory.
                    errors = [error(params, batch, look, np.float32(sigma), y) for y in range(K)]
                    found[start : start + new] -= share / c.draws * parallel.gather(jnp.stack(errors, axis=1))[:new]
            progress.update()
    return found


def posterior_quality(run: Run, w: np.ndarray) -> dict[str, float]:
    """Returns how good p(y | x0, y_tilde) [N,K] is; clean labels are read to report, not to train."""
    y, each = run.train_set.labels, np.arange(len(w))
    own = {"own_weight": float(w[each, run.y_tilde].mean())}
    if not run.labels_are_clean:  # what needs true classes is left out
        return own
    return own | {
        "accuracy": float(np.mean(w.argmax(axis=1) == y)),
        "calibration_error": calibration_error(w, y),
        "weight_error": 2 * float(1 - w[each, y].mean()),  # sum_i |w_i - 1{i=y}|
    }
