"""The judges of samples: how they are fitted, and what they and feature extractors measure.

The small judge, which also lends its features, has folders of its own: judge/, measures/<method>/. Every other
classifier or extractor is named in its folders: judge_<name>/, references/<name>.npz, measures/<name>/<method>/.
"""

from typing import Any

import numpy as np

from tdsm_jax import files, paths
from tdsm_jax.config import extractor_name
from tdsm_jax.data.batches import evenly
from tdsm_jax.data.dataset import Dataset, subset
from tdsm_jax.data.stream import Images
from tdsm_jax.evaluation import frechet, judge, neighbours, statistics
from tdsm_jax.evaluation import measure as measuring
from tdsm_jax.evaluation.features import Seen, extract
from tdsm_jax.extractors import open_extractor
from tdsm_jax.label_stages import image_changes
from tdsm_jax.networks.resnet import JUDGES, ResNet
from tdsm_jax.run import Run, optimisation
from tdsm_jax.training import classifier as classifiers
from tdsm_jax.training.classifier import Fitted, Labelled
from tdsm_jax.training.fit_step import FitSettings
from tdsm_jax.training.state import Optimisation, stream_key

MOST_COMPARED = 50_000  # real images without true classes that samples are compared with: as many as FID's of CIFAR-10


def fit_plain(run: Run, data: Labelled, name: str, classifier: str = "stages", kept: bool = True) -> Fitted:
    """Fits an evaluation classifier on clean-looking images and the labels that come with them.

    With `kept` it leaves checkpoints to go on from in the folder `name` of the run.
    """
    return classifiers.fit(
        data,
        stream_key(run.config.seed, "judge"),
        label=name,
        settings=plain_settings(run, classifier),
        S=np.eye(run.num_classes),
        mesh=run.mesh,
        seed=run.config.seed,
        directory=run.workdir / name if kept else None,
    )


def plain_settings(run: Run, classifier: str) -> FitSettings:
    """Returns how an evaluation classifier is fitted: stages, the small one, or one of `JUDGES`."""
    e = run.config.evaluation
    if classifier == "stages":
        return FitSettings(run.judge, optimisation(e), run.schedule(e.steps), process=None)
    c = e[classifier]
    adam = Optimisation(
        c.batch_size,
        c.learning_rate,
        ramp_images=0,
        ema_half_life=1,  # unread: there is no average
        ema_ramp=0.0,
        weight_decay=0.0,
        clip_norm=0.0,
        decay_images=c.decay_images,
        decay_factors=c.decay_factors,
    )
    return FitSettings(resnet(run, classifier), adam, run.schedule(c.steps), None, augment=image_changes(0.0, c.light))


def resnet(run: Run, classifier: str) -> ResNet:
    """Returns the judge of this name, one of `JUDGES`."""
    return JUDGES[classifier](run.num_classes, channels=run.config.evaluation[classifier].width)


def fit_judge(run: Run) -> None:
    """images of true classes -> judge/, references/judge.npz: the small judge, and its features of these images

    Where there are none it learns the labels as given: then it judges no labels, only its features are used.
    """
    fitted = fit_plain(run, Labelled(run.compared.images, run.compared.labels), "judge")
    classifiers.write_fitted(run.workdir / "judge" / "judge.npz", fitted)
    _, features = judge.look(run.judge, fitted.params, compared_with(run).images, run.mesh)
    files.write_arrays(reference_file(run, "judge"), {"features": features})


def fit_resnet_judge(run: Run, classifier: str) -> None:
    """images of true classes -> judge_<classifier>/: a judge, and its own accuracy on the real test images"""
    folder, data, test = f"judge_{classifier}", run.reference, run.test_set
    fitted = fit_plain(run, Labelled(data.images, data.labels), folder, classifier)
    classifiers.write_fitted(run.workdir / folder / "judge.npz", fitted)
    seen = judge.verdicts(resnet(run, classifier), fitted.params, test.images, run.mesh)
    # Both are of the real images that it is trained on and seen on.
    both = (
        accuracies(f"{name}_{classifier}", seen, test.labels, run.num_classes) for name in ("label_fidelity", "cas")
    )
    files.write_json(run.workdir / folder / "real.json", {key: value for one in both for key, value in one.items()})


def make_reference(run: Run, spec: str) -> None:
    """real images -> references/<name>.npz: their features, which every method is compared with"""
    name = extractor_name(spec)
    seen = extracted(run, spec, compared_with(run).images, f"references/{name}")
    files.write_arrays(reference_file(run, name), {"features": seen.features})


def compared_with(run: Run) -> Dataset:
    """Returns the images of `run.compared`; of training images in their place an even share, where there are many."""
    every = run.compared
    return subset(every, evenly(len(every.labels), MOST_COMPARED)) if run.reference is None else every


def reference_file(run: Run, name: str) -> paths.Path:
    return run.workdir / "references" / f"{name}.npz"


def reference_features(run: Run, name: str) -> np.ndarray:
    return files.read_arrays(reference_file(run, name))["features"]


def extracted(run: Run, spec: str, images: Images, name: str) -> Seen:
    """Returns what an extractor sees in uint8 images [N,H,W,C]; it goes on from <name>/parts."""
    return extract(open_extractor(spec, run.mesh), images, label=name, parts=run.workdir / name / "parts")


def look(run: Run, images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Returns the judge's verdicts [N] and features [N,D]."""
    params = classifiers.read_fitted(run.workdir / "judge" / "judge.npz").params
    return judge.look(run.judge, params, images, run.mesh)


def measure(run: Run, method: str) -> None:
    """samples + judge -> measures/<method>/: fidelity, CAS, distances to the clean training images"""
    files.write_json(measures_file(run, method), judged(run, run.samples(method), f"measures/{method}/cas"))


def judged(run: Run, made: Labelled, name: str, *, cas: bool = True, kept: bool = True) -> dict[str, Any]:
    """Returns what the small judge makes of images and their labels; `name` and `kept`: of `fit_plain`, for CAS."""
    seen, features = look(run, made.images)
    values = distances(run, features, made.labels)
    if run.reference is None:
        return values
    scores = accuracies("label_fidelity", seen, made.labels, run.num_classes)
    if cas:
        trained_on_made = fit_plain(run, made, name, kept=kept).params
        guessed, _ = judge.look(run.judge, trained_on_made, run.test_set.images, run.mesh)
        scores |= accuracies("cas", guessed, run.test_set.labels, run.num_classes)
    return {**scores, "confusion": statistics.confusion(made.labels, seen, run.num_classes), **values}


def measure_labels(run: Run, method: str, classifier: str) -> None:
    """samples + judge_<classifier>/ -> measures/<classifier>/<method>/: label fidelity and CAS of that network"""
    made, network, K = run.samples(method), resnet(run, classifier), run.num_classes
    given = classifiers.read_fitted(run.workdir / f"judge_{classifier}" / "judge.npz").params
    seen = judge.verdicts(network, given, made.images, run.mesh)
    trained_on_made = fit_plain(run, made, f"measures/{classifier}/{method}/cas", classifier).params
    guessed = judge.verdicts(network, trained_on_made, run.test_set.images, run.mesh)
    values = {
        **accuracies(f"label_fidelity_{classifier}", seen, made.labels, K),
        **accuracies(f"cas_{classifier}", guessed, run.test_set.labels, K),
    }
    files.write_json(measures_file(run, method, classifier), values)


def measure_features(run: Run, method: str, spec: str) -> None:
    """samples + references/<name>.npz -> measures/<name>/<method>/: distances; of method real, the test images'"""
    name, data = extractor_name(spec), run.test_set if method == "real" else run.samples(method)
    seen = extracted(run, spec, data.images, f"measures/{name}/{method}")
    known = run.reference is not None
    real = measuring.real_of(reference_features(run, name), run.reference.labels if known else None)
    fake = measuring.Observed(seen.features, seen.probabilities, data.labels if known else None)
    metrics = measuring.chosen_metrics((), real, seen.probabilities is not None, known)
    files.write_json(measures_file(run, method, name), measuring.measured(real, fake, metrics, measuring.watched))


def measures_file(run: Run, method: str, name: str = "") -> paths.Path:
    return run.workdir / "measures" / name / method / "metrics.json"


def accuracies(name: str, predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, Any]:
    """Returns an accuracy, its worst class and all classes, under `name`."""
    classes = statistics.per_class_accuracy(predicted, labels, num_classes)
    return {
        name: float(np.mean(predicted == labels)),
        f"{name}_worst_class": min(classes),
        f"{name}_per_class": classes,
    }


def distances(run: Run, features: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Returns the distances of the small judge's features to those of the images that samples are compared with.

    Where the classes of these are not known, those distances that need no classes.
    """
    nearest, real = run.config.evaluation.nearest, reference_features(run, "judge")
    if run.reference is None:
        density, coverage = neighbours.density_coverage(real, features, nearest)
        return {"fd": frechet.frechet_distance(real, features), "density": density, "coverage": coverage}
    return statistics.compare(real, run.reference.labels, features, labels, nearest)
