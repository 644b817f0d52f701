"""Official snapshots (.pkl) and training states (.pt) read as data: no code of theirs runs, torch is not needed."""

import mmap
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from tdsm_jax.errors import UserError, printable
from tdsm_jax.interop import torch_storage
from tdsm_jax.interop.budget import Budget, Refused, Unreadable
from tdsm_jax.interop.pickled_names import Record, SavedMachine, SnapshotMachine

DEEPEST_NESTING = 500  # containers in containers; a network takes some 30
DEEPEST_MODULE = 100
LONGEST_NAME = 500  # of a parameter, with those of the modules it is in
MOST_ENTRIES = 100_000  # modules, parameters and buffers of one network
# What reading a malformed stream ends in, where it is not checked for by name.
_MALFORMED = (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, struct.error)


def read_snapshot(path: str | os.PathLike) -> Any:
    """Returns what a `.pkl` snapshot or a file of `torch.save` holds, told apart by their content.

    Containers are plain, tensors are read-only arrays, modules are `Record`s, bytes are views, dtypes are NumPy's.
    The file is memory-mapped: leave it in place while the arrays are in use. Anything missing, damaged, foreign or
    hostile is a `UserError` naming the file.
    """
    try:
        data = _mapped(path)
        value = _read(data, Budget(len(data)))
        _check_depth(value)
    except Refused as error:
        raise UserError(f"{path}: {error}") from None
    except Unreadable as error:
        raise UserError(f"{path}: cannot be read: {error}; download or save it again") from None
    except _MALFORMED as error:
        reason = f"{type(error).__name__}: {printable(str(error))}"
        raise UserError(f"{path}: cannot be read: it is malformed ({reason}); download or save it again") from error
    return value


def state_dict(network: Record) -> dict[str, np.ndarray]:
    """Returns the parameters and persistent buffers of a module by their official names, in the official order.

    Raises `UserError` for a record that is no module, or whose modules contain each other.
    """
    arrays = {}
    for count, (name, value) in enumerate(_entries(network, "", 0)):
        if count >= MOST_ENTRIES:
            raise UserError(f"the modules of this file have more than {MOST_ENTRIES} entries; it holds no network")
        if value is None:
            continue
        if not isinstance(value, np.ndarray):
            raise UserError(
                f"{printable(name)} is a {type(value).__name__}, not a tensor; the file holds no whole network"
            )
        arrays[name] = value
    return arrays


def _entries(module: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Yields name and value of all that a module and those below it hold; None for what a state dict leaves out."""
    parts = ("_parameters", "_buffers", "_modules")
    is_record = isinstance(module, Record)
    transient = module.state.get("_non_persistent_buffers_set", set()) if is_record else None
    if type(transient) is not set or not all(type(module.state.get(part)) is dict for part in parts):
        kind = module.name if is_record else type(module).__name__
        place = printable(prefix.removesuffix(".")) or "this"
        raise UserError(f"{place} is a {printable(kind)}, not a network; pick another entry of the file")
    if depth > DEEPEST_MODULE:
        raise UserError(f"the modules at {printable(prefix)} contain each other; the file holds no network")
    parameters, buffers, children = (module.state[part] for part in parts)
    yield prefix, None  # so that modules count as entries
    for name, parameter in parameters.items():
        yield _joined(prefix, name), parameter
    for name, buffer in buffers.items():
        yield _joined(prefix, name), None if name in transient else buffer
    for name, child in children.items():
        if child is not None:
            yield from _entries(child, _joined(prefix, name) + ".", depth + 1)


def _joined(prefix: str, name: Any) -> str:
    if type(name) is not str or len(prefix) + len(name) > LONGEST_NAME:
        raise UserError(
            f"the modules at {printable(prefix) or 'the top'} have no proper names; the file holds no network"
        )
    return prefix + name


def _mapped(path: str | os.PathLike) -> memoryview:
    path = pathlib.Path(path)
    if not path.exists():
        raise Refused("no such file")
    if not path.is_file():
        raise Refused("not a file")
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise Unreadable("it is empty")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise Refused(f"cannot be read ({error.strerror})") from None


def _read(data: memoryview, budget: Budget) -> Any:
    if torch_storage.is_zip(data):
        return torch_storage.read_container(data, budget, SavedMachine)
    if data[0] != 0x80:
        raise Unreadable("it is neither a pickle nor a file of torch.save")
    value = SnapshotMachine(data, budget).run()
    if type(value) is int and value == torch_storage.LEGACY_MAGIC:
        return torch_storage.read_container(data, budget, SavedMachine)
    return value


def _check_depth(value: Any) -> None:
    """Raises `Unreadable` if containers nest so deep that walking them by recursion would fail."""
    heights: dict[int, int] = {}  # by identity; 0 while what is inside is being visited
    pending = [value]
    while pending:
        node = pending.pop()
        height = heights.get(id(node))
        if height is None:
            heights[id(node)] = 0
            pending.append(node)  # to be finished after what is inside
            pending.extend(child for child in _containers_in(node) if id(child) not in heights)
        elif height == 0:
            heights[id(node)] = 1 + max((heights[id(child)] for child in _containers_in(node)), default=0)
            if heights[id(node)] > DEEPEST_NESTING:
                raise Unreadable("its objects nest deeper than those of any network")


def _containers_in(node: Any) -> Iterator[Any]:
    """Yields the containers directly in a container, empty ones left out."""
    node = node.state if isinstance(node, Record) else node
    items = node.values() if type(node) is dict else node if type(node) in (list, tuple) else ()
    return (item for item in items if type(item) in (dict, list, tuple, Record) and item)
