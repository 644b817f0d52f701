"""What the units of a run share: its data, networks and artifacts so far, each made or read on first use."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax import files, paths
from tdsm_jax.data.augment import LABEL_SIZE
from tdsm_jax.data.batches import batch_indices
from tdsm_jax.data.dataset import to_float
from tdsm_jax.data.stream import Images
from tdsm_jax.diffusion.mixture import floor_slots
from tdsm_jax.diffusion.process import EDM, PROCESSES, Process
from tdsm_jax.diffusion.residuals import Residual
from tdsm_jax.diffusion.unmixing import unmixing_terms
from tdsm_jax.diffusion.weightings import initial_uncertainty
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import grids
from tdsm_jax.labels import transition
from tdsm_jax.labels.correction import corrected, residual_matrix
from tdsm_jax.labels.weights import WeightTable, clean_prior, make_table
from tdsm_jax.networks.backbones import ScoreNetwork
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.networks.mnist_cnn import MnistCNN
from tdsm_jax.networks.resnet import BLOCKS, ResNet
from tdsm_jax.run_data import RunData
from tdsm_jax.sampler import Correction
from tdsm_jax.score_network import score_network
from tdsm_jax.training import classifier as classifiers
from tdsm_jax.training import loop, model_file, parallel, score
from tdsm_jax.training.classifier import Fitted, Labelled
from tdsm_jax.training.cross_fit import CrossFitted, Weigher, assign_folds, stack_folds
from tdsm_jax.training.fit_step import Network
from tdsm_jax.training.model_file import Model
from tdsm_jax.training.state import Optimisation, TrainState, initial_state, initial_variables, stream_key

# On CPU convolutions inside a loop are twice as slow; elsewhere a call's overhead is shared.
MOST_STEPS_A_CALL = 8
PROBE_BATCHES = 16  # batches whose weights choose the packed capacity


class ScoreStep(NamedTuple):
    """A data-parallel training step, and the state, batches and key it starts from."""

    step: parallel.DataParallel
    state: TrainState
    batches: loop.Batches
    key: jax.Array
    objective: score.Objective
    mesh: parallel.DataMesh
    batch_size: int

    def batch(self, number: int) -> dict[str, Any]:
        """Returns a batch on the devices, as the step takes it."""
        return parallel.feed(self.batches(number, self.mesh.rows(self.batch_size)), self.mesh)


class Run(RunData):
    """One run: a config and a workdir."""

    @functools.cached_property
    def process(self) -> Process:
        """The score network's process."""
        kind = self.config.process.kind
        if kind == "edm":
            return self.classifier_process
        # The constants of vp and ve are no config keys: a model that training starts from brings its own.
        given = self.config.init_from and isinstance(self.initial.process, PROCESSES[kind])
        return self.initial.process if given else PROCESSES[kind]()

    @property
    def classifier_process(self) -> EDM:
        """What classifiers see, whatever the score network's process is."""
        return EDM(**{field.name: self.config.process[field.name] for field in dataclasses.fields(EDM)})

    @functools.cached_property
    def initial(self) -> Model:
        """The model that score networks start from; only where config.init_from names one."""
        return model_file.read(self.config.init_from)

    @functools.cached_property
    def weaker_path(self) -> paths.Path:
        """What sampling.autoguidance names, where it names something: one model, though its training goes on."""
        return model_file.find(self.config.sampling.autoguidance, "config key sampling.autoguidance")

    @functools.cached_property
    def mesh(self) -> parallel.DataMesh:
        return parallel.data_mesh(backend=self.config.parallel.backend)

    @property
    def classifier(self) -> Network:
        c, K = self.config.classifier, self.num_classes
        if c.network in BLOCKS:
            return ResNet(K, BLOCKS[c.network], c.widths[0])
        return MnistCNN(K, c.widths) if c.network == "cnn" else Classifier(K, c.widths, c.hidden, c.dropout)

    @property
    def weigher(self) -> Weigher:
        return Weigher(self.classifier, self.classifier_process, self.config.stress.logit_noise)

    @functools.cached_property
    def fold(self) -> np.ndarray:
        return assign_folds(len(self.train_set.labels), self.config.classifier.folds, self.config.seed)

    def given_classifier(self) -> Fitted:
        """Returns the fitted classifier that the config names, S as it brings it."""
        path, network, K = self.config.classifier.init_from, self.classifier, self.num_classes
        fitted = classifiers.read_fitted(path)
        x = jnp.zeros((1, *self.train_set.images.shape[1:]))
        shapes = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(1))
        model_file.check_params(fitted.params, shapes, f"{path}, given the keys config.classifier,")
        if self.config.transition.estimator == "volmin" and fitted.S.shape != (K, K):
            raise UserError(f"{path} has no transition head of {K} classes; set transition.estimator=known")
        return fitted

    def classifier_files(self, fold: int) -> list[str]:
        """Names of the fitted classifiers of a fold, under the workdir."""
        members = self.config.classifier.members
        return [f"classifier/fold{fold}{f'_member{m}' if m else ''}.npz" for m in range(members)]

    @functools.cached_property
    def fitted(self) -> list[list[Fitted]]:
        """The members of every fold."""
        folds = range(self.config.classifier.folds)
        return [[classifiers.read_fitted(self.workdir / name) for name in self.classifier_files(f)] for f in folds]

    @functools.cached_property
    def cross_fitted(self) -> CrossFitted:
        return stack_folds(self.fitted)

    @functools.cached_property
    def table(self) -> WeightTable:
        arrays = files.read_arrays(self.workdir / "weight_table.npz")
        return make_table(arrays["S"], arrays["prior"])

    @functools.cached_property
    def image_posterior(self) -> np.ndarray:
        """p(y | x0, y_tilde) of the training images, float32 [N,K]."""
        return self.posterior_for("posterior")

    def posterior_for(self, method: str) -> np.ndarray:
        """Returns p(y | x0, y_tilde) of the training images, float32 [N,K], that a method draws labels from."""
        name = "refined_posterior.npz" if method == "refined" else "image_posterior.npz"
        return files.read_arrays(self.workdir / name)["w"]

    def labels_of(self, method: str) -> np.ndarray:
        """Returns the labels [N] that a method trains on."""
        if method == "clean":
            return self.train_set.labels
        if method.startswith("relabel"):
            return corrected(self.image_posterior, self.config.relabel, self.config.seed)
        return self.y_tilde

    def images_of(self, method: str) -> Images:
        """Returns the images [N,H,W,C] that a method trains on: the ceiling's are clean, as its labels are."""
        return self.train_set.images if method == "clean" else self.training_images

    def table_of(self, method: str) -> WeightTable:
        """Returns the weight table for the noise in the labels that a method trains on."""
        if not method.startswith("relabel"):
            return self.table
        y_hat = self.labels_of(method)
        S = residual_matrix(self.image_posterior, y_hat)
        transition.check_invertible(S, self.config.transition.condition_limit)
        return make_table(S, clean_prior(S, y_hat))

    @property
    def network(self) -> ScoreNetwork:
        augment_dim = LABEL_SIZE if self.config.score.augment else 0
        if self.config.init_from:
            augment_dim = self.initial.network.augment_dim
        return score_network(self.config, self.num_classes, augment_dim, self.process)

    def labelled_batch(
        self, index: np.ndarray, labels: np.ndarray | None = None, images: Images | None = None
    ) -> dict[str, np.ndarray]:
        """Returns x0, label and fold of some training images, both as given unless others are named."""
        label = (self.y_tilde if labels is None else labels)[index]
        x0 = to_float((self.training_images if images is None else images)[index])
        return {"x0": x0, "label": label, "fold": self.fold[index]}

    def initial_params(self) -> Any:
        if self.config.init_from:
            return self.initial.params
        x, zero = jnp.zeros((1, *self.train_set.images.shape[1:])), jnp.zeros(1)
        key = stream_key(self.config.seed, "network")
        return initial_variables(self.network, key, x, zero, zero.astype(jnp.int32))

    @property
    def correction(self) -> Correction:
        """What undoes the label noise of the model of method dsm while it is sampled."""
        c = self.config.correction
        terms = unmixing_terms(np.asarray(self.table.S), c.slots)
        return Correction(terms, self.weigher, self.cross_fitted, c.limit)

    def model(self, method: str) -> Model:
        """Returns the model that a method trained or samples: corrected that of dsm, init the one given."""
        path = self.workdir / "score" / ("dsm" if method == "corrected" else method) / "ema.npz"
        model = self.initial if method == "init" else model_file.read(path)
        return model._replace(network=model.network.clone(attention=self.config.compute.attention))

    def objective(self, method: str) -> score.Objective:
        """Returns what `method` trains: plans that differ, everything else the same."""
        m, config = self.config.mixture, self.config.score
        rule = {"tdsm": m.rule, "relabel_tdsm": m.rule, "s_weighted": "prior"}.get(method, "own")
        if method.startswith("tdsm_"):
            rule = method.removeprefix("tdsm_")
        S = np.asarray(self.table_of(method).S) if rule == "floor" else None
        return score.Objective(
            rule=rule,
            tau=m.tau,
            residual_slots=(0, False) if S is None else floor_slots(S, m.residual_slots),
            capacity=None,
            own_gradient=m.own_gradient,
            label_dropout=config.label_dropout,
            weights=m.weights,
            dropped_to_class_0=m.dropped_label == "class0" and rule != "own",
            draws_labels=method in ("posterior", "refined"),
            augment=config.augment,
            residual=Residual(config.residual, config.huber_delta, config.huber_form),
            weighting=config.weighting,
        )

    def per_device_step(self, objective: score.Objective) -> Callable:
        """Returns the training step of a device's share of a batch, see `score.make_step`."""
        parts = self.config.compute.parts
        optimise = optimisation(self.config.score)
        return score.make_step(self.network, self.process, objective, optimise, self.weigher, parts)

    def initial_state(self) -> TrainState:
        aside = initial_uncertainty() if self.config.score.weighting == "uncertainty" else None
        return initial_state(self.initial_params(), optimisation(self.config.score), aside)

    def given_of(self, method: str) -> score.Given | None:
        """Returns the table and classifiers that the training of `method` reads, None where it reads none."""
        own = self.objective(method).rule == "own"
        return None if own else score.Given(self.table_of(method), self.cross_fitted)

    def score_step(self, method: str) -> ScoreStep:
        """Returns the data-parallel training step of `method` and what it starts from.

        Networks, batches and noise are the same for every method: they differ by the objective alone.
        """
        config, seed = self.config.score, self.config.seed
        labels, images = self.labels_of(method), self.images_of(method)
        objective, given = self.objective(method), self.given_of(method)
        posterior = self.posterior_for(method) if objective.draws_labels else None

        def batches(step: int, position: np.ndarray) -> dict[str, np.ndarray]:
            index = batch_indices(seed, step, config.batch_size, len(labels))[position]
            batch = self.labelled_batch(index, labels, images) | {"position": position}
            return batch if posterior is None else batch | {"image_posterior": posterior[index]}

        if given and self.config.mixture.packed and objective.own_gradient and objective.rule != "sampled":
            whole = np.arange(config.batch_size)
            probes = (batches(step, whole) for step in range(PROBE_BATCHES))
            probe_key = stream_key(seed, "capacity")
            capacity = score.measure_capacity(self.weigher, self.process, objective, given, probes, probe_key)
            objective = dataclasses.replace(objective, capacity=capacity)
        step = self.per_device_step(objective)
        return ScoreStep(
            parallel.data_parallel(step, self.mesh, given, self.score_schedule.steps_a_call),
            parallel.replicate(self.initial_state(), self.mesh),
            batches,
            stream_key(seed, "score"),
            objective,
            self.mesh,
            config.batch_size,
        )

    def samples(self, method: str) -> Labelled:
        arrays = files.read_arrays(self.workdir / "samples" / f"{method}.npz")
        return Labelled(arrays["images"], arrays["labels"])

    def grid(self, images: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """Returns the first images of each class, uint8 [rows,columns,H,W,C]."""
        c = self.config.sampling
        return grids.class_rows(images, labels, min(num_classes, c.grid_rows), c.grid_columns)

    def write_grid(self, name: str, images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
        """Writes the first images of each class as a PNG under the workdir, one row a class."""
        with files.atomic_write(self.workdir / name) as file:
            file.write(grids.image_grid_png(self.grid(images, labels, num_classes), scale=4))

    @property
    def judge(self) -> Classifier:
        e = self.config.evaluation
        return Classifier(self.num_classes, e.widths, e.hidden, e.dropout)

    @property
    def score_schedule(self) -> loop.Schedule:
        """The schedule of score networks: on accelerators several steps a call, unless the config says how many."""
        chosen, whole = self.config.compute.steps_a_call, self.schedule(self.config.score.steps)
        if chosen:
            return dataclasses.replace(whole, steps_a_call=chosen)
        most = 1 if jax.default_backend() == "cpu" else MOST_STEPS_A_CALL
        common = math.gcd(whole.steps, whole.log_every, whole.save_every)
        return dataclasses.replace(whole, steps_a_call=max(n for n in range(1, most + 1) if common % n == 0))

    def schedule(self, steps: int, evaluate_every: int = 0) -> loop.Schedule:
        logs = self.config.logging
        return loop.Schedule(steps, logs.log_every, logs.save_every, evaluate_every)


def optimisation(section: Any) -> Optimisation:
    """Returns how the parameters of a config section move."""
    names = (field.name for field in dataclasses.fields(Optimisation))
    return Optimisation(**{name: section[name] for name in names if name in section})
