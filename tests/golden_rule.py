"""The weight rule of the `rule_*.npz` arrays: full-size networks without stored weights."""

import json
import zlib

import numpy as np

FILTERS = {2: (1, 1), 4: (1, 3, 3, 1)}


def official_state(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the state dict of an array file: stored, or made by the rule from names and shapes."""
    stored = {name.removeprefix("state/"): array for name, array in arrays.items() if name.startswith("state/")}
    if stored:
        return stored
    seed = int(arrays["rule_seed"])
    shapes = {str(n): json.loads(str(s)) for n, s in zip(arrays["names"], arrays["shapes"], strict=True)}
    return {name: _make(seed, name, shape) for name, shape in shapes.items()}


def _make(seed: int, name: str, shape: list[int]) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("resample_filter"):
        taps = np.array(FILTERS[shape[-1]])
        return (np.outer(taps, taps) / taps.sum() ** 2).reshape(shape).astype(np.float32)
    z = np.random.Generator(np.random.PCG64(zlib.crc32(f"{seed}/{name}".encode()))).standard_normal(shape)
    if name.endswith("running_mean"):
        z = 0.1 * z
    elif name.endswith("running_var"):
        z = 0.5 + np.abs(z)
    elif z.ndim >= 2:
        z = z / np.sqrt(np.prod(shape[1:]))
    else:
        z = 1 + 0.1 * z if name.endswith("weight") else 0.1 * z
    return z.astype(np.float32)


def inception_state(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the state dict of `inception_rule`: of the rule, each layer's statistics times its variance there."""
    state = official_state(arrays)
    layers = [name.removesuffix("running_var") for name in state if name.endswith("running_var")]
    for layer, variance in zip(layers, arrays.get("variances", ()), strict=False):
        state[f"{layer}running_var"] *= variance
        state[f"{layer}running_mean"] *= np.sqrt(variance)
    return state
