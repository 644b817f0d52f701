"""Which units a config asks for: what each reads, needs and makes."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from tdsm_jax import config as configuration
from tdsm_jax import (
    files,
    image_stages,
    judge_stages,
    label_stages,
    model_stages,
    paths,
    refinement,
    results,
    robust_losses,
)
from tdsm_jax.data.label_files import GIVEN
from tdsm_jax.errors import UserError
from tdsm_jax.labels.estimators import ESTIMATORS
from tdsm_jax.pipeline import Unit
from tdsm_jax.run import Run
from tdsm_jax.score_network import is_dit
from tdsm_jax.training import checkpoint, model_file
from tdsm_jax.training.state import Optimisation

_EDM = tuple(f"process.{key}" for key in ("P_mean", "P_std", "sigma_data", "sigma_min"))  # what classifiers see
_ESTIMATE_READS = tuple(
    f"transition.{key}" for key in ("estimator", "condition_limit", "clean_per_class", "features", "start")
)

_JUDGE = tuple(  # what concerns the small judge of section evaluation
    f"evaluation.{key}"
    for key in ("widths", "hidden", "dropout", "steps", "nearest", *(f.name for f in dataclasses.fields(Optimisation)))
)


def reads_table(method: str) -> bool:
    """Says whether training a method reads the weight table."""
    return method.startswith("tdsm") or method in ("s_weighted", "relabel_tdsm")


def reads_posterior(method: str) -> bool:
    """Says whether training a method reads the posterior of the clean images."""
    return method in ("posterior", "refined") or method.startswith("relabel")


def units(run: Run) -> list[Unit]:
    """Returns the units of a run, in order."""
    if run.config.task == "robust_losses":
        return _robust_losses_units(run)
    in_order = sorted(run.config.methods, key=lambda m: m in ("refined", "corrected"))  # which go on from others
    models = [unit for method in in_order for unit in _model_units(run, method)]
    return [*_label_units(run), *models, *_result_units(run)]


def _label_units(run: Run) -> list[Unit]:
    labels = ("seed", "data", "label_noise", "sampling.grid_rows", "sampling.grid_columns")
    seen = _corrupted(run)
    units = [
        *_image_units(run),
        _unit(
            run, "labels", label_stages.make_labels, labels, (), ("labels.json", "labels.png"), inputs=run.label_inputs
        ),
    ]
    if run.reads_noisy_posterior:
        makes = ("noisy_classifier", "noisy_posterior.npz")
        reads = ("classifier", "stress.share")
        units.append(_unit(run, "noisy_classifier", label_stages.fit_noisy_classifier, reads, ("labels", *seen), makes))
    if run.config.transition.estimator in ESTIMATORS:
        needs = ("noisy_classifier",) if run.reads_noisy_posterior else ("labels", *seen)
        units.append(
            _unit(run, "estimate", label_stages.estimate_transition, _ESTIMATE_READS, needs, ("estimate.json",))
        )
    return [*units, *_weight_units(run, units[-1].name)]


def _corrupted(run: Run) -> tuple[str, ...]:
    """The unit that what is trained on corrupted images needs, if the config asks for any."""
    return () if run.config.image_noise.kind == "off" else ("images",)


def _image_units(run: Run) -> list[Unit]:
    reads = ("seed", "data", "image_noise", "sampling.grid_rows", "sampling.grid_columns")
    made = ("image_noise.json", "image_noise.png")
    return [_unit(run, name, image_stages.make_images, reads, (), made) for name in _corrupted(run)]


def _weight_units(run: Run, needed: str) -> list[Unit]:
    """The classifiers, and what they and S make of each other."""
    fits = (*_EDM, "classifier", "transition.estimator")
    learns = ("transition.volume_weight", "transition.rate", "transition.freeze_images", "stress.share")
    names = (name for f in range(run.config.classifier.folds) for name in run.classifier_files(f))
    named = {**_given(run.config.classifier.init_from), **_given(run.config.generated)}
    makes, given = ("classifier", *names), {**named, **run.matrix_inputs}
    before = (needed, *_corrupted(run))
    reads = ("transition.condition_limit", "transition.prior", "stress.logit_noise")
    table = ("weight_table.npz", "transition.json")
    units = [
        _unit(run, "classifier", label_stages.fit_classifier, fits + learns, before, makes, inputs=given),
        _unit(run, "transition", label_stages.make_weight_table, reads, ("classifier",), table),
    ]
    if any(map(reads_posterior, run.config.methods)):
        made = ("image_posterior.npz",)
        units.append(_unit(run, "posterior", label_stages.make_posterior, (), ("transition",), made))
    return units


def _model_units(run: Run, method: str) -> list[Unit]:
    trained, sampled = f"score/{method}", f"sample/{method}"
    pictures = tuple(f"samples/{method}.{ending}" for ending in ("npz", "png", "json"))
    parts = (f"samples/{method}.parts",)
    initial, weaker = _given(run.config.init_from), run.config.sampling.autoguidance
    weak = {weaker: model_file.identity(run.weaker_path)} if weaker else {}
    if method == "init":
        reads = ("seed", "sampling")
        given = {**initial, **weak}
        return [_unit(run, sampled, model_stages.sample, reads, (), pictures, method, inputs=given, scratch=parts)]
    if method == "corrected":
        reads, needs = ("sampling", "correction"), ("score/dsm", "transition")
        return [_unit(run, sampled, model_stages.sample, reads, needs, pictures, method, inputs=weak, scratch=parts)]
    reads = ("seed", "data", "network", "process", "score", *(("dit",) if is_dit(run.config) else ()))
    needs = () if method == "clean" else ("labels", *_corrupted(run))
    if reads_table(method):
        reads, needs = (*reads, "mixture"), (*needs, "transition")
    if reads_posterior(method):
        needs = (*needs, "posterior")
    if method.startswith("relabel"):
        reads = (*reads, "relabel")
    makes = (trained, f"{trained}/ema.npz")
    before = []
    if method == "refined":
        made, needs = ("refined_posterior.npz", "refinement.json"), (*needs, "refine")
        of = ("posterior", "score/posterior")
        before = [_unit(run, "refine", refinement.refine, ("seed", "data", "refinement"), of, made)]
    return [
        *before,
        _unit(run, trained, model_stages.train_score, reads, needs, makes, method, inputs=initial),
        _unit(
            run, sampled, model_stages.sample, ("sampling",), (trained,), pictures, method, inputs=weak, scratch=parts
        ),
    ]


def _given(path: str) -> dict[str, str]:
    """The hash of the file that a config key names, if any, of a checkpoint that of its manifest; or a `UserError`."""
    if not path:
        return {}
    folder = paths.absolute(path)
    if not paths.is_file(folder) and not checkpoint.is_step(folder):
        raise UserError(f"{path}: no such file (a config key init_from or generated names it)")
    return {path: model_file.identity(folder)}


def _result_units(run: Run) -> list[Unit]:
    config, judging, measures = run.config, [], []
    # Where labels are as given judges learn other images, or other labels.
    data = ("seed", "data", *(("label_noise.kind",) if config.label_noise.kind == GIVEN else ()))
    if configuration.small_judge(config):
        reads = (*data, *_JUDGE)
        made = ("judge", "judge/judge.npz", "references/judge.npz")
        judging.append(_unit(run, "judge", judge_stages.fit_judge, reads, (), made))
        for m in config.methods:
            makes = (f"measures/{m}", f"measures/{m}/metrics.json")
            measures.append(_unit(run, f"measure/{m}", judge_stages.measure, reads, ("judge", f"sample/{m}"), makes, m))
    for c in configuration.resnet_judges(config):
        reads = (*data, f"evaluation.{c}")
        made = (f"judge_{c}", f"judge_{c}/judge.npz", f"judge_{c}/real.json")
        judging.append(_unit(run, f"judge/{c}", judge_stages.fit_resnet_judge, reads, (), made, c))
        measures += (_measure_unit(run, judge_stages.measure_labels, m, c, reads, f"judge/{c}") for m in config.methods)
    for spec in configuration.extractors(config):
        name, weights = configuration.extractor_name(spec), _weights(spec)
        made, parts = (f"references/{name}.npz",), (f"references/{name}",)
        reference = (f"references/{name}", judge_stages.make_reference, data, (), made, spec)
        judging.append(_unit(run, *reference, inputs=weights, scratch=parts))
        every, needed = ("real", *config.methods), f"references/{name}"
        measures += (_measure_unit(run, judge_stages.measure_features, m, spec, data, needed) for m in every)
    everything = ("transition", *(unit.name for unit in measures))
    page = _unit(run, "report", results.write_report, ("task",), everything, ("metrics.json", "report.html"))
    return [*judging, *measures, page]


def _measure_unit(run: Run, work: Callable, method: str, by: str, reads: tuple[str, ...], needed: str) -> Unit:
    """What a classifier or extractor measures of a method's samples; of method real, of the test images."""
    needs = (needed,) if method == "real" else (needed, f"sample/{method}")
    name = configuration.extractor_name(by)
    folder = f"measures/{name}/{method}"
    makes, scratch = (folder, f"{folder}/metrics.json"), (f"{folder}/parts", f"{folder}/cas")
    return _unit(run, f"measure/{method}/{name}", work, reads, needs, makes, method, by, scratch=scratch)


def _weights(spec: str) -> dict[str, str]:
    """The hash of the weights that an extractor reads, of a folder that of the files it reads; or a `UserError`."""
    kind, _, given = spec.partition(":")
    if kind == "pixels":  # which has none
        return {}
    path = paths.path_of(given)
    if paths.is_file(path):
        return {str(path): files.file_digest(path)}
    if not paths.exists(path):
        raise UserError(f"{path}: no such file or folder (config key evaluation.features names it)")
    read = sorted(file for file in paths.children(path) if file.suffix in (".json", ".safetensors", ".bin"))
    return {str(path): files.digest([[file.name, files.file_digest(file)] for file in read])}


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
    return [*fits, _unit(run, "report", robust_losses.write_report, ("task",), tuple(unit.name for unit in fits), made)]


def _unit(
    run: Run,
    name: str,
    work: Callable,
    reads: tuple[str, ...],
    needs: tuple[str, ...],
    makes: tuple[str, ...],
    *arguments: Any,
    inputs: Mapping[str, str] = MappingProxyType({}),
    scratch: tuple[str, ...] = (),
) -> Unit:
    if "data" in reads:  # the training images: also what class imbalance leaves of them
        reads, inputs = (*reads, "label_noise.imbalance"), {**inputs, **run.data_inputs}
    return Unit(name, reads, needs, makes, functools.partial(work, run, *arguments), inputs, scratch)
