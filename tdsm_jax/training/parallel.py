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


def check_divisible(name: str, batch_size: int) -> None:
    """Raises `UserError` unless `batch_size`, the value of config key `name`, splits evenly over the devices."""
    devices = jax.local_device_count()
    if batch_size % devices:
        raise UserError(
            f"{name}={batch_size} does not split over {devices} devices; "
            f"use a multiple of {devices}, such as {round_up(batch_size)}"
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


def data_parallel(step: Callable, mesh: Mesh, given: Any) -> DataParallel:
    """Returns a per-device step run over the mesh, with what a run gives it on every device."""
    return DataParallel(compiled(step, mesh), replicate(given, mesh))


def compiled(step: Callable, mesh: Mesh) -> Callable:
    """Returns (state, batch, key, given) -> (state, metrics), jitted over the mesh, of a per-device step.

    `given` is what the step reads and never changes (tables, frozen classifiers). The batch is split along its
    first axis, the rest is replicated, the state donated. The step itself averages gradients and metrics over `AXIS`.
    """
    everywhere, split = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(everywhere, split, everywhere, everywhere),
        out_specs=(everywhere, everywhere),
        check_vma=False,  # the step says by pmean what is replicated
    )
    return jax.jit(mapped, donate_argnums=0)


def split(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts the rows of a batch on the devices of the mesh."""
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(AXIS)))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every array on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
