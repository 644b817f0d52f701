"""What the names in a snapshot stand for: a plain value, an array or, for a module, a passive record; or a refusal.

The list holds what EDM's snapshots and `torch.save` name. None of it is the class or function of that name.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from tdsm_jax.errors import printable
from tdsm_jax.interop import torch_storage
from tdsm_jax.interop.budget import HEAVY, Budget, Unreadable
from tdsm_jax.interop.pickle_machine import Blank, PickleMachine, checked_keys

PASSIVE = ("torch.nn.modules.",)  # every class below these is a record


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """What a file says of an object: its class by name, its attributes and, if it carries one, its source text.

    `module` is empty where `source` is given: such a class is one of that text.
    """

    module: str
    name: str
    state: dict[str, Any] = dataclasses.field(repr=False)
    source: str | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True)
class _Function:
    """Stands for a function or class of the file; `call` is what its call means here."""

    call: Callable[..., Any]


class SavedMachine(PickleMachine):
    """Reads the pickle in a container of `torch.save`."""

    def find_global(self, module: str, name: str) -> Any:
        if (module, name) in _NAMES:
            return _NAMES[module, name]
        if (module, name) in _CHARGED:
            return _Function(functools.partial(_CHARGED[module, name], self.budget))
        if module.startswith(PASSIVE) and all(part.isidentifier() for part in [*module.split("."), name]):
            return _Function(functools.partial(_module, module, name))
        return super().find_global(module, name)

    def call(self, function: Any, arguments: tuple) -> Any:
        if type(function) is not _Function:
            return super().call(function, arguments)
        return function.call(*arguments)

    def set_state(self, value: Any, state: Any) -> Any:
        if isinstance(value, _Dtype | _Array):
            return value.finished(state)
        if type(state) is dict and type(value) is dict:
            return value  # attributes of a dict subclass, such as the versions in a state dict
        if type(state) is dict and type(value) is Record:
            self.budget.spend_instructions(len(state) + HEAVY)  # a few bytes can refer to a large state again
            value.state.update(state)
            return value
        return super().set_state(value, state)


class SnapshotMachine(SavedMachine):
    """Reads a plain pickle, which holds storages as containers of their own. These hold no further ones."""

    def find_global(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _Function(functools.partial(torch_storage.load_storage, self.budget))
        return super().find_global(module, name)


class _Dtype(Blank):
    """A NumPy dtype before its byte order is known."""

    CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")

    def __init__(self, code: str, _align: bool, _copy: bool):
        if code not in self.CODES:
            said = printable(code) if type(code) is str else f"a {type(code).__name__}"
            raise Unreadable(f"a NumPy array has dtype {said}, which is not one of numbers")
        self._code = code

    def finished(self, state: tuple) -> np.dtype:
        order = state[1]
        if order not in ("<", ">", "|"):
            raise Unreadable("a NumPy dtype has no byte order")
        return np.dtype(self._code).newbyteorder(order)


class _Array(Blank):
    """A NumPy array before its content is known."""

    def __init__(self, _subtype: Any, _shape: Any, _code: Any):
        pass

    def finished(self, state: tuple) -> np.ndarray:
        _version, shape, dtype, is_fortran, content = state
        return _array(content, dtype, shape, "F" if is_fortran else "C")


def _array(content: memoryview, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    if not (isinstance(dtype, np.dtype) and type(content) is memoryview and torch_storage.is_shape(shape)):
        raise Unreadable("a NumPy array has no proper shape, dtype and content")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise Unreadable(f"a NumPy array of shape {shape} has {len(content)} bytes")
    return np.ndarray(shape, dtype, content, order=order)


def _scalar(dtype: np.dtype, content: memoryview) -> np.generic:
    return _array(content, dtype, (), "C")[()]


def _parameter(tensor: Any, _requires_grad: Any, _hooks: Any, _attributes: Any = None) -> np.ndarray:
    if not isinstance(tensor, np.ndarray):
        raise Unreadable(f"a parameter is a {type(tensor).__name__}, not a tensor")
    return tensor


def _persistent_object(meta: dict[str, Any]) -> Record:
    """EDM's way: the class is not named but carried as source text, which stays text here."""
    name, source, state = meta["class_name"], meta["module_src"], meta["state"]
    if not (type(name) is str and name.isidentifier() and type(source) is str and type(state) in (dict, type(None))):
        raise Unreadable("an object has no proper class name, source text and state")
    return Record("", name, {} if state is None else state, source)


def _module(module: str, name: str) -> Record:
    return Record(module, name, {})


def _bare_object(of_class: Any, base: Any, state: Any) -> Any:
    if type(of_class) is not _Function or base != "object" or state is not None:
        raise Unreadable("an object is made in no known way")
    return of_class.call()


def _dict() -> dict:
    return {}


def _size(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if type(sizes) is not tuple:
        raise Unreadable("a torch.Size is no tuple")
    return sizes


def _device(kind: str, index: int | None = None) -> str:
    return kind if index is None else f"{kind}:{index}"


def _no_bytes() -> memoryview:
    return memoryview(b"")


def _encoded(budget: Budget, text: str, encoding: str) -> memoryview:
    """How pickle protocol 2 writes bytes."""
    if encoding != "latin1":
        raise Unreadable("bytes are not encoded as latin1")
    budget.spend_data(len(text))
    return memoryview(text.encode("latin1"))


def _set(budget: Budget, items: Sequence[Any] = ()) -> set[Any]:
    budget.spend_instructions(len(items) + HEAVY)
    return set(checked_keys(items))


_TORCH_DTYPES = {name: np.dtype(name) for name in "bool float16 float32 float64 int8 int16 int32 int64".split()}
_TORCH_DTYPES |= {name: np.dtype(name) for name in "uint8 uint16 uint32 uint64".split()}
_TORCH_DTYPES["bfloat16"] = np.dtype(jnp.bfloat16)

_NAMES: dict[tuple[str, str], Any] = {
    **torch_storage.STORAGE_TYPES,
    **{("torch", name): dtype for name, dtype in _TORCH_DTYPES.items()},
    ("torch", "Size"): _Function(_size),
    ("torch", "device"): _Function(_device),
    ("torch._utils", "_rebuild_tensor"): _Function(torch_storage.rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(torch_storage.rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Function(torch_storage.rebuild_tensor_v3),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(_parameter),
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Function(_persistent_object),
    ("dnnlib.util", "EasyDict"): _Function(_dict),
    ("argparse", "Namespace"): _Function(functools.partial(_module, "argparse", "Namespace")),  # settings of a training
    ("collections", "OrderedDict"): _Function(_dict),
    ("numpy", "dtype"): _Function(_Dtype),
    ("numpy", "ndarray"): "ndarray",
}
# Functions that copy what a few bytes can refer to again and again: they take the budget first.
_CHARGED: dict[tuple[str, str], Callable[..., Any]] = {("_codecs", "encode"): _encoded}
for _module_name in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    _NAMES[f"{_module_name}.multiarray", "_reconstruct"] = _Function(_Array)
    _NAMES[f"{_module_name}.multiarray", "scalar"] = _Function(_scalar)
    _NAMES[f"{_module_name}.numeric", "_frombuffer"] = _Function(_array)
for _module_name in ("builtins", "__builtin__"):  # the latter in protocol 2
    _NAMES[_module_name, "object"] = "object"
    _NAMES[_module_name, "bytes"] = _Function(_no_bytes)
    _CHARGED[_module_name, "set"] = _CHARGED[_module_name, "frozenset"] = _set
for _module_name in ("copyreg", "copy_reg"):
    _NAMES[_module_name, "_reconstructor"] = _Function(_bare_object)
