"""From samples to numbers and pages: the judge, what it measures, metrics.json and report.html."""

import datetime
import os
import platform
import sys
from typing import Any

import jax
import numpy as np

from tdsm_jax import config as configuration
from tdsm_jax import files, pipeline
from tdsm_jax.data import label_files
from tdsm_jax.data.batches import evenly
from tdsm_jax.data.stream import part_of
from tdsm_jax.evaluation import judge, report, report_words, statistics
from tdsm_jax.run import Run, optimisation
from tdsm_jax.training import classifier as classifiers
from tdsm_jax.training.classifier import Fitted, Labelled
from tdsm_jax.training.fit_step import FitSettings
from tdsm_jax.training.logs import read_metrics
from tdsm_jax.training.state import stream_key

MOST_COMPARED = 50_000  # real images without true classes that samples are compared with: as many as FID's of CIFAR-10


def fit_plain(run: Run, data: Labelled, name: str) -> Fitted:
    """Fits the evaluation classifier on clean-looking images and the labels that come with them."""
    return classifiers.fit(
        data,
        stream_key(run.config.seed, "judge"),
        label=name,
        settings=FitSettings(
            network=run.judge,
            optimisation=optimisation(run.config.evaluation),
            schedule=run.schedule(run.config.evaluation.steps),
            process=None,
        ),
        S=np.eye(run.num_classes),
        mesh=run.mesh,
        seed=run.config.seed,
        directory=run.workdir / name,
    )


def fit_judge(run: Run) -> None:
    """images of true classes -> judge/: the classifier that measures label fidelity, and its features

    Where there are none it learns the labels as given: then it judges no labels, only its features are used.
    """
    data = run.train_set if run.reference is None else run.reference
    fitted = fit_plain(run, Labelled(data.images, data.labels), "judge")
    classifiers.write_fitted(run.workdir / "judge" / "judge.npz", fitted)


def look(run: Run, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the judge's verdicts [N] and features [N,D]."""
    params = classifiers.read_fitted(run.workdir / "judge" / "judge.npz").params
    return judge.look(run.judge, params, images, run.mesh)


def measure(run: Run, method: str) -> None:
    """samples + judge -> measures/<method>/: fidelity, CAS, distances to the clean training images"""
    made = run.samples(method)
    seen, features = look(run, made.images)
    if run.reference is None:
        values = distances(run, features, made.labels)
        files.write_json(run.workdir / "measures" / method / "metrics.json", values)
        return
    trained_on_made = fit_plain(run, made, f"measures/{method}/cas").params
    guessed, _ = judge.look(run.judge, trained_on_made, run.test_set.images, run.mesh)
    values = {
        **accuracies("label_fidelity", seen, made.labels, run.num_classes),
        **accuracies("cas", guessed, run.test_set.labels, run.num_classes),
        "confusion": statistics.confusion(made.labels, seen, run.num_classes),
        **distances(run, features, made.labels),
    }
    files.write_json(run.workdir / "measures" / method / "metrics.json", values)


def real_measures(run: Run) -> dict[str, Any]:
    """Returns the same metrics for the real test images: what a perfect generator would score.

    Fidelity and CAS coincide there: both are the test accuracy of the judge, which is trained on real images.
    """
    test, K = run.test_set, run.num_classes
    seen, features = look(run, test.images)
    if run.reference is None:
        return distances(run, features, test.labels)
    fidelity, cas = (accuracies(name, seen, test.labels, K) for name in ("label_fidelity", "cas"))
    return {**fidelity, **cas, **distances(run, features, test.labels)}


def accuracies(name: str, predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, Any]:
    """Returns an accuracy, its worst class and all classes, under `name`."""
    classes = statistics.per_class_accuracy(predicted, labels, num_classes)
    return {
        name: float(np.mean(predicted == labels)),
        f"{name}_worst_class": min(classes),
        f"{name}_per_class": classes,
    }


def distances(run: Run, features: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Returns the distances of a set of features to those of the images of true classes.

    Where there are none, those distances to the training images that need no classes.
    """
    nearest = run.config.evaluation.nearest
    if run.reference is None:
        images = run.train_set.images
        _, real = look(run, part_of(images, evenly(len(images), MOST_COMPARED)))
        density, coverage = statistics.density_coverage(real, features, nearest)
        return {"fd": statistics.frechet_distance(real, features), "density": density, "coverage": coverage}
    _, real = look(run, run.reference.images)
    return statistics.compare(real, run.reference.labels, features, labels, nearest)


def collect_metrics(run: Run) -> dict[str, Any]:
    """Returns the content of metrics.json."""
    methods = {m: files.read_json(run.workdir / "measures" / m / "metrics.json") for m in run.config.methods}
    if "dsm" in methods and "clean" in methods:
        for method in methods.keys() - {"dsm", "clean"}:
            methods[method]["recovery"] = {
                name: statistics.recovery(methods["dsm"][name], value, methods["clean"][name])
                for name, value in methods[method].items()
                if isinstance(value, float)
            }
    table = files.read_json(run.workdir / "transition.json")
    return {
        "methods": methods,
        "recovery": methods.get("tdsm", {}).get("recovery", {}),
        "real": real_measures(run),
        "transition": {k: table[k] for k in ("estimator", "relative_l1", "condition_number")},
        "classifier": table["classifier"],
        **({} if run.labels_are_clean else {"labels_as_given": without_true_labels(run)}),
        **({"refinement": files.read_json(run.workdir / "refinement.json")} if "refined" in methods else {}),
        "seconds": pipeline.seconds(run.workdir),
        "label_file_hash": label_files.label_file_hash(run.label_file),
        "config_hash": files.digest(configuration.resolved(run.config)),
        "versions": pipeline.versions(),
        "backend": jax.default_backend(),
    }


def without_true_labels(run: Run) -> str:
    """Returns what the metrics of a run on labels as given rest on, and which are left out."""
    if run.reference is None:
        return (
            "The true classes of these images are not known: label fidelity, CAS and class-wise distances are left "
            "out, and the classifier whose features the other distances read learnt the labels as given."
        )
    return (
        "The true classes of the training images are not known: the metrics compare with "
        f"{len(run.reference.labels)} other images whose labels are true; the classifiers' accuracy on the training "
        "images is left out."
    )


def write_report(run: Run) -> None:
    """everything above -> metrics.json, report.html"""
    metrics = collect_metrics(run)
    table = files.read_json(run.workdir / "transition.json")
    real = run.train_set if run.reference is None else run.reference
    images = {"real": run.grid(real.images, real.labels, run.num_classes)}
    for m in run.config.methods:
        made = run.samples(m)
        images[m] = run.grid(made.images, made.labels, run.num_classes)
    folds = [f"classifier/fold{f}" for f in range(run.config.classifier.folds)]  # of an ensemble the first member
    trained = [*folds, *(f"score/{m}" for m in run.config.methods if m != "init")]
    files.write_json(run.workdir / "metrics.json", metrics)
    noise = run.label_file
    kind, drawn = "labels as given", {}
    if run.labels_are_clean:
        kind = f"{report_words.NOISE[noise.kind]} label noise {noise.rate:.0%}"
        drawn = {"true": noise.S, "realised": noise.realised_matrix}
    report.write_report(
        run.workdir / "report.html",
        report.Report(
            title=f"{run.train_set.name}, {kind}, seed {run.config.seed}",
            config=configuration.resolved(run.config),
            environment=environment(),
            metrics=metrics,
            images=images,
            transitions={**drawn, "estimated": np.array(table["S"])},
            curves={name: read_metrics(run.workdir / name) for name in trained},
            classifier=table["classifier"],
            class_names=run.train_set.class_names,
        ),
    )


def environment() -> dict[str, str]:
    """Returns what the numbers were made with."""
    devices = jax.devices()
    return pipeline.versions() | {
        "python": platform.python_version(),
        "devices": f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()})",
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m tdsm_jax.main", *sys.argv[1:]]),
    }
