"""The benchmark of robust losses: plain classifiers of clean images, every loss on the labels of every noise.

Of one seed, all losses start from the same weights and see the same batches of the same noisy labels. The parameters
are those of the last step and those of the step that is best by accuracy on a held-out slice of the noisy training
set; clean labels only test. Protocol: Ma et al. 2020, with Adam in place of their SGD.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from tdsm_jax import config as configuration
from tdsm_jax import files, pipeline
from tdsm_jax.data import label_files, stream
from tdsm_jax.data.batches import batch_indices
from tdsm_jax.evaluation import robust_page
from tdsm_jax.networks.mnist_cnn import MnistCNN
from tdsm_jax.networks.resnet import BLOCKS, ResNet
from tdsm_jax.results import environment
from tdsm_jax.run import Run, optimisation
from tdsm_jax.training import classifier as classifiers
from tdsm_jax.training.classifier import Labelled
from tdsm_jax.training.fit_step import FitSettings, Network
from tdsm_jax.training.state import Params, stream_key

EMBEDDING_CHANNELS = 8  # of the noise level, which is the same for all clean images


class Fit(NamedTuple):
    """One unit of the benchmark, which fits all losses: name of the network, "kind:rate" of the noise, seed."""

    network: str
    noise: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.network}/{self.noise.replace(':', '')}/seed{self.seed}"

    @property
    def file(self) -> str:
        return f"fits/{self.name}.json"


def fit(run: Run, which: Fit) -> None:
    """images + labels of one noise -> fits/<network>/<noise>/seed<s>.json: accuracies of all losses"""
    data, r, N = run.train_set, run.config.robust_losses, len(run.train_set.labels)
    kind, rate = configuration.parse_noise(which.noise)
    table = run.config.label_noise.table if kind == "asym" else ""
    drawn = label_files.draw(data, kind, rate, which.seed, table=table)
    held_out = np.zeros(N, bool)
    held_out[batch_indices(which.seed, 0, N, N)[: round(r.validation_share * N)]] = True
    train, validation = (
        Labelled(stream.part_of(data.images, mask), drawn.y_tilde[mask]) for mask in (~held_out, held_out)
    )
    losses = {loss: accuracies(run, which, loss, train, validation) for loss in r.losses}
    files.write_json(run.workdir / which.file, {"realised_rate": drawn.realised_rate, "losses": losses})


def accuracies(run: Run, which: Fit, loss: str, train: Labelled, validation: Labelled) -> dict[str, float]:
    """Fits one loss; returns test accuracies "last" and "best", "validation" of the best, "reproduced" of the last."""
    settings = fit_settings(run, which.network, loss)
    trained = classifiers.train(
        train,
        stream_key(which.seed, f"robust_losses/{which.network}"),
        label=f"{which.name}, {loss}",
        settings=settings,
        S=np.eye(run.num_classes),
        mesh=run.mesh,
        seed=which.seed,
        held_out=validation,
    )
    test = Labelled(run.test_set.images, run.test_set.labels)
    last, best = trained.state.train.ema_params, trained.state.best_params
    return {
        "last": accuracy(run, settings, last, test),
        "best": accuracy(run, settings, best, test),
        "validation": 1 - float(trained.state.best_loss),
        "reproduced": accuracy(run, settings, last, train),
    }


def accuracy(run: Run, settings: FitSettings, params: Params, data: Labelled) -> float:
    """Returns the share of the labels that a plain classifier gives the images."""
    seen = classifiers.make_held_out(settings, data, jax.random.key(0), run.mesh)  # clean images: the key goes unused
    return float(np.mean(seen.logits(params).argmax(axis=1) == seen.labels))


def fit_settings(run: Run, network: str, loss: str) -> FitSettings:
    """Returns how a loss is fitted; sums of two losses are weighted as the config says."""
    r = run.config.robust_losses
    return FitSettings(
        network=make_network(run, network),
        optimisation=optimisation(r),
        schedule=run.schedule(r.steps, r.evaluate_every),
        process=None,
        stopping_by="accuracy",
        loss=loss,
        loss_parameters=(("a", r.active_weight), ("b", r.passive_weight)) if "+" in loss else (),
    )


def make_network(run: Run, name: str) -> Network:
    """Returns the network of a name."""
    r, K = run.config.robust_losses, run.num_classes
    if name == "cnn":
        return MnistCNN(K, r.cnn_widths, EMBEDDING_CHANNELS)
    return ResNet(K, BLOCKS[name], r.resnet_width, EMBEDDING_CHANNELS)


def collect(run: Run) -> dict[str, Any]:
    """Returns network -> noise -> loss -> measure -> values of the seeds, from the finished fits."""
    r = run.config.robust_losses
    results: dict[str, Any] = {}
    for network in r.networks:
        results[network] = {}
        for noise in r.noises:
            fits = [files.read_json(run.workdir / Fit(network, noise, seed).file)["losses"] for seed in r.seeds]
            results[network][noise] = {
                loss: {measure: [f[loss][measure] for f in fits] for measure in fits[0][loss]} for loss in r.losses
            }
    return results


def write_report(run: Run) -> None:
    """fits/ -> metrics.json, table.md, report.html"""
    results, seeds = collect(run), run.config.robust_losses.seeds
    config, seconds = configuration.resolved(run.config), pipeline.seconds(run.workdir)
    record = {
        "results": results,
        "seeds": list(seeds),
        "seconds": seconds,
        "config_hash": files.digest(config),
        "versions": pipeline.versions(),
        "backend": jax.default_backend(),
    }
    files.write_json(run.workdir / "metrics.json", record)
    spent = {n: sum(s for unit, s in seconds.items() if unit.startswith(f"fit/{n}/")) for n in results}
    title = f"Robust losses on {run.train_set.name}, seeds {', '.join(map(str, seeds))}"
    made_with = environment()
    origin = (
        f"{run.train_set.name}, mean ± sd (n - 1) over seeds {', '.join(map(str, seeds))}; {made_with['devices']}, "
    )
    origin += f"jax {made_with['jax']}, {made_with['date']}: `{made_with['command']}`"
    files.write_text(run.workdir / "table.md", f"{origin}\n\n{robust_page.markdown(results)}")
    files.write_text(run.workdir / "report.html", robust_page.render(title, results, spent, made_with, config))
