"""The plainest way for parameters to move, for tests of what is built on it."""

import jax
import numpy as np

from tdsm_jax.training.state import Optimisation

PLAIN = Optimisation(
    batch_size=8,
    learning_rate=0.1,
    ramp_images=0,
    ema_half_life=16,
    ema_ramp=1.0,
    weight_decay=0.0,
    clip_norm=0.0,
)


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
