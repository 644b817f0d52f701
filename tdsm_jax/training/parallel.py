"""Data parallelism: one per-device step with a named axis, run over the devices of every host."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tdsm_jax import hosts
from tdsm_jax.errors import UserError
from tdsm_jax.networks.resnet import AXIS as AXIS  # the name a per-device step averages over

BACKENDS = ("shard_map", "pmap")


@dataclasses.dataclass(frozen=True)
class DataMesh:
    """The devices that share every batch, in the order of their hosts, and the wrapper that runs a step on them."""

    devices: Mesh
    backend: str = "shard_map"

    @property
    def size(self) -> int:
        return self.devices.size

    @property
    def local_devices(self) -> int:
        """How many of the devices belong to this process."""
        return len(self.devices.local_devices)

    def sharding(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self.devices, spec)

    def rows(self, batch_size: int) -> np.ndarray:
        """Returns the positions in a global batch of the rows that this process brings."""
        share, own = batch_size // self.size, set(self.devices.local_devices)
        mine = [i for i, device in enumerate(self.devices.devices) if device in own]
        return np.arange(mine[0] * share, (mine[-1] + 1) * share)


def data_mesh(devices: Sequence[jax.Device] | None = None, backend: str = "shard_map") -> DataMesh:
    """Returns the one-dimensional mesh of `devices`, all of all hosts by default; a host's devices lie together."""
    devices = jax.devices() if devices is None else devices
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return DataMesh(Mesh(np.array(ordered), (AXIS,), axis_types=(AxisType.Auto,)), backend)


def check_divisible(name: str, batch_size: int, parts: int = 1) -> None:
    """Raises `UserError` unless `batch_size`, the value of config key `name`, splits evenly over the devices.

    `parts` is how many parts each device takes its share in.
    """
    whole = jax.device_count() * parts
    if batch_size % whole:
        taken = f", {parts} parts each" if parts > 1 else ""
        raise UserError(
            f"{name}={batch_size} does not split over {jax.device_count()} devices{taken}; "
            f"use a multiple of {whole}, such as {-(-batch_size // whole) * whole}"
        )


def round_up(batch_size: int) -> int:
    """Returns the next batch size that splits evenly over the devices."""
    devices = jax.device_count()
    return -(-batch_size // devices) * devices


@dataclasses.dataclass(frozen=True)
class DataParallel:
    """(state, batch, key) -> (state, metrics): a `compiled` step with `given`, what it reads and never changes."""

    jitted: Callable
    given: Any

    def __call__(self, state: Any, batch: dict, key: jax.Array) -> tuple[Any, dict]:
        return self.jitted(state, batch, key, self.given)

    def lower(self, state: Any, batch: dict, key: jax.Array) -> jax.stages.Lowered:
        """Returns the program for arguments of these shapes, to be compiled ahead of time."""
        return self.jitted.lower(state, batch, key, self.given)


def data_parallel(step: Callable, mesh: DataMesh, given: Any, steps: int = 1) -> DataParallel:
    """Returns a per-device step run over the mesh, with what a run gives it on every device."""
    return DataParallel(compiled(step, mesh, steps), replicate(given, mesh))


def compiled(step: Callable, mesh: DataMesh, steps: int = 1) -> Callable:
    """Returns (state, batch, key, given) -> (state, metrics), jitted over the mesh, of a per-device step.

    `given` is what the step reads and never changes (tables, frozen classifiers). The batch is as `feed` returns it,
    the rest is replicated, the state donated. The step itself averages gradients and metrics over `AXIS`.
    With `steps` > 1 one call takes that many steps on the device: batches and metrics have a first axis of them.
    """

    def several(state: Any, batches: dict, key: jax.Array, given: Any) -> tuple[Any, dict]:
        return jax.lax.scan(lambda state, batch: step(state, batch, key, given), state, batches)

    per_device = step if steps == 1 else several
    if mesh.backend == "pmap":
        rows = 0 if steps == 1 else 1
        devices = list(mesh.devices.devices)
        kwargs: dict[str, Any] = {"in_axes": (None, rows, None, None), "out_axes": (None, None), "donate_argnums": 0}
        return jax.pmap(per_device, axis_name=AXIS, devices=devices, **kwargs)
    everywhere, split = PartitionSpec(), batch_spec(steps)
    mapped = jax.shard_map(
        per_device,
        mesh=mesh.devices,
        in_specs=(everywhere, split, everywhere, everywhere),
        out_specs=(everywhere, everywhere),
        check_vma=False,  # the step says by pmean what is replicated
    )
    return jax.jit(mapped, donate_argnums=0)


def batch_spec(steps: int) -> PartitionSpec:
    """Returns how rows lie on the devices: along the first axis, or the second one of several steps' batches."""
    return PartitionSpec(AXIS) if steps == 1 else PartitionSpec(None, AXIS)


def feed(batch: dict[str, np.ndarray], mesh: DataMesh, steps: int = 1) -> dict[str, Any]:
    """Returns this process's rows of a batch, or of several steps' batches stacked, as a `compiled` step takes them."""
    if mesh.backend != "pmap":
        return split(batch, mesh, steps)
    axis = 0 if steps == 1 else 1
    return {
        name: rows.reshape(*rows.shape[:axis], mesh.local_devices, -1, *rows.shape[axis + 1 :])
        for name, rows in batch.items()
    }


def split(batch: dict[str, np.ndarray], mesh: DataMesh, steps: int = 1) -> dict[str, jax.Array]:
    """Puts the rows that this process brings of a batch on its devices: arrays of the whole batch, split over all."""
    sharding = mesh.sharding(batch_spec(steps))
    if hosts.count() == 1:
        return jax.device_put(batch, sharding)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def replicate(tree: Any, mesh: DataMesh) -> Any:
    """Puts a copy of every array on every device of the mesh; all hosts bring the same."""
    sharding = mesh.sharding(PartitionSpec())
    return jax.tree.map(lambda leaf: place(leaf, sharding), tree)


def place(leaf: Any, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """Returns an array on the devices of a sharding, or on the default device; all hosts bring the whole of it."""
    if sharding is None or hosts.count() == 1:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array):
        if leaf.sharding == sharding:
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf), sharding))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def per_device(function: Callable[..., Any], mesh: DataMesh, *given: Any) -> Callable[[dict[str, jax.Array]], Any]:
    """Returns a function of the rows of a batch, jitted so that every device sees its own rows alone.

    `given` is what `function` takes after the batch, on every device: large arrays that it would otherwise compile in.
    """
    rows, everywhere = PartitionSpec(AXIS), PartitionSpec()
    specs = (rows, *[everywhere] * len(given))
    jitted = jax.jit(jax.shard_map(function, mesh=mesh.devices, in_specs=specs, out_specs=rows, check_vma=False))
    placed = replicate(given, mesh)
    return lambda batch: jitted(batch, *placed)


def gather(tree: Any) -> Any:
    """Returns the whole of arrays whose rows are split over the devices, as numpy, on every host."""
    if hosts.count() == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def in_batches(
    function: Callable[[dict[str, jax.Array]], Any],  # a batch -> array, or tuple of arrays, of one row an example
    rows_of: Callable[[np.ndarray], dict[str, np.ndarray]],  # indices of examples -> their rows
    mesh: DataMesh,
    num_examples: int,
    batch_size: int,
    *,
    stoppable: bool = True,
) -> Any:
    """Returns what `function` makes of all examples, each seen once, a batch at a time over all devices.

    What a network needs for one batch bounds the memory. The last batch is filled up from the start, so that one
    compiled program serves all, and what stands in for nothing is cut off again. `stoppable`: the run may be
    stopped between two batches, and what was seen is lost.
    """
    size = round_up(min(batch_size, num_examples))
    own = mesh.rows(size)
    parts = []
    for start in range(0, num_examples, size):
        if stoppable:
            hosts.stop_if_asked()
        index = np.arange(start, start + size) % num_examples
        parts.append(gather(function(split(rows_of(index[own]), mesh))))
    if isinstance(parts[0], tuple):
        return tuple(np.concatenate(rows)[:num_examples] for rows in zip(*parts, strict=True))
    return np.concatenate(parts)[:num_examples]
