"""Which units a config asks for: what each reads, needs and makes."""

import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from tdsm_jax import files, label_stages, model_stages, results, robust_losses
from tdsm_jax.errors import UserError
from tdsm_jax.pipeline import Unit
from tdsm_jax.run import Run


def reads_table(method: str) -> bool:
    """Says whether training a method reads the weight table."""
    return method.startswith("tdsm") or method in ("s_weighted", "relabel_tdsm")


def reads_posterior(method: str) -> bool:
    """Says whether training a method reads the posterior of the clean images."""
    return method == "posterior" or method.startswith("relabel")


def units(run: Run) -> list[Unit]:
    """Returns the units of a run, in order."""
    if run.config.task == "robust_losses":
        return _robust_losses_units(run)
    models = [unit for method in run.config.methods for unit in _model_units(run, method)]
    return [*_label_units(run), *models, *_result_units(run)]


def _label_units(run: Run) -> list[Unit]:
    reads = ("transition.condition_limit", "transition.prior")
    fits = ("process.P_mean", "process.P_std", "process.sigma_data", "classifier", "transition.estimator")
    learns = ("transition.volume_weight", "transition.rate", "transition.freeze_images")
    table = ("weight_table.npz", "transition.json")
    folds = (name for f in range(run.config.classifier.folds) for name in run.classifier_files(f))
    given = _given(run.config.classifier.init_from)
    posterior = _unit(run, "posterior", label_stages.make_posterior, (), ("transition",), ("image_posterior.npz",))
    return [
        _unit(
            run,
            "labels",
            label_stages.make_labels,
            ("seed", "data", "label_noise"),
            (),
            ("labels.json", "labels.png"),
            inputs=run.label_inputs,
        ),
        _unit(
            run,
            "classifier",
            label_stages.fit_classifier,
            fits + learns,
            ("labels",),
            ("classifier", *folds),
            inputs=given,
        ),
        _unit(run, "transition", label_stages.make_weight_table, reads, ("classifier",), table),
        *([posterior] if any(map(reads_posterior, run.config.methods)) else []),
    ]


def _model_units(run: Run, method: str) -> list[Unit]:
    trained, sampled = f"score/{method}", f"sample/{method}"
    pictures = (f"samples/{method}.npz", f"samples/{method}.png")
    initial = _given(run.config.init_from)
    if method == "init":
        return [_unit(run, sampled, model_stages.sample, ("seed", "sampling"), (), pictures, method, inputs=initial)]
    reads = ("seed", "data", "network", "process", "score")
    needs = () if method == "clean" else ("labels",)
    if reads_table(method):
        reads, needs = (*reads, "mixture"), (*needs, "transition")
    if reads_posterior(method):
        needs = (*needs, "posterior")
    makes = (trained, f"{trained}/ema.npz")
    return [
        _unit(run, trained, model_stages.train_score, reads, needs, makes, method, inputs=initial),
        _unit(run, sampled, model_stages.sample, ("sampling",), (trained,), pictures, method),
    ]


def _given(path: str) -> dict[str, str]:
    """The hash of the file that a config key names, if any; `UserError` where there is none of that name."""
    if path and not pathlib.Path(path).is_file():
        raise UserError(f"{path}: no such file (a config key init_from names it)")
    return {path: files.file_digest(path)} if path else {}


def _result_units(run: Run) -> list[Unit]:
    reads, methods = ("seed", "data", "evaluation"), run.config.methods
    measures = []
    for m in methods:
        makes = (f"measures/{m}", f"measures/{m}/metrics.json")
        measures.append(_unit(run, f"measure/{m}", results.measure, reads, ("judge", f"sample/{m}"), makes, m))
    everything = ("transition", *(unit.name for unit in measures))
    return [
        _unit(run, "judge", results.fit_judge, reads, (), ("judge", "judge/judge.npz")),
        *measures,
        _unit(run, "report", results.write_report, (), everything, ("metrics.json", "report.html")),
    ]


def _robust_losses_units(run: Run) -> list[Unit]:
    r = run.config.robust_losses
    lists = ("networks", "noises", "seeds", "cnn_widths", "resnet_width")  # of which a fit concerns one
    shared = tuple(f"robust_losses.{key}" for key in r if key not in lists)
    fits = []
    for network, noise, seed in itertools.product(r.networks, r.noises, r.seeds):
        width = f"robust_losses.{'cnn_widths' if network == 'cnn' else 'resnet_width'}"
        fit = robust_losses.Fit(network, noise, seed)
        reads = ("seed", "data", "label_noise.table", width, *shared)
        fits.append(_unit(run, f"fit/{fit.name}", robust_losses.fit, reads, (), (fit.file,), fit))
    made = ("metrics.json", "table.md", "report.html")
    return [*fits, _unit(run, "report", robust_losses.write_report, (), tuple(unit.name for unit in fits), made)]


def _unit(
    run: Run,
    name: str,
    work: Callable,
    reads: tuple[str, ...],
    needs: tuple[str, ...],
    makes: tuple[str, ...],
    *arguments: Any,
    inputs: Mapping[str, str] = MappingProxyType({}),
) -> Unit:
    if "data" in reads:  # the training images: also what class imbalance leaves of them
        reads, inputs = (*reads, "label_noise.imbalance"), {**inputs, **run.data_inputs}
    return Unit(name, reads, needs, makes, functools.partial(work, run, *arguments), inputs)
