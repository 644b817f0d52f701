"""From measures to numbers and pages: metrics.json, report.html."""

import datetime
import os
import platform
import sys
from typing import Any

import jax
import numpy as np

from tdsm_jax import config as configuration
from tdsm_jax import files, pipeline
from tdsm_jax.config import extractor_name, extractors, resnet_judges
from tdsm_jax.data import label_files
from tdsm_jax.evaluation import report, report_words, statistics
from tdsm_jax.judge_stages import accuracies, compared_with, distances, look, measures_file
from tdsm_jax.run import Run
from tdsm_jax.run_data import IMAGE_NOISE_FILE
from tdsm_jax.training.logs import read_metrics


def real_measures(run: Run) -> dict[str, Any]:
    """Returns the same metrics for the real test images: what a perfect generator would score with as few samples.

    Distances of fewer images are larger, see `counts`: of more samples it would score less. Fidelity and CAS coincide
    there: both are the test accuracy of the judge, which is trained on real images.
    """
    test, K, real = run.test_set, run.num_classes, {}
    if configuration.small_judge(run.config):
        seen, features = look(run, test.images)
        real = distances(run, features, test.labels)
        if run.reference is not None:
            fidelity, cas = (accuracies(name, seen, test.labels, K) for name in ("label_fidelity", "cas"))
            real = {**fidelity, **cas, **real}
    for classifier in resnet_judges(run.config):
        real |= files.read_json(run.workdir / f"judge_{classifier}" / "real.json")
    return real | {
        n: files.read_json(measures_file(run, "real", n)) for n in map(extractor_name, extractors(run.config))
    }


def measured(run: Run, method: str) -> dict[str, Any]:
    """Returns all that was measured of a method: an extractor's distances stand under its name."""
    small = files.read_json(measures_file(run, method)) if configuration.small_judge(run.config) else {}
    for classifier in resnet_judges(run.config):
        small |= files.read_json(measures_file(run, method, classifier))
    names = map(extractor_name, extractors(run.config))
    return small | {name: files.read_json(measures_file(run, method, name)) for name in names}


def counts(run: Run) -> dict[str, int]:
    """Returns how many images a method makes, how many real ones these are compared with, and how many `real` is of."""
    made = run.config.sampling.per_class * run.num_classes
    return {"samples": made, "compared_with": len(compared_with(run).labels), "test": len(run.test_set.labels)}


def evaluations(run: Run, method: str) -> float:
    """Returns how often the score network was evaluated for an image of a method."""
    return files.read_json(run.workdir / "samples" / f"{method}.json")["evaluations"]


def judges(run: Run, real: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns what each judge's word is worth: its accuracy on real test images, and the hash of its weights."""
    if run.reference is None:
        return {}
    small = {"stages": ("judge", "label_fidelity")} if configuration.small_judge(run.config) else {}
    named = small | {c: (f"judge_{c}", f"label_fidelity_{c}") for c in resnet_judges(run.config)}
    return {
        name: {"test_accuracy": real[key], "weights_sha256": files.file_digest(run.workdir / folder / "judge.npz")}
        for name, (folder, key) in named.items()
    }


def collect_metrics(run: Run) -> dict[str, Any]:
    """Returns the content of metrics.json."""
    methods, real = {m: measured(run, m) for m in run.config.methods}, real_measures(run)
    if "dsm" in methods and "clean" in methods:
        noisy, clean = (report_words.flat(methods[m]) for m in ("dsm", "clean"))
        for method in methods.keys() - {"dsm", "clean"}:
            methods[method]["recovery"] = {
                name: statistics.recovery(noisy[name], value, clean[name])
                for name, value in report_words.flat(methods[method]).items()
                if isinstance(value, float)
            }
    table = files.read_json(run.workdir / "transition.json")
    return {
        "methods": methods,
        "recovery": methods.get("tdsm", {}).get("recovery", {}),
        "real": real,
        "counts": counts(run),
        "class_names": list(run.train_set.class_names),
        "judges": judges(run, real),
        "transition": {k: table[k] for k in ("estimator", "relative_l1", "condition_number")},
        "classifier": table["classifier"],
        **({} if run.config.image_noise.kind == "off" else {"corrupted_images": corrupted_images(run)}),
        "evaluations": {m: evaluations(run, m) for m in run.config.methods},
        **({} if run.labels_are_clean else {"labels_as_given": without_true_labels(run)}),
        **({"refinement": files.read_json(run.workdir / "refinement.json")} if "refined" in methods else {}),
        "seconds": pipeline.seconds(run.workdir),
        "label_file_hash": label_files.label_file_hash(run.label_file),
        "config_hash": files.digest(configuration.resolved(run.config)),
        "versions": pipeline.versions(),
        "backend": jax.default_backend(),
    }


def corrupted_images(run: Run) -> str:
    """Returns what is wrong with the training images of a run, and who does not see it."""
    share, methods = files.read_json(run.workdir / IMAGE_NOISE_FILE)["realised_rate"], run.config.methods
    said = [
        f"{share:.1%} of the training images are corrupted: {report_words.IMAGE_NOISE[run.config.image_noise.kind]}.",
        "Test images and those that samples are compared with are as they were.",
    ]
    if "clean" in methods:
        said.append("Method clean, the ceiling, trains on the images as they were and their true labels.")
    if {"dsm", "clean"} < set(methods):
        said.append(
            "Recovery counts what the corrupted images cost as damage of the labels, and methods mend labels alone."
        )
    return " ".join(said)


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
    images = {"real": run.grid(run.compared.images, run.compared.labels, run.num_classes)}
    for m in run.config.methods:
        made = run.samples(m)
        images[m] = run.grid(made.images, made.labels, run.num_classes)
    folds = [f"classifier/fold{f}" for f in range(run.config.classifier.folds)]  # of an ensemble the first member
    trained = [*folds, *(f"score/{m}" for m in run.config.methods if m not in configuration.UNTRAINED)]
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
