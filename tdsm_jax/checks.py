"""What can be known to fail before anything is built: the config against its data and the files it names."""

import jax
import numpy as np

from tdsm_jax import config as configuration
from tdsm_jax import paths
from tdsm_jax.data import stream, tfds_store
from tdsm_jax.diffusion.process import EDM, Process
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation.measure import NEAREST
from tdsm_jax.labels import corruption, transition
from tdsm_jax.networks.backbones import check_architecture
from tdsm_jax.networks.resnet import BLOCKS
from tdsm_jax.run import Run
from tdsm_jax.sampler import weaker_model
from tdsm_jax.score_network import check_start, is_dit
from tdsm_jax.training import model_file, parallel
from tdsm_jax.training.model_file import Model


def check(run: Run) -> None:
    """Raises `UserError` for what can be known to fail before anything is built."""
    if run.config.data.stream:
        check_streamed(run)
    if run.config.task == "robust_losses":
        check_robust_losses(run)
    else:
        check_generation(run)


def check_streamed(run: Run) -> None:
    """Raises `UserError` where images cannot be read one by one."""
    data = run.config.data
    prepared = tfds_store.default_name() if data.name in tfds_store.IMAGES and not data.path else ""
    for path in filter(None, (data.path, data.test_path, prepared)):
        if paths.is_remote(path):
            raise UserError(
                f"config key data.stream=True reads single images, for each of which {path} may send 16 MB: copy the "
                "data to this machine, or set data.stream=False"
            )
    stream.check_installed()


def check_robust_losses(run: Run) -> None:
    """Raises `UserError` where the benchmark of robust losses does not go with its data."""
    r, data = run.config.robust_losses, run.train_set
    parallel.check_divisible("robust_losses.batch_size", r.batch_size)
    if not data.clean:
        raise UserError(f"task=robust_losses corrupts true labels; those of {data.name} are as given, right or wrong")
    if "cnn" in r.networks and min(data.images.shape[1:3]) < 4:
        raise UserError("the network cnn halves the image twice: 4x4 pixels at least")
    if not 0 < round(r.validation_share * len(data.labels)) < len(data.labels):
        raise UserError(
            f"config key robust_losses.validation_share={r.validation_share} of {len(data.labels)} images leaves none "
            "to validate or none to train on"
        )
    for kind, rate in map(configuration.parse_noise, r.noises):
        if kind in corruption.CLASS_CONDITIONAL:
            corruption.transition_matrix(kind, run.num_classes, rate, run.config.label_noise.table)


def check_generation(run: Run) -> None:
    """Raises `UserError` where the main job does not go with its data or the files it names."""
    if is_dit(run.config):
        check_dit(run)
    if run.config.init_from:
        check_initial(run)
    if run.config.sampling.autoguidance:
        made = Model(run.network, None, run.process, run.train_set.image_shape)
        weaker_model(str(run.weaker_path), run.initial if run.config.methods == ("init",) else made)
    if run.config.classifier.init_from:
        run.given_classifier()
    run.generated  # noqa: B018  raises where the file is not one for these data
    for section in ("classifier", "score", "sampling", "evaluation"):
        parts = run.config.compute.parts if section == "score" else 1
        parallel.check_divisible(f"{section}.batch_size", run.config[section].batch_size, parts)
    run.score_schedule  # noqa: B018  a schedule that cannot be raises
    on_gpu = jax.default_backend() == "gpu" and run.config.network.dtype == "bfloat16"
    if run.config.compute.attention == "cudnn" and not on_gpu:
        raise UserError(
            "config key compute.attention=cudnn needs a GPU and network.dtype=bfloat16; auto fits everywhere"
        )
    height, width = run.train_set.images.shape[1:3]
    c = run.config.classifier
    for name, levels in (
        ("network.multipliers", 0 if is_dit(run.config) else len(run.config.network.multipliers) - 1),
        ("classifier.widths", 0 if c.network in BLOCKS else len(c.widths)),
        ("evaluation.widths", len(run.config.evaluation.widths)),
    ):
        if height % 2**levels or width % 2**levels:
            raise UserError(f"config key {name} halves {height}x{width} images {levels} times; use fewer entries")
    run.new_labels  # noqa: B018  labels that cannot be had raise
    smallest = int(np.bincount(run.compared.labels, minlength=run.num_classes).min())
    if run.config.evaluation.nearest >= smallest:
        raise UserError(
            f"config key evaluation.nearest={run.config.evaluation.nearest} must be below the {smallest} "
            f"{'training' if run.labels_are_clean else 'reference'} images of the smallest class"
        )
    check_evaluation(run, smallest)
    if min(np.bincount(run.test_set.labels, minlength=run.num_classes)) < 2:
        more = (
            "add to config key data.test_path" if run.config.data.test_path else "raise config key data.test_fraction"
        )
        raise UserError(f"the test set needs two images of each class; {more}")
    if run.known_S is not None:
        # An estimator could not mend what the labels do not hold: the matrix they are drawn from decides.
        transition.check_invertible(run.known_S, run.config.transition.condition_limit)
    counts = run.config.transition.estimator.startswith("counts")
    if counts and not run.labels_are_clean and run.train_set.pairs is None:
        raise UserError(
            f"config key transition.estimator={run.config.transition.estimator} counts true classes, which nobody "
            f"knows of {run.train_set.name}; choose another estimator, or file"
        )
    if run.config.transition.estimator == "file":
        transition.check_invertible(run.given_S, run.config.transition.condition_limit)


def check_evaluation(run: Run, smallest: int) -> None:
    """Raises `UserError` where judges lack true classes, or extractors the images that neighbours are sought among."""
    if configuration.resnet_judges(run.config) and run.reference is None:
        raise UserError(
            "config key evaluation.classifiers: judges learn true classes, which nobody knows here; "
            "give checked images as config key data.test_path (test images inside a .npz file or a prepared dataset "
            "are not taken for checked), or leave all but stages out"
        )
    if configuration.extractors(run.config):
        few = min(smallest, run.config.sampling.per_class, *np.bincount(run.test_set.labels))
        if few <= max(NEAREST):
            raise UserError(
                f"config key evaluation.features compares images with {max(NEAREST)} neighbours of their class, but "
                f"some class has {few} real, test or generated images (sampling.per_class); more are needed"
            )


def check_dit(run: Run) -> None:
    """Raises `UserError` where no diffusion transformer of this config takes the images."""
    try:
        check_architecture(run.network, run.train_set.image_shape)
    except UserError as error:
        raise UserError(f"config section dit: {error}") from None


def check_initial(run: Run) -> None:
    """Raises `UserError` where the model that training starts from is not one for this config and its data."""
    path, model = run.config.init_from, run.initial
    images, K = run.train_set.image_shape, run.num_classes
    if model.image_shape != images or model.network.num_classes != K:
        raise UserError(
            f"{path} makes images {model.image_shape} of {model.network.num_classes} classes; "
            f"{run.config.data.name} has {images} of {K}"
        )
    if preconditioning(model.process) != preconditioning(run.process):
        raise UserError(f"{path} was trained with {model.process}, the config says {run.process}: set config.process")
    if run.config.score.augment and not model.network.augment_dim:
        raise UserError(f"{path} takes no augmentation label: set --config.score.augment=0")
    shapes = model_file.variable_shapes(run.network, images)
    model_file.check_params(model.params, shapes, f"{path}, given the keys config.network,")
    check_start(run.network, model.network, path)


def preconditioning(process: Process) -> tuple:
    """Returns what a network trained under a process is bound to."""
    return type(process), process.sigma_data if isinstance(process, EDM) else process
