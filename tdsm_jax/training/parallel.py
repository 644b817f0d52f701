"""Data parallelism: one per-device step with a named axis, run over all local devices."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tdsm_jax.errors import UserError
from tdsm_jax.networks.resnet import AXIS as AXIS  # the name a per-device step averages over


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the one-dimensional mesh of `devices`, all local ones by default."""
    devices = jax.local_devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def check_divisible(name: str, batch_size: int, parts: int = 1) -> None:
    """Raises `UserError` unless `batch_size`, the value of config key `name`, splits evenly over the devices.

    `parts` is how many parts each device takes its share in.
    """
    whole = jax.local_device_count() * parts
    if batch_size % whole:
        taken = f", {parts} parts each" if parts > 1 else ""
        raise UserError(
            f"{name}={batch_size} does not split over {jax.local_device_count()} devices{taken}; "
            f"use a multiple of {whole}, such as {-(-batch_size // whole) * whole}"
        )


def round_up(batch_size: int) -> int:
    """Returns the next batch size that splits evenly over the devices."""
    devices = jax.local_device_count()
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


def data_parallel(step: Callable, mesh: Mesh, given: Any, steps: int = 1) -> DataParallel:
    """Returns a per-device step run over the mesh, with what a run gives it on every device."""
    return DataParallel(compiled(step, mesh, steps), replicate(given, mesh))


def compiled(step: Callable, mesh: Mesh, steps: int = 1) -> Callable:
    """Returns (state, batch, key, given) -> (state, metrics), jitted over the mesh, of a per-device step.

    `given` is what the step reads and never changes (tables, frozen classifiers). The batch is split along its
    first axis, the rest is replicated, the state donated. The step itself averages gradients and metrics over `AXIS`.
    With `steps` > 1 one call takes that many steps on the device: batches and metrics have a first axis of them.
    """

    def several(state: Any, batches: dict, key: jax.Array, given: Any) -> tuple[Any, dict]:
        return jax.lax.scan(lambda state, batch: step(state, batch, key, given), state, batches)

    everywhere, split = PartitionSpec(), batch_spec(steps)
    mapped = jax.shard_map(
        step if steps == 1 else several,
        mesh=mesh,
        in_specs=(everywhere, split, everywhere, everywhere),
        out_specs=(everywhere, everywhere),
        check_vma=False,  # the step says by pmean what is replicated
    )
    return jax.jit(mapped, donate_argnums=0)


def batch_spec(steps: int) -> PartitionSpec:
    """Returns how rows lie on the devices: along the first axis, or the second one of several steps' batches."""
    return PartitionSpec(AXIS) if steps == 1 else PartitionSpec(None, AXIS)


def split(batch: dict[str, np.ndarray], mesh: Mesh, steps: int = 1) -> dict[str, jax.Array]:
    """Puts the rows of a batch, or of several steps' batches stacked, on the devices of the mesh."""
    return jax.device_put(batch, NamedSharding(mesh, batch_spec(steps)))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every array on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
