"""What the TPU compiler says of training and sampling on whole pods, without a TPU.

  python -m tdsm_jax.benchmark tpu
  python -m tdsm_jax.benchmark tpu --topologies=v5e:2x4,v5e:16x16 --images_per_chip=64 --json=tpu.json
  python -m tdsm_jax.benchmark tpu --config=configs/cifar100.py --classes=100 --rules=dsm,floor,sampled --no-sampling

Compiles the training step of each rule, and one denoiser call of the sampler, as a run of --config would, for the
devices of each topology (v4, v5e, v5p or v6e and its chips along each axis). Nothing is fitted and no data is read:
labels have symmetric noise of the config's rate, images and classifiers are shapes. Needs the extra [tpu], no TPU;
a full-size program takes minutes to compile.

All figures are the compiler's and those derived from published peaks; nothing here ran. FLOPs and bytes are of one
chip. XLA counts the costlier branch of a condition, here the rare one in which every classifier sees every example;
the main figures hold the branch that runs instead, "counted" ones are XLA's own. Bytes count what each fused
operation reads and writes, also where that stays on the chip: an upper bound.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from ml_collections import FrozenConfigDict

from tdsm_jax import config as configuration
from tdsm_jax import files, pipeline
from tdsm_jax.benchmark.step import with_classes
from tdsm_jax.benchmark.tpu_figures import (
    CHIPS,
    Cost,
    Topology,
    branch_that_runs,
    count_collectives,
    memory_of,
    read_topologies,
    roofline,
    table,
    with_ratios,
)
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.labels.weights import WeightTable, make_table
from tdsm_jax.networks.attention import IMPLEMENTATIONS
from tdsm_jax.run import Run
from tdsm_jax.sampler import sampling_call
from tdsm_jax.training import parallel
from tdsm_jax.training.calibration import SIGMAS
from tdsm_jax.training.cross_fit import CrossFitted, cross_fitted_logits, group_size
from tdsm_jax.training.parallel import DataMesh
from tdsm_jax.training.state import stream_key
from tdsm_jax.validation import validate

RULES = ("dsm", "floor", "sampled")  # their programs depend on no weights, as the packing of the others does
SAMPLING = "sampling"
TOPOLOGIES = "v5e:2x4,v6e:2x4"
# Without these the library looks for the machine it is on; which accelerator they name does not matter.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # only a process that computes on TPUs needs them for itself
}


def main(arguments: argparse.Namespace) -> None:
    """Compiles every program for every topology; prints the table and writes the records as they come."""
    topologies = read_topologies(arguments.topologies)
    programs = read_programs(arguments.rules, arguments.sampling)
    configs = [config_of(arguments, K) for K in read_classes(arguments.classes)]
    use_compiler()
    records: list[dict[str, Any]] = []
    for topology in topologies:
        mesh = mesh_of(topology)
        for config in configs:
            run = UnfittedRun(config, mesh, arguments.images_per_chip)
            for record in measured(run, topology, programs):
                records = with_ratios([*records, record | {"config": arguments.config}])
                said = record.get("failure", f"compiled in {record['compile_seconds']:.0f} s")
                print(f"{topology.name} K={run.num_classes} {record['program']}: {said}", file=sys.stderr, flush=True)
                if arguments.json:
                    files.write_json(arguments.json, records)
    print("compiler figures, not runs;", ", ".join(f"{name} {version}" for name, version in versions().items()))
    print(network_line(records[0]), end="\n\n")
    print(table(records))


def read_programs(rules: str, sampling: bool) -> tuple[str, ...]:
    """Turns "dsm,floor" into the names of programs, the sampler's last if asked for."""
    named = tuple(rules.split(","))
    for rule in named:
        if rule not in RULES:
            raise UserError(f"--rules: {rule!r} cannot be compiled without data{did_you_mean(rule, RULES)}")
    return (*named, SAMPLING) if sampling else named


def read_classes(text: str) -> list[int]:
    """Turns "10,100" into numbers of classes."""
    counts = text.split(",")
    if not all(K.isdigit() and int(K) >= 2 for K in counts):
        raise UserError(f"--classes={text} must be numbers of at least 2, joined by commas")
    return list(map(int, counts))


def config_of(arguments: argparse.Namespace, K: int) -> FrozenConfigDict:
    """Returns the config as it is compiled: made-up images of K classes, the network as the command line says."""
    config = configuration.load(arguments.config)
    config.methods = ("dsm", "tdsm_floor")
    config.transition.estimator = "known"
    config.network.dtype = arguments.dtype
    if arguments.channels:
        config.network.channels = arguments.channels
    config.compute.update(attention=arguments.attention, remat=arguments.remat, steps_a_call=1)
    config = with_classes(config, K, arguments.image_size, arguments.image_channels)
    if arguments.images_per_chip < 1:
        raise UserError(f"--images_per_chip={arguments.images_per_chip} must be at least 1")
    validate(config)
    return FrozenConfigDict(config)


def use_compiler() -> None:
    """Makes the TPU compiler available and JAX compute on the CPU, or raises `UserError`."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("no TPU compiler here (libtpu); install it with the extra: pip install -e '.[tpu]'")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")


def mesh_of(topology: Topology) -> DataMesh:
    """Returns the mesh of a topology's chips, each of them one device."""
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **topology.options)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topologies={topology.name}: {' '.join(str(error).split())}") from None
    if len({tuple(device.coords) for device in found.devices}) != len(found.devices):
        raise UserError(f"--topologies={topology.name}: this libtpu makes several devices of a chip; use another one")
    return parallel.data_mesh(found.devices)


class UnfittedRun(Run):
    """A run over the devices of `mesh` that has made-up images, and classifiers that are shapes alone."""

    def __init__(self, config: FrozenConfigDict, mesh: DataMesh, images_per_chip: int):
        super().__init__(config, pathlib.Path())
        self.mesh, self.images_per_chip = mesh, images_per_chip

    @property
    def batch_size(self) -> int:
        return self.images_per_chip * self.mesh.size

    @functools.cached_property
    def table(self) -> WeightTable:
        return make_table(self.known_S, np.full(self.num_classes, 1 / self.num_classes))

    @functools.cached_property
    def cross_fitted(self) -> CrossFitted:
        c, x = self.config.classifier, jnp.zeros((1, *self.train_set.images.shape[1:]))
        one = jax.eval_shape(self.classifier.init, jax.random.key(0), x, jnp.zeros(1))
        stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((c.folds, c.members, *leaf.shape), leaf.dtype), one)
        return CrossFitted(stacked, jax.ShapeDtypeStruct((c.folds, *SIGMAS.shape), jnp.float32))

    def batch(self) -> dict[str, Any]:
        """Returns one training batch of shapes."""
        one = self.labelled_batch(np.arange(1), self.train_set.labels) | {"position": np.arange(1)}
        return placed(jax.tree.map(jnp.asarray, one), self.mesh, self.batch_size)


def placed(tree: Any, mesh: DataMesh, rows: int | None = None) -> Any:
    """Returns the shapes of a tree on the mesh: copies everywhere, or `rows` rows split over the devices."""
    sharding = mesh.sharding(PartitionSpec() if rows is None else parallel.batch_spec(1))

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        whole = leaf.shape if rows is None else (rows, *leaf.shape[1:])
        return jax.ShapeDtypeStruct(whole, leaf.dtype, sharding=sharding)

    return jax.tree.map(shape, tree)


def measured(run: UnfittedRun, topology: Topology, programs: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields the record of each program; one that the compiler refuses for want of memory says so."""
    chip, n = CHIPS[topology.chip], run.config.network
    parameters = jax.tree.leaves(jax.eval_shape(run.initial_params))
    about = {"topology": topology.name, "chips": run.mesh.size, "classes": run.num_classes}
    about |= {"images_per_chip": run.images_per_chip, "batch_size": run.batch_size, "dtype": n.dtype}
    about |= {"channels": n.channels, "parameters": sum(leaf.size for leaf in parameters)}
    about |= {"attention": run.config.compute.attention, "remat": run.config.compute.remat}
    about |= {"kind": "compiler figures, not runs", "published_peaks": chip._asdict(), "versions": versions()}
    for program in programs:
        lower = sampling_program(run) if program == SAMPLING else training_program(run, program)
        yield about | {"program": program} | figures(run, program, lower, topology)


def figures(run: UnfittedRun, program: str, lower: Callable, topology: Topology) -> dict[str, Any]:
    """Compiles a program and returns what the compiler says of it, or why it does not."""
    chip, start = CHIPS[topology.chip], time.perf_counter()
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = " ".join(str(error).split())
        return {"failure": "does not fit", "said": said[:300], "compile_seconds": time.perf_counter() - start}
    seconds = time.perf_counter() - start
    counted = cost_of(compiled)
    found: dict[str, Any] = {"compile_seconds": seconds, "memory": memory_of(compiled.memory_analysis(), chip)}
    found["collectives"] = count_collectives(compiled.as_text())
    cost = counted
    if program not in ("dsm", SAMPLING):
        folds, B = run.config.classifier.folds, run.images_per_chip
        one = classifier_cost(run)
        found |= {"folds": folds, "classifier_flops": one.flops, "classifier_bytes": one.bytes}
        cost = branch_that_runs(counted, one, folds, group_size(B, folds) / B if folds > 1 else 1.0)
    found |= {"flops": cost.flops, "bytes": cost.bytes}
    found |= {"counted_flops": counted.flops, "counted_bytes": counted.bytes}
    return found | roofline(cost, chip)


def training_program(run: UnfittedRun, rule: str) -> Callable[[], jax.stages.Lowered]:
    """Returns what lowers the training step of a rule, data-parallel over the mesh, to the compiler's input.

    A run measures how full the frozen slots of TDSM are and packs them. Symmetric noise leaves one, the null label,
    whose weight is never zero: there is nothing to pack.
    """
    method = rule if rule == "dsm" else f"tdsm_{rule}"
    step = parallel.compiled(run.per_device_step(run.objective(method)), run.mesh)
    replicated = jax.eval_shape(lambda: (run.initial_state(), stream_key(0, "score")))
    state, key = placed(replicated, run.mesh)
    given = placed(run.given_of(method), run.mesh)
    return lambda: step.lower(state, run.batch(), key, given)


def sampling_program(run: UnfittedRun) -> Callable[[], jax.stages.Lowered]:
    """Returns what lowers one denoiser call of the sampler, its rows split over the mesh."""
    denoise = sampling_call(run.network, run.process)
    params = placed(jax.eval_shape(run.initial_params), run.mesh)
    batch = run.batch()
    sigma = placed(jnp.zeros(run.batch_size), run.mesh)  # the sampler fills it in, on no particular device
    return lambda: denoise.lower(params, batch["x0"], sigma, batch["label"])


def classifier_cost(run: UnfittedRun) -> Cost:
    """Returns what one fold's classifiers cost on a chip's whole share of the batch."""

    def logits(batch: dict, classifiers: CrossFitted) -> jax.Array:
        sigma = batch["x0"][:, 0, 0, 0]
        return cross_fitted_logits(run.weigher, classifiers, batch["x0"], sigma, batch["fold"])

    one_fold = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), run.cross_fitted)
    everywhere, split = PartitionSpec(), parallel.batch_spec(1)
    specs = {"in_specs": (split, everywhere), "out_specs": split}
    mapped = jax.shard_map(logits, mesh=run.mesh.devices, check_vma=False, **specs)
    return cost_of(jax.jit(mapped).lower(run.batch(), placed(one_fold, run.mesh)).compile())


def cost_of(compiled: jax.stages.Compiled) -> Cost:
    found = compiled.cost_analysis()
    return Cost(found["flops"], found["bytes accessed"])


def versions() -> dict[str, str]:
    return pipeline.versions() | {"libtpu": importlib.metadata.version("libtpu")}


def network_line(record: dict[str, Any]) -> str:
    """Returns what all rows share, in words."""
    return (
        f"{record['parameters'] / 1e6:.1f} M parameters, {record['channels']} channels, {record['dtype']}, "
        f"{record['images_per_chip']} images a chip, attention {record['attention']}, remat {record['remat']}"
    )


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--config", default="configs/cifar10.py", help="network and noise rate (%(default)s)")
    parser.add_argument("--topologies", default=TOPOLOGIES, help="joined by commas (%(default)s)")
    parser.add_argument("--classes", default="10", help="joined by commas (%(default)s)")
    parser.add_argument("--rules", default="dsm,floor", help=f"of {', '.join(RULES)} (%(default)s)")
    parser.add_argument("--sampling", action=argparse.BooleanOptionalAction, default=True, help="the sampler's call")
    parser.add_argument("--images_per_chip", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--image_size", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--image_channels", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="of the network's arithmetic (%(default)s)")
    parser.add_argument("--channels", type=int, help="of the network, instead of the config's")
    parser.add_argument("--attention", default="auto", choices=IMPLEMENTATIONS, help="(%(default)s)")
    parser.add_argument("--remat", action="store_true", help="compute activations twice instead of keeping them")
    parser.add_argument("--json", help="where to write the records")
    run_command(parser, main)
