"""Draws images from a trained model and measures them against a reference, as papers do: 50000 images, three times.

  python -m tdsm_jax.make_ref_stats --images=cifar10-32x32.zip --features=inception:WEIGHTS --out=cifar10.npz
  python -m tdsm_jax.evaluate --checkpoint=runs/c10/score/tdsm --reference=cifar10.npz --features=inception:WEIGHTS \\
      --out=runs/c10/evaluation/tdsm --repeats=3

--checkpoint is a model file (ema.npz, or one made by conversion), a folder of a training (WORKDIR/score/METHOD: its
model file, or its latest checkpoint while it goes on), or the folder of one checkpoint. Image i of a repeat depends on
the model, the seed and i alone, and shows class i modulo K; repeat r has the seed --seed + r, and the first images of
seed 0 are those that a run of seed 0 samples.

OUT/metrics.json and OUT/metrics.md hold every metric: mean and spread over the repeats, the best of them (what papers
give as the minimum of three), and what real images score against real images, without which class-wise numbers say
little. An interrupted command goes on where it stopped, and more --repeats add to those that are there. Images are kept
only where --export names a zip file or folder.
"""

import argparse
import re
from typing import Any, NamedTuple

import numpy as np

from tdsm_jax import files, hosts, paths, pipeline, runtime
from tdsm_jax.command import add_host_options, new_parser, run_on_hosts
from tdsm_jax.compare import add_metric_options, asked_metrics
from tdsm_jax.data import edm_zip
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import features, measure, metric_table, references
from tdsm_jax.evaluation.measure import Observed, chosen_metrics
from tdsm_jax.evaluation.references import Reference
from tdsm_jax.extractors import open_extractor
from tdsm_jax.sampler import Sampler, Sampling, drawn
from tdsm_jax.sampling_options import add_sampling_options, asked_sampling, model_identity
from tdsm_jax.training import model_file
from tdsm_jax.training.parallel import data_mesh
from tdsm_jax.training.state import stream_key

_LABELS_SEED = 0
_EXPORT = "export.json"  # beside the parts of a seed: where its images are kept
_SEEDS = re.compile(r"\bseed(\d+)\.(?:json|parts)\b")


class Evaluation(NamedTuple):
    """What is the same in all repeats."""

    sampler: Sampler
    labels: np.ndarray  # int32 [N], the classes that are asked for
    reference: Reference
    metrics: tuple[str, ...]
    extractor: Any
    out: paths.Path


def main(arguments: argparse.Namespace) -> None:
    """Draws and measures every repeat that is not there yet, and writes the summary of all."""
    for name in ("n", "repeats"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.seed < 0:
        raise UserError(f"--seed must be at least 0, got {arguments.seed}")
    sampling = asked_sampling(arguments)
    out = paths.absolute(arguments.out)
    runtime.configure(compilation_cache=runtime.cache_folder(out))
    path = model_file.find(arguments.checkpoint, "--checkpoint")
    evaluation = _evaluation(arguments, sampling, path, out)
    settings = _settings(arguments, path, evaluation)
    check_same(out, settings)
    seeds = range(arguments.seed, arguments.seed + arguments.repeats)
    exports = _exports(arguments, out, seeds)
    floor = _floor(arguments, evaluation)
    files.write_json(out / "settings.json", settings)
    done = [seed for seed in seeds if paths.exists(_result(out, seed))]
    hosts.check_equal(files.digest(done), f"view of the finished repeats in {out}")
    for seed in done if hosts.is_writer() else ():  # a process may have ended just before it removed them
        paths.remove(_parts(out, seed))
    repeats = [_kept(out, seed) if seed in done else _repeat(evaluation, seed, exports.get(seed)) for seed in seeds]
    text = _text(arguments, evaluation, repeats, floor)
    result = {
        "summary": metric_table.summarised(repeats),
        "floor": floor,
        "floor_reference": _named(arguments.floor) if arguments.floor else None,
        "per_seed": dict(zip(map(str, seeds), repeats, strict=True)),
        "settings": settings,
        "reference": {k: v for k, v in evaluation.reference.description.items() if k != "floor"},
        "versions": pipeline.versions(),
    }
    files.write_json(out / "metrics.json", result)
    files.write_text(out / "metrics.md", text)
    if hosts.is_writer():
        print(text)


def _text(arguments: argparse.Namespace, evaluation: Evaluation, repeats: list[dict], floor: dict) -> str:
    """What was measured and the tables, for people."""
    reference = evaluation.reference
    given = f"Real against real: the images of {arguments.floor} against all of them."
    words = (
        f"{arguments.n} images a repeat of {arguments.checkpoint}, features {evaluation.extractor.name}.",
        reference.words,
        given if arguments.floor else reference.floor_words,
    )
    names = reference.description.get("class_names", ())
    table = metric_table.markdown(repeats, floor, names, evaluation.extractor.name)
    return f"{' '.join(words).strip()}\n\n{table}"


def _evaluation(arguments: argparse.Namespace, sampling: Sampling, path: paths.Path, out: paths.Path) -> Evaluation:
    mesh = data_mesh()
    extractor = open_extractor(arguments.features, mesh)
    reference = references.read(arguments.reference)
    references.check_extractor(arguments.reference, reference, extractor.name, extractor.digest, extractor.width)
    model = model_file.read(path)
    K = model.network.num_classes
    references.check_classes(arguments.reference, reference, K, f"the model {path}")
    references.check_form(arguments.reference, reference, model.image_shape, f"the model {path}")
    metrics = chosen_metrics(asked_metrics(arguments.metrics), reference.real, extractor.classifies, bool(K))
    labels = _labels(arguments, reference, K)
    measure.check_sizes(metrics, reference.real, len(labels), labels)
    return Evaluation(Sampler(model, sampling, mesh), labels, reference, metrics, extractor, out)


def _labels(arguments: argparse.Namespace, reference: Reference, K: int) -> np.ndarray:
    """The classes [N] that are asked for: in turn, or those of the reference's images in a fixed random order."""
    turn = np.arange(arguments.n)
    if arguments.labels == "balanced":
        return (turn % max(K, 1)).astype(np.int32)
    if reference.real.labels is None or not K:
        raise UserError("--labels=reference needs a model and a reference with labels; leave it out")
    order = np.random.Generator(np.random.PCG64(_LABELS_SEED)).permutation(len(reference.real.labels))
    return reference.real.labels[order[turn % len(order)]].astype(np.int32)


def _settings(arguments: argparse.Namespace, path: paths.Path, evaluation: Evaluation) -> dict[str, Any]:
    """What every repeat depends on, beside its seed."""
    extractor = evaluation.extractor
    return {
        "model": model_identity(path),
        "n": arguments.n,
        "labels": arguments.labels,
        **sampling_settings(evaluation.sampler.settings),
        "metrics": list(evaluation.metrics),
        "reference": _named(arguments.reference),
        "extractor": {"name": extractor.name, "digest": extractor.digest},
    }


def sampling_settings(sampling: Sampling) -> dict[str, Any]:
    """How images are drawn: three of the settings always, the others where they are not the defaults."""
    always = {name: getattr(sampling, name) for name in ("steps", "rho", "guidance")}
    weak = {"autoguidance": model_identity(paths.absolute(sampling.autoguidance))} if sampling.autoguidance else {}
    return always | sampling.chosen | weak


def _named(path: str) -> dict[str, str]:
    return {"path": path, "sha256": files.file_digest(path)}


def check_same(out: paths.Path, settings: dict[str, Any]) -> None:
    """Raises `UserError` where a folder holds the results of other settings; where files lie makes no difference."""
    if not paths.exists(out / "settings.json"):
        return
    there = files.read_json(out / "settings.json")
    for name in there | settings:
        a, b = (_without_path(s.get(name)) for s in (there, settings))
        if a != b:
            raise UserError(f"--out={out} holds results of another {name}; give another folder")


def _without_path(setting: Any) -> Any:
    return {k: v for k, v in setting.items() if k != "path"} if isinstance(setting, dict) else setting


def _exports(arguments: argparse.Namespace, out: paths.Path, seeds: range) -> dict[int, paths.Path]:
    """Returns where the images of each seed are kept: where they were begun to be, else in a file that is not there.

    The file of a single seed has the name that is given, unless another seed's images have it.
    """
    if not arguments.export:
        return {}
    plain = paths.absolute(arguments.export)
    named = {seed: plain.with_name(f"{plain.stem}-seed{seed}{plain.suffix}") for seed in seeds}
    begun = {seed: _exported(out, seed) for seed in seeds}
    others = any(_exported(out, int(seed)) for seed in _SEEDS.findall(" ".join(p.name for p in paths.children(out))))
    exports = {}
    for seed in seeds:
        path = begun[seed] or (named[seed] if len(seeds) > 1 or others else plain)
        if paths.exists(_result(out, seed)) and not begun[seed]:
            raise UserError(f"{out} has measured seed {seed} without keeping its images; give another --out")
        if path not in (plain, named[seed]):
            raise UserError(f"{out} keeps the images of seed {seed} in {path}; give the same --export as before")
        if paths.exists(_result(out, seed)) and not paths.exists(path):
            raise UserError(f"{path}: the images of seed {seed} are there no more; give another --out")
        if paths.exists(path) and not begun[seed]:
            raise UserError(f"{path} is there already, and not from here; give another --export, or remove it")
        exports[seed] = path
    return exports


def _exported(out: paths.Path, seed: int) -> paths.Path | None:
    """Where the images of a seed that was measured or begun are kept, or None."""
    for record in (_result(out, seed), _parts(out, seed) / _EXPORT):
        if paths.exists(record):
            path = files.read_json(record).get("export")
            return paths.path_of(path) if path else None
    return None


def _result(out: paths.Path, seed: int) -> paths.Path:
    return out / f"seed{seed}.json"


def _parts(out: paths.Path, seed: int) -> paths.Path:
    return out / f"seed{seed}.parts"


def _kept(out: paths.Path, seed: int) -> dict[str, Any]:
    """The values of a seed that was measured before."""
    return {name: value for name, value in files.read_json(_result(out, seed)).items() if name != "export"}


def _repeat(evaluation: Evaluation, seed: int, export: paths.Path | None) -> dict[str, Any]:
    """Draws the images of a seed, measures them, and keeps what came out."""
    e, parts = evaluation, _parts(evaluation.out, seed)
    key, images_at, features_at = stream_key(seed, "sample"), parts / "images", parts / "features"
    images, _ = drawn(e.sampler, e.labels, key, images_at, f"sample seed {seed}")
    if len(images) != len(e.labels):
        raise AssertionError(f"{len(images)} images for {len(e.labels)} labels")
    labels = e.labels if e.sampler.model.network.num_classes else None
    if export is not None and hosts.is_writer() and not paths.exists(export):
        files.write_json(parts / _EXPORT, {"export": str(export)})  # first: what is there later is ours
        edm_zip.write(export, images, labels)
    seen = features.extract(e.extractor, images, label=f"features seed {seed}", parts=features_at)
    observed = Observed(seen.features, seen.probabilities, labels)
    values = measure.measured(e.reference.real, observed, e.metrics, measure.watched)
    files.write_json(_result(e.out, seed), values | ({"export": str(export)} if export is not None else {}))
    hosts.barrier(f"seed {seed}")  # nobody reads the parts any more
    if hosts.is_writer():
        paths.remove(parts)
    return values


def _floor(arguments: argparse.Namespace, evaluation: Evaluation) -> dict[str, Any]:
    """What real images score: the halves of the reference, or the images of --floor against the whole of it."""
    reference = evaluation.reference
    if not arguments.floor:
        return reference.floor
    other = references.read(arguments.floor)
    extractor = evaluation.extractor
    references.check_extractor(arguments.floor, other, extractor.name, extractor.digest, extractor.width)
    names = reference.description.get("class_names", ())
    references.check_form(arguments.floor, other, evaluation.sampler.model.image_shape, "the model")
    references.check_classes(arguments.floor, other, reference.num_classes, arguments.reference, names)
    if other.real.features is None:
        raise UserError(f"--floor={arguments.floor} has no features; make one with python -m tdsm_jax.make_ref_stats")
    left_out = ("is", *(("class_wise",) if other.real.labels is None else ()))
    chosen = [name for name in evaluation.metrics if name not in left_out]
    return measure.measured(reference.real, Observed(other.real.features, None, other.real.labels), chosen)


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command line; `main` takes what it makes of arguments, from Python, too."""
    parser = new_parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a model file, a checkpoint, or WORKDIR/score/METHOD")
    parser.add_argument("--reference", required=True, help="a reference of make_ref_stats, or one of mu and sigma")
    parser.add_argument("--out", required=True, help="folder of the results; the same goes on")
    add_metric_options(parser)
    parser.add_argument("--n", type=int, default=50000, help="images a repeat (%(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="evaluations with seeds of their own (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first repeat (%(default)s)")
    labels = ("balanced", "reference")
    parser.add_argument("--labels", choices=labels, default="balanced", help="classes in turn, or the reference's")
    add_sampling_options(parser)
    parser.add_argument("--floor", default="", help="a reference of other real images, in place of halves")
    parser.add_argument("--export", default="", help="keep the images, as PNG files in a .zip or a folder")
    add_host_options(parser)
    return parser


if __name__ == "__main__":
    run_on_hosts(options(), main)
