"""The data of a run: images, clean and noisy labels, and the matrix S, each made or read on first use."""

import functools
from typing import Any

import numpy as np

from tdsm_jax import config as configuration
from tdsm_jax import files, paths
from tdsm_jax.data import clothing1m, human_labels, label_files, noise_files, sources, stream, tfds_store
from tdsm_jax.data.dataset import Dataset, images_hash, stratified_split, subset
from tdsm_jax.data.edm_zip import fingerprint
from tdsm_jax.data.image_corruption import ImageNoise, corrupted
from tdsm_jax.data.stream import Images
from tdsm_jax.errors import UserError, printable
from tdsm_jax.labels import corruption
from tdsm_jax.training import classifier as classifiers
from tdsm_jax.training.classifier import Labelled

IMAGE_NOISE_FILE = "image_noise.json"


class RunData:
    """What a config and a workdir say of images and labels."""

    def __init__(self, config: Any, workdir: paths.Path):
        self.config, self.workdir = config, workdir

    @functools.cached_property
    def _splits(self) -> tuple[Dataset, Dataset]:
        return sources.load(sources.DataSpec(**self.config.data))

    @functools.cached_property
    def _kept(self) -> np.ndarray:
        """Indices of the training images that the class imbalance leaves."""
        whole, ratio = self._splits[0], self.config.label_noise.imbalance
        return corruption.imbalanced(whole.labels, ratio, whole.num_classes, self.config.seed)

    @functools.cached_property
    def data_inputs(self) -> dict[str, str]:
        """Hashes of the images and clean labels that the config names."""
        data = self.config.data
        if data.name in tfds_store.IMAGES:
            found = tfds_store.find_images(data.name, data.path, data.image_size)
            return {data.path or data.name: tfds_store.fingerprint(found)}
        if data.name == "clothing1m":
            return clothing1m.inputs(data.path)
        return {path: fingerprint(path) for path in (data.path, data.test_path, data.labels_path) if path}

    @functools.cached_property
    def label_inputs(self) -> dict[str, str]:
        """Hashes of the files that the config takes its label noise from."""
        noise = self.config.label_noise
        if noise.kind == "human" and human_labels.is_folder(noise.path):
            return {noise.path: tfds_store.fingerprint(human_labels.prepared_folder(noise.path, noise.column))}
        return {path: fingerprint(path) for path in (noise.path, noise.order_path) if path}

    @functools.cached_property
    def matrix_inputs(self) -> dict[str, str]:
        """The hash of the file that the config takes S from."""
        path = self.config.transition.path
        return {path: fingerprint(path)} if path else {}

    @functools.cached_property
    def train_set(self) -> Dataset:
        """The training images as the source has them, whatever the config makes of what is trained on."""
        return subset(self._splits[0], self._kept)

    @functools.cached_property
    def image_noise(self) -> tuple[Images, np.ndarray]:
        """The training images as the config corrupts them, and which it did, bool [N]."""
        noise, images = self.config.image_noise, self.train_set.images
        if noise.kind == "off":
            return images, np.zeros(len(images), bool)
        return corrupted(images, self._kept, ImageNoise(noise.kind, noise.rate, noise.severity, self.config.seed))

    @functools.cached_property
    def training_images(self) -> Images:
        """The training images as all methods but the ceiling see them, and their classifiers; the run's record holds.

        References, judges and the label file, whose hash is that of images as they came, read `train_set`.
        """
        images, path = self.image_noise[0], self.workdir / IMAGE_NOISE_FILE
        if self.config.image_noise.kind != "off" and paths.exists(path):
            recorded = files.read_json(path)
            same = all(recorded[key] == value for key, value in self._image_noise_values().items())
            if same and recorded["images_sha256"] != images_hash(images):
                raise UserError(
                    f"{path} records other corrupted images: other versions of NumPy, Pillow or scikit-learn make them "
                    "here; take those it was made with, or --overwrite"
                )
        return images

    def image_noise_record(self) -> dict[str, Any]:
        """Returns what image_noise.json says of the corrupted images; indices are places among all training images."""
        images, chosen = self.image_noise
        return self._image_noise_values() | {
            "realised_rate": float(chosen.mean()),
            "indices": self._kept[chosen].tolist(),
            "images_sha256": images_hash(images),
        }

    def _image_noise_values(self) -> dict[str, Any]:
        noise = self.config.image_noise
        return {"kind": noise.kind, "rate": noise.rate, "severity": noise.severity, "seed": self.config.seed}

    @functools.cached_property
    def _tested(self) -> tuple[Dataset | None, Dataset]:
        """What generated images are compared with, and what is held back to test on."""
        train, test = self.train_set, self._splits[1]
        if self.labels_are_clean:
            return train, test
        if train.reference is not None:
            return train.reference, test
        if not self.config.data.test_path:
            return None, test
        counts = np.bincount(test.labels, minlength=test.num_classes)
        if counts.min() < 2:
            few = printable(test.class_names[counts.argmin()])
            raise UserError(
                f"{self.config.data.test_path}: class {few} has {counts.min()} of the checked images, half of which "
                "are compared with and half tested on; two are needed at least"
            )
        return stratified_split(test, 0.5, self.config.data.split_seed)

    @property
    def labels_are_clean(self) -> bool:
        """Whether the labels of the training images are their true classes, to be made noisy; else as given."""
        return self.train_set.clean and self.config.label_noise.kind != label_files.GIVEN

    @property
    def reference(self) -> Dataset | None:
        """Images with their true classes: the training images, or others where those have labels as given, or none.

        The judge is fitted on them and generated images are compared with them, never with labels as given.
        """
        return self._tested[0]

    @property
    def compared(self) -> Dataset:
        """Real images that judges learn and samples are compared with: of true classes, else the training images."""
        return self.train_set if self.reference is None else self.reference

    @property
    def test_set(self) -> Dataset:
        """Held-out images; their labels are true classes unless there is no `reference`."""
        return self._tested[1]

    @property
    def num_classes(self) -> int:
        return self.train_set.num_classes

    @functools.cached_property
    def new_labels(self) -> label_files.LabelFile:
        """The label file that the config asks for: drawn, or read where config.label_noise.path names a file."""
        noise, K, seed, data = self.config.label_noise, self.num_classes, self.config.seed, self.train_set
        if not data.clean and noise.kind != label_files.GIVEN:
            raise UserError(
                f"the labels of {data.name} are as given, none of them known to be true: "
                "set config key label_noise.kind=given"
            )
        if noise.kind == label_files.GIVEN:
            return label_files.given(data)
        if noise.kind == "matrix":
            S = noise_files.read_matrix(noise.path, K)
            return label_files.make_from_matrix(data, S, seed, noise.exact)
        if noise.kind == "human":
            y_tilde = human_labels.read_human_labels(noise.path, data, noise.column, noise.order_path)
            return label_files.import_labels(data, y_tilde)
        if noise.kind == "file":
            return label_files.import_labels(data, self.read_labels())
        if noise.path:
            S = corruption.transition_matrix(noise.kind, K, noise.rate, noise.table)
            return label_files.import_labels(data, self.read_labels(), S)
        table = noise.table if noise.kind == "asym" else ""
        return label_files.draw(data, noise.kind, noise.rate, seed, table=table, exact=noise.exact)

    @property
    def known_S(self) -> np.ndarray | None:
        """The matrix that the noisy labels are drawn from, or the one that those of a file realise; None: not known."""
        return None if self.new_labels.kind == label_files.GIVEN else self.new_labels.S

    @functools.cached_property
    def given_S(self) -> np.ndarray | None:
        """The matrix that classifiers are fitted with, None where they learn it."""
        config = self.config.transition
        if config.estimator == "known":
            return self.known_S
        if config.estimator == "file":
            return noise_files.read_matrix(config.path, self.num_classes)
        return None if config.estimator == "volmin" else np.array(files.read_json(self.workdir / "estimate.json")["S"])

    @property
    def reads_noisy_posterior(self) -> bool:
        """Whether S is estimated from classifiers of the noisy labels."""
        return configuration.reads_noisy_posterior(self.config)

    def read_labels(self) -> np.ndarray:
        """Returns the noisy labels [N] that config.label_noise.path holds."""
        data, path, column = self.config.data, self.config.label_noise.path, self.config.label_noise.column
        if path != data.path and not label_files.is_dataset_json(path):
            return label_files.read_given_labels(path, self.train_set, column)
        y_tilde = sources.archive_labels(sources.DataSpec(**data), "" if path == data.path else path)
        if y_tilde.max() >= self.num_classes:
            raise UserError(f"{path} holds label {y_tilde.max()}, but {data.path} has {self.num_classes} classes")
        return y_tilde[self._kept]

    @functools.cached_property
    def label_file(self) -> label_files.LabelFile:
        return label_files.read(self.workdir / "labels.json")

    @functools.cached_property
    def y_tilde(self) -> np.ndarray:
        return label_files.attach(self.label_file, self.train_set)

    def given(self, chosen: np.ndarray) -> Labelled:
        """Returns the training images where `chosen` bool [N] is set, with the labels they were given."""
        return Labelled(stream.part_of(self.training_images, chosen), self.y_tilde[chosen])

    @functools.cached_property
    def generated(self) -> Labelled | None:
        """The samples that the config lets classifiers train on beside the training images, if any."""
        path, K = self.config.generated, self.num_classes
        return classifiers.read_samples(path, self.train_set.images.shape[1:], K) if path else None
