"""What each unit of a run does, from noisy labels to the report: artifacts in, artifacts out."""

import dataclasses
import datetime
import functools
import os
import pathlib
import platform
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tdsm_jax import files, pipeline
from tdsm_jax import config as configuration
from tdsm_jax.data import label_files, sources
from tdsm_jax.data.batches import batch_indices
from tdsm_jax.data.sources import Dataset, to_float
from tdsm_jax.diffusion import sampling
from tdsm_jax.diffusion.mixture import floor_slots
from tdsm_jax.diffusion.process import EDM, make_denoiser
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import charts, judge, report, statistics
from tdsm_jax.labels import corruption, transition
from tdsm_jax.labels.weights import WeightTable, clean_prior, make_table, posterior
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.networks.unet import UNet
from tdsm_jax.training import classifier as classifiers
from tdsm_jax.training import loop, parallel, score
from tdsm_jax.training.classifier import CrossFitted, Fitted, FitSettings, Labelled
from tdsm_jax.training.logs import Progress, read_metrics
from tdsm_jax.training.state import Optimisation, flatten_params, initial_state, stream_key, unflatten_params

QUALITY_SIGMAS = np.geomspace(0.02, 5.0, 9)  # where the classifier's quality is measured
PROBE_BATCHES = 16  # batches whose weights choose the packed capacity


class Run:
    """One run: a config and a workdir. Its methods are the units; what they share is made on first use."""

    def __init__(self, config: Any, workdir: pathlib.Path):
        self.config, self.workdir = config, workdir
        self.process = EDM(**config.process)

    def units(self) -> list[pipeline.Unit]:
        """Returns the units of this config, in order."""
        Unit = pipeline.Unit
        fit = ("seed", "data", "label_noise", "process", "classifier", "transition")
        units = [
            Unit("labels", ("seed", "data", "label_noise"), (), ("labels.json",), self.make_labels),
            Unit("classifier", fit, ("labels",), ("classifier",), self.fit_classifier),
            Unit("transition", (), ("classifier",), ("weight_table.npz", "transition.json"), self.make_table),
        ]
        for method in self.config.methods:
            reads, needs = ("seed", "data", "network", "process", "score"), ("labels",)
            if method == "tdsm":
                reads, needs = (*reads, "mixture"), (*needs, "transition")
            elif method == "s_weighted":
                needs = (*needs, "transition")
            made = f"score/{method}"
            units.append(Unit(made, reads, needs, (made,), functools.partial(self.train_score, method)))
        for method in self.config.methods:
            made = (f"samples/{method}.npz", f"samples/{method}.png")
            run = functools.partial(self.sample, method)
            units.append(Unit(f"sample/{method}", ("sampling",), (f"score/{method}",), made, run))
        judging = ("seed", "data", "evaluation")
        units.append(Unit("judge", judging, (), ("judge",), self.fit_judge))
        for method in self.config.methods:
            needs = ("judge", f"sample/{method}")
            made = f"measures/{method}"
            units.append(Unit(f"measure/{method}", judging, needs, (made,), functools.partial(self.measure, method)))
        needs = ("transition", *(f"measure/{method}" for method in self.config.methods))
        units.append(Unit("report", (), needs, ("metrics.json", "report.html"), self.write_report))
        return units

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
        if self.config.transition.estimator == "known":
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

    # -- labels ---------------------------------------------------------------------------------------------

    def make_labels(self) -> None:
        """clean labels -> labels.json"""
        noise = self.config.label_noise
        made = label_files.make(self.train_set, noise.kind, noise.rate, self.config.seed, self.known_S)
        label_files.write(self.workdir / "labels.json", made)

    @functools.cached_property
    def label_file(self) -> label_files.LabelFile:
        return label_files.read(self.workdir / "labels.json")

    @functools.cached_property
    def y_tilde(self) -> np.ndarray:
        return label_files.attach(self.label_file, self.train_set)

    # -- classifier and transition matrix -------------------------------------------------------------------

    @property
    def classifier(self) -> Classifier:
        c = self.config.classifier
        return Classifier(self.num_classes, c.widths, c.hidden, c.dropout)

    @functools.cached_property
    def fold(self) -> np.ndarray:
        return classifiers.assign_folds(len(self.y_tilde), self.config.classifier.folds, self.config.seed)

    def fit_classifier(self) -> None:
        """images + y_tilde -> classifier/: one classifier a fold, fitted on the other folds' noisy labels"""
        c, t = self.config.classifier, self.config.transition
        settings = FitSettings(
            network=self.classifier,
            optimisation=optimisation(c),
            schedule=self.schedule(c.steps, evaluate_every=c.evaluate_every),
            process=self.process,
            volume_weight=t.volume_weight,
            transition_rate=t.rate,
        )
        fitted = []
        for f in range(c.folds):
            inside, name = self.fold != f, f"fold{f}"
            fitted.append(
                classifiers.fit(
                    Labelled(self.train_set.images[inside], self.y_tilde[inside]),
                    stream_key(self.config.seed, f"classifier/{name}"),
                    label=f"classifier/{name}",
                    settings=settings,
                    S=self.known_S if t.estimator == "known" else None,
                    mesh=self.mesh,
                    seed=self.config.seed,
                    held_out=Labelled(self.train_set.images[~inside], self.y_tilde[~inside]),
                    directory=self.workdir / "classifier" / name,
                )
            )
            classifiers.write_fitted(self.workdir / "classifier" / f"{name}.npz", fitted[-1])

    @functools.cached_property
    def fitted(self) -> list[Fitted]:
        folder = self.workdir / "classifier"
        return [classifiers.read_fitted(folder / f"fold{f}.npz") for f in range(self.config.classifier.folds)]

    @functools.cached_property
    def cross_fitted(self) -> CrossFitted:
        return classifiers.stack_folds(self.fitted)

    def make_table(self) -> None:
        """classifiers + y_tilde -> weight_table.npz, transition.json (S, its errors, the classifiers' quality)"""
        S = np.mean([fitted.S for fitted in self.fitted], axis=0)
        transition.check_invertible(S, self.config.transition.condition_limit)
        prior = clean_prior(S, self.y_tilde)
        quality = self.classifier_quality(make_table(S, prior))
        files.write_json(
            self.workdir / "transition.json",
            {
                "estimator": self.config.transition.estimator,
                "S": S.tolist(),
                "condition_number": transition.condition_number(S),
                "relative_l1": transition.relative_l1(S, self.known_S),
                "classifier": quality,
                "temperature": [fitted.temperature for fitted in self.fitted],
                "held_out_nll": [fitted.held_out_nll for fitted in self.fitted],
            },
        )
        files.write_arrays(self.workdir / "weight_table.npz", {"S": S, "prior": prior})

    @functools.cached_property
    def table(self) -> WeightTable:
        arrays = files.read_arrays(self.workdir / "weight_table.npz")
        return make_table(arrays["S"], arrays["prior"])

    def classifier_quality(self, table: WeightTable) -> dict[str, Any]:
        """Returns the out-of-fold quality at each of `QUALITY_SIGMAS`; clean labels are read to report, not to train."""
        y, y_tilde = self.train_set.labels, self.y_tilde
        x0, fold = jnp.asarray(to_float(self.train_set.images)), jnp.asarray(self.fold)
        key = stream_key(self.config.seed, "classifier_quality")

        @jax.jit
        def measure(sigma: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            x_t = x0 + sigma * jax.random.normal(key, x0.shape)
            logits = classifiers.cross_fitted_logits(
                self.classifier, self.process, self.cross_fitted, x_t, jnp.full(len(x0), sigma), fold
            )
            own = posterior(table, logits, y_tilde)[jnp.arange(len(x0)), y_tilde]
            return logits.argmax(axis=1), own, classifiers.forward_corrected(logits, y_tilde, table.log_S)

        rows = [measure(sigma, jax.random.fold_in(key, i)) for i, sigma in enumerate(QUALITY_SIGMAS)]
        return {
            "sigma": QUALITY_SIGMAS.tolist(),
            "accuracy": [float(np.mean(seen == y)) for seen, _, _ in rows],
            "noisy_accuracy": [float(np.mean(seen == y_tilde)) for seen, _, _ in rows],
            "own_weight": [float(own.mean()) for _, own, _ in rows],
            "noisy_nll": [float(nll.mean()) for _, _, nll in rows],
            "expected_own_weight": 1 - self.label_file.realised_rate,
        }

    # -- score networks and samples -------------------------------------------------------------------------

    @property
    def network(self) -> UNet:
        n = self.config.network
        return UNet(
            self.num_classes, n.channels, n.multipliers, n.blocks, n.attention_resolutions, n.dropout, jnp.dtype(n.dtype)
        )

    def initial_params(self) -> Any:
        x = jnp.zeros((1, *self.train_set.images.shape[1:]))
        return self.network.init(stream_key(self.config.seed, "network"), x, jnp.zeros(1), jnp.zeros(1, jnp.int32))

    def train_score(self, method: str) -> None:
        """images + labels (+ classifier + table) -> score/<method>/: checkpoints, metrics.jsonl, ema.npz"""
        config, seed = self.config.score, self.config.seed
        images = to_float(self.train_set.images)
        labels = self.train_set.labels if method == "clean" else self.y_tilde
        given = None
        if method in ("tdsm", "s_weighted"):
            given = score.Given(self.table, self.cross_fitted)

        def batches(step: int) -> dict[str, np.ndarray]:
            index = batch_indices(seed, step, config.batch_size, len(images))
            position = np.arange(config.batch_size)
            return {"x0": images[index], "label": labels[index], "fold": self.fold[index], "position": position}

        objective = self.objective(method)
        if given and self.config.mixture.packed and objective.own_gradient:
            probes = map(batches, range(PROBE_BATCHES))
            probe_key = stream_key(seed, "capacity")
            capacity = score.measure_capacity(self.classifier, self.process, objective, given, probes, probe_key)
            objective = dataclasses.replace(objective, capacity=capacity)
        optimise = optimisation(config)
        step = score.make_step(self.network, self.process, objective, optimise, self.classifier)
        # Networks, batches and noise are the same for every method: they differ by the objective alone.
        state = loop.run(
            f"score/{method}",
            parallel.data_parallel(step, self.mesh, given),
            initial_state(self.initial_params(), optimise),
            batches,
            stream_key(seed, "score"),
            schedule=self.schedule(config.steps),
            mesh=self.mesh,
            directory=self.workdir / "score" / method,
        )
        files.write_arrays(self.workdir / "score" / method / "ema.npz", flatten_params(state.ema_params))

    def objective(self, method: str) -> score.Objective:
        """Returns what `method` trains: plans that differ, everything else the same."""
        m = self.config.mixture
        rule = {"tdsm": m.rule, "s_weighted": "prior"}.get(method, "own")
        slots = floor_slots(np.asarray(self.table.S), m.residual_slots) if rule == "floor" else (0, False)
        return score.Objective(rule, m.tau, slots, None, m.own_gradient, self.config.score.label_dropout)

    def sample(self, method: str) -> None:
        """EMA parameters -> samples/<method>.npz (images, labels) and .png (rows = classes)"""
        config, K = self.config.sampling, self.num_classes
        params = unflatten_params(files.read_arrays(self.workdir / "score" / method / "ema.npz"))
        sigmas = sampling.edm_sigmas(config.steps, self.process.sigma_min, self.process.sigma_max, config.rho)
        denoise = jax.jit(
            lambda params, x, sigma, label: make_denoiser(self.process, functools.partial(self.network.apply, params))(
                x, sigma, label
            )
        )
        params = parallel.replicate(params, self.mesh)
        key, shape = stream_key(self.config.seed, "sample"), self.train_set.images.shape[1:]
        latents_of = jax.jit(jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape)))
        labels = np.arange(config.per_class * K, dtype=np.int32) % K  # sample i depends on i alone
        images = []
        with Progress(f"sample/{method}", -(-len(labels) // config.batch_size), config.batch_size) as progress:
            for start in range(0, len(labels), config.batch_size):
                index = np.arange(start, start + config.batch_size) % len(labels)  # the last batch is filled up
                batch = parallel.split({"index": index, "label": labels[index]}, self.mesh)
                bound = functools.partial(lambda label, x, sigma: denoise(params, x, sigma, label), batch["label"])
                made = sampling.heun(bound, latents_of(batch["index"]), sigmas)
                images.append(sources.to_uint8(np.asarray(made)))
                progress.update()
        images = np.concatenate(images)[: len(labels)]
        files.write_arrays(self.workdir / "samples" / f"{method}.npz", {"images": images, "labels": labels})
        with files.atomic_write(self.workdir / "samples" / f"{method}.png") as file:
            file.write(charts.image_grid_png(self.grid(images, labels), scale=4))

    def grid(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Returns the first images of each class, uint8 [K,columns,H,W,C]."""
        rows = [images[labels == y][: self.config.sampling.grid_columns] for y in range(self.num_classes)]
        columns = min(len(row) for row in rows)
        return np.stack([row[:columns] for row in rows])

    def samples(self, method: str) -> Labelled:
        arrays = files.read_arrays(self.workdir / "samples" / f"{method}.npz")
        return Labelled(arrays["images"], arrays["labels"])

    # -- evaluation -----------------------------------------------------------------------------------------

    @property
    def judge(self) -> Classifier:
        e = self.config.evaluation
        return Classifier(self.num_classes, e.widths, e.hidden, e.dropout)

    def fit_plain(self, data: Labelled, name: str) -> Fitted:
        """Fits the evaluation classifier on clean-looking images and the labels that come with them."""
        return classifiers.fit(
            data,
            stream_key(self.config.seed, "judge"),
            label=name,
            settings=FitSettings(
                network=self.judge,
                optimisation=optimisation(self.config.evaluation),
                schedule=self.schedule(self.config.evaluation.steps),
                process=None,
            ),
            S=np.eye(self.num_classes),
            mesh=self.mesh,
            seed=self.config.seed,
            directory=self.workdir / name,
        )

    def fit_judge(self) -> None:
        """clean training images -> judge/: the classifier that measures label fidelity, and its features"""
        fitted = self.fit_plain(Labelled(self.train_set.images, self.train_set.labels), "judge")
        classifiers.write_fitted(self.workdir / "judge" / "judge.npz", fitted)

    def look(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the judge's verdicts [N] and features [N,D]."""
        params = classifiers.read_fitted(self.workdir / "judge" / "judge.npz").params
        return judge.look(self.judge, params, images)

    def measure(self, method: str) -> None:
        """samples + judge -> measures/<method>/: fidelity, CAS, distances to the clean training images"""
        made, test, K = self.samples(method), self.test_set, self.num_classes
        seen, features = self.look(made.images)
        fidelity = statistics.per_class_accuracy(seen, made.labels, K)
        trained_on_made = self.fit_plain(made, f"measures/{method}/cas").params
        guessed, _ = judge.look(self.judge, trained_on_made, test.images)
        accuracy = statistics.per_class_accuracy(guessed, test.labels, K)
        values = {
            "label_fidelity": float(np.mean(seen == made.labels)),
            "label_fidelity_worst_class": min(fidelity),
            "label_fidelity_per_class": fidelity,
            "cas": float(np.mean(guessed == test.labels)),
            "cas_worst_class": min(accuracy),
            "cas_per_class": accuracy,
            "confusion": statistics.confusion(made.labels, seen, K),
            **self.distances(features, made.labels),
        }
        files.write_json(self.workdir / "measures" / method / "metrics.json", values)

    def distances(self, features: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """Returns the distances of a set of features to those of the clean training images."""
        train = self.train_set
        _, real = self.look(train.images)
        return statistics.compare(real, train.labels, features, labels, self.config.evaluation.nearest)

    def real_measures(self) -> dict[str, Any]:
        """Returns the same metrics for the real test images: what a perfect generator would score."""
        seen, features = self.look(self.test_set.images)
        accuracy = statistics.per_class_accuracy(seen, self.test_set.labels, self.num_classes)
        right = float(np.mean(seen == self.test_set.labels))
        shared = {"label_fidelity": right, "label_fidelity_worst_class": min(accuracy)}
        return (
            shared
            | {"label_fidelity_per_class": accuracy, "cas": right, "cas_worst_class": min(accuracy)}
            | self.distances(features, self.test_set.labels)
        )

    # -- report ---------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, Any]:
        """Returns the content of metrics.json."""
        methods = {m: files.read_json(self.workdir / "measures" / m / "metrics.json") for m in self.config.methods}
        if "dsm" in methods and "clean" in methods:
            for method in methods.keys() - {"dsm", "clean"}:
                methods[method]["recovery"] = {
                    name: statistics.recovery(methods["dsm"][name], value, methods["clean"][name])
                    for name, value in methods[method].items()
                    if isinstance(value, float)
                }
        manifests = {unit.name: pipeline.read_manifest(self.workdir, unit.name) for unit in self.units()}
        table = files.read_json(self.workdir / "transition.json")
        return {
            "methods": methods,
            "recovery": methods.get("tdsm", {}).get("recovery", {}),
            "real": self.real_measures(),
            "transition": {k: table[k] for k in ("estimator", "relative_l1", "condition_number")},
            "classifier": table["classifier"],
            "seconds": {name: m["seconds"] for name, m in manifests.items() if m and m["finished"]},
            "label_file_hash": label_files.label_file_hash(self.label_file),
            "config_hash": files.digest(configuration.resolved(self.config)),
            "versions": pipeline.versions(),
            "backend": jax.default_backend(),
        }

    def write_report(self) -> None:
        """everything above -> metrics.json, report.html"""
        metrics = self.metrics()
        table = files.read_json(self.workdir / "transition.json")
        images = {"real": self.grid(self.train_set.images, self.train_set.labels)}
        images |= {m: self.grid(*self.samples(m)) for m in self.config.methods}
        folds = [f"classifier/fold{f}" for f in range(self.config.classifier.folds)]
        runs = [*folds, *(f"score/{m}" for m in self.config.methods)]
        files.write_json(self.workdir / "metrics.json", metrics)
        noise = self.label_file
        report.write_report(
            self.workdir / "report.html",
            report.Report(
                title=f"{self.train_set.name}: {noise.kind} label noise {noise.rate:.0%}, seed {self.config.seed}",
                config=configuration.resolved(self.config),
                environment=environment(),
                metrics=metrics,
                images=images,
                transitions={"true": noise.S, "realised": noise.realised_matrix, "estimated": np.array(table["S"])},
                curves={run: read_metrics(self.workdir / run) for run in runs},
                classifier=table["classifier"],
                class_names=self.train_set.class_names,
            ),
        )

    def schedule(self, steps: int, evaluate_every: int = 0) -> loop.Schedule:
        logs = self.config.logging
        return loop.Schedule(steps, logs.log_every, logs.save_every, evaluate_every)


def optimisation(section: Any) -> Optimisation:
    """Returns how the parameters of a config section move."""
    return Optimisation(**{field.name: section[field.name] for field in dataclasses.fields(Optimisation)})


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
