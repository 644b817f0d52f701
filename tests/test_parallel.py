"""Sharing work by all devices: every example is seen once and in order, and both wrappers run the same step."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdsm_jax.errors import Stopped
from tdsm_jax.training import parallel
from test_main import ROOT, environment


def on(devices, program):
    """Runs a program in a process that sees so many devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env=environment() | {"XLA_FLAGS": flags}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


EVERY_EXAMPLE = """
import jax, numpy as np
from tdsm_jax.training import parallel
mesh = parallel.data_mesh()
shapes = []

def see(batch):
    shapes.append(batch["i"].shape)  # while it is traced
    return batch["i"] * 2, batch["i"][:, None] + np.arange(2)

for count, size in ((10, 4), (8, 4), (3, 8), (1, 1), (17, 8), (64, 64)):
    seen = parallel.per_device(see, mesh)
    shapes.clear()
    doubled, pairs = parallel.in_batches(seen, lambda index: {"i": index}, mesh, count, size)
    np.testing.assert_array_equal(doubled, 2 * np.arange(count))
    np.testing.assert_array_equal(pairs, np.arange(count)[:, None] + np.arange(2))
    alone = parallel.in_batches(lambda b: b["i"] + 1, lambda index: {"i": index}, mesh, count, size)
    assert alone.tolist() == [i + 1 for i in range(count)]
    assert len(shapes) == 1, shapes  # one shape, one compilation
    assert shapes[0][0] == -(-min(count, size) // mesh.size), shapes
"""


@pytest.mark.parametrize("devices", [1, 3])
def test_every_example_is_seen_once_and_in_order(devices):
    on(devices, EVERY_EXAMPLE)


BOTH_WRAPPERS = """
import jax, numpy as np
from tdsm_jax.training import parallel
traces = []

def step(state, batch, key, given):
    traces.append(1)
    noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i)))(batch["position"])
    loss = jax.lax.pmean(((batch["x"] * state["w"].sum() + noise + given) ** 2).mean(), parallel.AXIS)
    return {"w": state["w"] - 0.1 * loss}, {"loss": loss}

def end(count, backend, steps):
    mesh = parallel.data_mesh(jax.devices()[:count], backend)
    run = parallel.data_parallel(step, mesh, np.float32(2), steps)
    state = parallel.replicate({"w": np.ones(3, np.float32)}, mesh)
    key = parallel.replicate(jax.random.key(1), mesh)
    traces.clear()
    for number in range(0, 4, steps):
        batches = [
            {"x": np.sin(np.arange(24) + n).reshape(8, 3).astype(np.float32).mean(1), "position": np.arange(8)}
            for n in range(number, number + steps)
        ]
        batch = batches[0] if steps == 1 else {k: np.stack([b[k] for b in batches]) for k in batches[0]}
        given_away = state["w"]
        state, metrics = run(state, parallel.feed(batch, mesh, steps), key)
        assert given_away.is_deleted()
    assert len(traces) == 1, traces
    assert np.shape(metrics["loss"]) == (() if steps == 1 else (steps,))
    return np.asarray(state["w"])

plain = end(1, "shard_map", 1)
for count in (1, 2, 4):
    for backend in parallel.BACKENDS:
        for steps in (1, 2):
            found, message = end(count, backend, steps), f"{count} devices, {backend}, {steps} steps a call"
            np.testing.assert_allclose(found, plain, rtol=1e-5, err_msg=message)
"""


def test_both_wrappers_run_the_same_step_once_compiled():
    on(4, BOTH_WRAPPERS)


def test_the_rows_of_all_hosts_make_up_the_batch():
    """Of two hosts with two devices each, as far as one process can play both."""

    class Device:
        def __init__(self, host, number):
            self.process_index, self.id = host, number

    class Grid:
        def __init__(self, devices, host):
            self.devices, self.size = np.array(devices), len(devices)
            self.local_devices = [device for device in devices if device.process_index == host]

    devices = [Device(host, number) for host in range(2) for number in range(2)]
    rows = [parallel.DataMesh(Grid(devices, host)).rows(8) for host in range(2)]
    assert [part.tolist() for part in rows] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_devices_of_a_host_lie_together_whatever_their_order():
    mesh = parallel.data_mesh(list(reversed(jax.devices())))
    assert [device.id for device in mesh.devices.devices] == sorted(device.id for device in jax.devices())


def test_a_look_may_be_stopped_between_batches_unless_it_may_not(monkeypatch):
    mesh, seen = parallel.data_mesh(), []

    def see(batch):
        seen.append(len(batch["i"]))
        monkeypatch.setattr(parallel.hosts, "stop_asked", lambda: True)
        return jnp.asarray(batch["i"])

    arguments = (see, lambda index: {"i": index}, mesh, 6, 2)
    with pytest.raises(Stopped):
        parallel.in_batches(*arguments)
    assert len(seen) == 1
    assert parallel.in_batches(*arguments, stoppable=False).tolist() == list(range(6))
