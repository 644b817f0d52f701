"""The layout of arrays in PyTorch's state dicts and in our variables, and the refusal of those that do not fit."""

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np

from tdsm_jax.errors import UserError, printable

StateDict = dict[str, np.ndarray]
Path = tuple[str, ...]  # of a leaf in the variables: collection, modules, name

_SHOWN = 3  # names an error lists


def to_flax(array: np.ndarray) -> np.ndarray:
    """Turns a weight from OIHW to HWIO, or from [out,in] to [in,out]; other arrays stay."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_torch(array: np.ndarray) -> np.ndarray:
    """The inverse of `to_flax`, in contiguous memory."""
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T)


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape in the state dict of an array of this shape in our variables."""
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def weight(state: StateDict, name: str, axes: int, *, of: str) -> np.ndarray:
    """Returns an array that the network `of` cannot lack; one of another rank, or without elements, is refused."""
    if name not in state:
        raise UserError(f"this is no {of}: it has no {name}")
    if state[name].ndim != axes or not state[name].size:
        raise UserError(f"{name} is {state[name].shape}; a non-empty array of {axes} axes belongs there")
    return state[name]


def check_arrays(state: StateDict, expected: dict[str, tuple[int, ...]], optional: Iterable[str] = ()) -> None:
    """Raises `UserError` where a state dict has not exactly the `expected` names and shapes.

    Of the names in `optional` any may be there; their shapes are not looked at.
    """
    unknown = state.keys() - expected.keys() - set(optional)
    sides = (("lacks", expected.keys() - state.keys()), ("has unknown arrays:", unknown))
    faults = [
        f"{verb} {', '.join(printable(name) for name in sorted(names)[:_SHOWN])} ({len(names)} in all)"
        for verb, names in sides
        if names
    ]
    if faults:
        raise UserError(f"the state dict {' and '.join(faults)}")
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise UserError(f"{name} is {state[name].shape}; going by the other arrays it must be {shape}")


def as_arrays(state: StateDict) -> StateDict:
    """Returns a state dict's arrays as NumPy's; what is not of numbers is a `UserError`."""
    arrays = {name: np.asarray(array) for name, array in state.items()}
    for name, array in arrays.items():
        if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
            raise UserError(f"{printable(name)} has dtype {array.dtype}, which is not one of numbers")
    return arrays
