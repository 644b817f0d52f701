"""Which examples make up which batch: a pure function of (seed, step), so there is no state to resume."""

import functools

import numpy as np

from tdsm_jax.errors import UserError

# Label corruption may use the same seed; a stream of its own keeps the order independent of it.
_ORDER_STREAM = 2


def batch_indices(seed: int, step: int, batch_size: int, num_examples: int) -> np.ndarray:
    """Returns the int64 indices [batch_size] of the examples of batch `step`, each in [0, num_examples).

    The batches cut one endless sequence, in which every epoch is an independent permutation of all examples.
    They run across epoch boundaries and may be larger than an epoch; the sequence does not depend on the
    batch size. A negative seed or step, or an empty batch or dataset, is a `UserError`.
    """
    if seed < 0 or step < 0:
        raise UserError(f"data seed and step must be non-negative integers, got {seed} and {step}")
    if batch_size < 1 or num_examples < 1:
        raise UserError(f"batch size and data set must not be empty, got {batch_size} and {num_examples}")
    position = int(step) * int(batch_size) + np.arange(batch_size, dtype=np.int64)
    epoch, offset = np.divmod(position, num_examples)
    indices = np.empty(batch_size, np.int64)
    for e in range(int(epoch[0]), int(epoch[-1]) + 1):
        inside = epoch == e
        indices[inside] = _permutation(int(seed), e, int(num_examples))[offset[inside]]
    return indices


def evenly(num_examples: int, most: int) -> np.ndarray:
    """Returns the sorted int64 indices of all examples, or of `most` of them, spread evenly."""
    if num_examples <= most:
        return np.arange(num_examples)
    return np.linspace(0, num_examples - 1, most).round().astype(np.int64)


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    sequence = np.random.SeedSequence((seed, epoch), spawn_key=(_ORDER_STREAM,))
    uniform = np.random.Generator(np.random.PCG64(sequence)).random(num_examples)
    # Sorting uniforms rests on the raw stream alone; Generator.permutation may change with NumPy.
    order = np.argsort(uniform, kind="stable")
    order.setflags(write=False)  # the cache hands the same array to every caller
    return order
