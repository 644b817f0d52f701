"""What the units of a run share: the data, the networks and the artifacts so far, each made or read on first use."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax import files
from tdsm_jax.data import label_files, sources
from tdsm_jax.data.batches import batch_indices
from tdsm_jax.data.sources import Dataset, to_float
from tdsm_jax.diffusion.mixture import floor_slots
from tdsm_jax.diffusion.process import EDM
from tdsm_jax.errors import UserError
from tdsm_jax.labels import corruption, transition
from tdsm_jax.labels.weights import WeightTable, make_table
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.networks.unet import UNet
from tdsm_jax.training import classifier as classifiers
from tdsm_jax.training import loop, parallel, score
from tdsm_jax.training.classifier import CrossFitted, Fitted, Labelled
from tdsm_jax.training.state import Optimisation, TrainState, initial_state, stream_key

PROBE_BATCHES = 16  # batches whose weights choose the packed capacity


class ScoreStep(NamedTuple):
    """A data-parallel training step, and the state, batches and key it starts from."""

    step: Callable[[TrainState, dict, jax.Array], tuple[TrainState, dict]]
    state: TrainState
    batches: Callable[[int], dict[str, np.ndarray]]
    key: jax.Array
    objective: score.Objective


class Run:
    """One run: a config and a workdir."""

    def __init__(self, config: Any, workdir: pathlib.Path):
        self.config, self.workdir = config, workdir
        self.process = EDM(**config.process)

    def check(self) -> None:
        """Raises `UserError` for what can be known to fail before anything is built."""
        for section in ("classifier", "score", "sampling", "evaluation"):
            parallel.check_divisible(f"{section}.batch_size", self.config[section].batch_size)
        height, width = self.train_set.images.shape[1:3]
        for name, levels in (
            ("network.multipliers", len(self.config.network.multipliers) - 1),
            ("classifier.widths", len(self.config.classifier.widths)),
            ("evaluation.widths", len(self.config.evaluation.widths)),
        ):
            if height % 2**levels or width % 2**levels:
                raise UserError(f"config key {name} halves {height}x{width} images {levels} times; use fewer entries")
        smallest = int(np.bincount(self.train_set.labels, minlength=self.num_classes).min())
        if self.config.evaluation.nearest >= smallest:
            raise UserError(
                f"config key evaluation.nearest={self.config.evaluation.nearest} must be below the {smallest} training "
                "images of the smallest class"
            )
        if min(np.bincount(self.test_set.labels, minlength=self.num_classes)) < 2:
            raise UserError("the test set needs two images of each class; raise config key data.test_fraction")
        # An estimator could not mend what the labels do not hold: the matrix they are drawn from decides.
        transition.check_invertible(self.known_S, self.config.transition.condition_limit)

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        return parallel.data_mesh()

    @functools.cached_property
    def _splits(self) -> tuple[Dataset, Dataset]:
        data = self.config.data
        return sources.load(data.name, test_fraction=data.test_fraction, split_seed=data.split_seed)

    @property
    def train_set(self) -> Dataset:
        return self._splits[0]

    @property
    def test_set(self) -> Dataset:
        return self._splits[1]

    @property
    def num_classes(self) -> int:
        return self.train_set.num_classes

    @functools.cached_property
    def known_S(self) -> np.ndarray:
        noise = self.config.label_noise
        return corruption.transition_matrix(noise.kind, self.num_classes, noise.rate, noise.table)

    @functools.cached_property
    def label_file(self) -> label_files.LabelFile:
        return label_files.read(self.workdir / "labels.json")

    @functools.cached_property
    def y_tilde(self) -> np.ndarray:
        return label_files.attach(self.label_file, self.train_set)

    @property
    def classifier(self) -> Classifier:
        c = self.config.classifier
        return Classifier(self.num_classes, c.widths, c.hidden, c.dropout)

    @functools.cached_property
    def fold(self) -> np.ndarray:
        return classifiers.assign_folds(len(self.train_set.labels), self.config.classifier.folds, self.config.seed)

    @functools.cached_property
    def fitted(self) -> list[Fitted]:
        folder = self.workdir / "classifier"
        return [classifiers.read_fitted(folder / f"fold{f}.npz") for f in range(self.config.classifier.folds)]

    @functools.cached_property
    def cross_fitted(self) -> CrossFitted:
        return classifiers.stack_folds(self.fitted)

    @functools.cached_property
    def table(self) -> WeightTable:
        arrays = files.read_arrays(self.workdir / "weight_table.npz")
        return make_table(arrays["S"], arrays["prior"])

    @property
    def network(self) -> UNet:
        n = self.config.network
        return UNet(
            self.num_classes,
            n.channels,
            n.multipliers,
            n.blocks,
            n.attention_resolutions,
            n.dropout,
            jnp.dtype(n.dtype),
        )

    def initial_params(self) -> Any:
        x = jnp.zeros((1, *self.train_set.images.shape[1:]))
        return self.network.init(stream_key(self.config.seed, "network"), x, jnp.zeros(1), jnp.zeros(1, jnp.int32))

    def objective(self, method: str) -> score.Objective:
        """Returns what `method` trains: plans that differ, everything else the same."""
        m = self.config.mixture
        rule = {"tdsm": m.rule, "s_weighted": "prior"}.get(method, "own")
        slots = floor_slots(np.asarray(self.table.S), m.residual_slots) if rule == "floor" else (0, False)
        return score.Objective(rule, m.tau, slots, None, m.own_gradient, self.config.score.label_dropout)

    def score_step(self, method: str) -> ScoreStep:
        """Returns the data-parallel training step of `method` and what it starts from.

        Networks, batches and noise are the same for every method: they differ by the objective alone.
        """
        config, seed = self.config.score, self.config.seed
        images = to_float(self.train_set.images)
        labels = self.train_set.labels if method == "clean" else self.y_tilde
        objective = self.objective(method)
        given = None if objective.rule == "own" else score.Given(self.table, self.cross_fitted)

        def batches(step: int) -> dict[str, np.ndarray]:
            index = batch_indices(seed, step, config.batch_size, len(images))
            position = np.arange(config.batch_size)
            return {
                "x0": images[index],
                "label": labels[index],
                "fold": self.fold[index],
                "position": position,
            }

        if given and self.config.mixture.packed and objective.own_gradient:
            probes, probe_key = map(batches, range(PROBE_BATCHES)), stream_key(seed, "capacity")
            capacity = score.measure_capacity(self.classifier, self.process, objective, given, probes, probe_key)
            objective = dataclasses.replace(objective, capacity=capacity)
        optimise = optimisation(config)
        step = score.make_step(self.network, self.process, objective, optimise, self.classifier)
        return ScoreStep(
            parallel.data_parallel(step, self.mesh, given),
            parallel.replicate(initial_state(self.initial_params(), optimise), self.mesh),
            batches,
            stream_key(seed, "score"),
            objective,
        )

    def samples(self, method: str) -> Labelled:
        arrays = files.read_arrays(self.workdir / "samples" / f"{method}.npz")
        return Labelled(arrays["images"], arrays["labels"])

    @property
    def judge(self) -> Classifier:
        e = self.config.evaluation
        return Classifier(self.num_classes, e.widths, e.hidden, e.dropout)

    def schedule(self, steps: int, evaluate_every: int = 0) -> loop.Schedule:
        logs = self.config.logging
        return loop.Schedule(steps, logs.log_every, logs.save_every, evaluate_every)


def optimisation(section: Any) -> Optimisation:
    """Returns how the parameters of a config section move."""
    return Optimisation(**{field.name: section[field.name] for field in dataclasses.fields(Optimisation)})
