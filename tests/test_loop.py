"""The loop: resume, logs, one compilation, losses that are no numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plain import PLAIN, assert_trees_equal
from tdsm_jax.errors import Stopped, UserError
from tdsm_jax.training import loop, parallel
from tdsm_jax.training.checkpoint import Checkpoints
from tdsm_jax.training.logs import read_metrics
from tdsm_jax.training.state import (
    TrainState,
    example_keys,
    initial_state,
    normal_like,
    stream_key,
    update,
)


def quadratic(state: TrainState, batch, key):
    """Draws the parameter towards noise: every step depends on batch and key."""
    noise = normal_like(example_keys(key, state.step, batch["position"]), batch["x"])
    target = (batch["x"] + noise).mean(0)
    loss, gradient = jax.value_and_grad(lambda p: ((p["w"] - target) ** 2).sum())(state.params)
    return update(state, gradient, PLAIN), {"loss": loss}


def batches(step, position):
    return {"x": np.full((len(position), 3), np.sin(step), np.float32), "position": position}


def run(directory, steps, step_fn=None, **options):
    schedule = loop.Schedule(steps, log_every=3, save_every=6, **options.pop("schedule", {}))
    return loop.run(
        "toy",
        step_fn or jax.jit(quadratic, donate_argnums=0),
        initial_state({"w": jnp.zeros(3)}, PLAIN),
        batches,
        stream_key(0, "toy"),
        batch_size=8,
        schedule=schedule,
        mesh=parallel.data_mesh(),
        directory=directory,
        **options,
    )


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_at", [1, 7, 13, 19])
def test_a_resumed_run_is_the_straight_run(tmp_path, killed_at):
    step_fn = jax.jit(quadratic, donate_argnums=0)

    def fragile(state, batch, key):
        if int(state.step) == killed_at:
            raise Killed
        return step_fn(state, batch, key)

    with pytest.raises(Killed):
        run(tmp_path / "killed", 20, fragile)
    resumed, straight = run(tmp_path / "killed", 20), run(tmp_path / "straight", 20)
    assert_trees_equal(resumed, straight)
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "straight")
    assert [r["step"] for r in read_metrics(tmp_path / "straight")] == [3, 6, 9, 12, 15, 18, 20]


def test_files_change_nothing(tmp_path):
    assert_trees_equal(run(None, 7), run(tmp_path, 7))


def test_a_finished_run_does_no_step(tmp_path):
    done = run(tmp_path, 6)

    def never(state, batch, key):
        raise AssertionError("a step was taken")

    assert_trees_equal(run(tmp_path, 6, never), done)


def test_one_compilation(tmp_path):
    traces = []

    @functools.partial(jax.jit, donate_argnums=0)
    def counted(state, batch, key):
        traces.append(1)
        return quadratic(state, batch, key)

    run(tmp_path, 6, counted)
    run(tmp_path, 12, counted)  # a restored state has the same types and placement
    assert len(traces) == 1


def test_a_loss_that_is_not_finite_stops_with_its_step(tmp_path):
    def breaking(state, batch, key):
        state, metrics = quadratic(state, batch, key)
        return state, {"loss": jnp.where(state.step == 8, jnp.nan, metrics["loss"])}

    with pytest.raises(loop.Diverged, match="nan at step 8"):
        run(tmp_path, 20, jax.jit(breaking))
    assert [r["step"] for r in read_metrics(tmp_path)] == [3, 6]


def test_what_is_minimised_beside_the_loss_stops_with_its_step_too(tmp_path):
    def breaking(state, batch, key):
        state, metrics = quadratic(state, batch, key)
        return state, metrics | {"balanced_loss": jnp.where(state.step == 8, jnp.inf, metrics["loss"])}

    with pytest.raises(loop.Diverged, match="the balanced_loss is inf at step 8"):
        run(tmp_path, 20, jax.jit(breaking))


def test_bad_schedules_are_refused():
    with pytest.raises(UserError, match="multiple of log_every"):
        loop.Schedule(10, log_every=3, save_every=4)
    with pytest.raises(UserError, match="at least 1"):
        loop.Schedule(0, log_every=1, save_every=1)


def test_several_steps_a_call_end_where_single_steps_do(tmp_path):
    """Also in the log, and where single steps began the run."""

    def go(name, steps, steps_a_call):
        step = parallel.data_parallel(lambda s, b, k, _: quadratic(s, b, k), parallel.data_mesh(), None, steps_a_call)
        return run(tmp_path / name, steps, step, schedule={"steps_a_call": steps_a_call})

    straight = go("straight", 12, 1)
    go("mixed", 6, 1)
    mixed = go("mixed", 12, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), mixed, straight)
    logs = [read_metrics(tmp_path / name) for name in ("mixed", "straight")]
    assert [record["step"] for record in logs[0]] == [3, 6, 9, 12]
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_steps_a_call_divide_everything_that_is_counted_in_steps():
    with pytest.raises(UserError, match="steps_a_call=3 must divide"):
        loop.Schedule(12, log_every=6, save_every=6, evaluate_every=4, steps_a_call=3)
    loop.Schedule(12, log_every=6, save_every=6, evaluate_every=3, steps_a_call=3)


def test_a_call_of_several_steps_does_not_go_on_from_between_two_calls(tmp_path):
    run(tmp_path, 9)
    step = parallel.data_parallel(lambda s, b, k, _: quadratic(s, b, k), parallel.data_mesh(), None, 2)
    with pytest.raises(UserError, match="goes on from step 9.*=2 is no divisor; set config key compute.steps_a_call=1"):
        loop.run(
            "toy",
            step,
            initial_state({"w": jnp.zeros(3)}, PLAIN),
            batches,
            stream_key(0, "toy"),
            batch_size=8,
            schedule=loop.Schedule(12, log_every=2, save_every=4, steps_a_call=2),
            mesh=parallel.data_mesh(),
            directory=tmp_path,
        )


@pytest.mark.parametrize("stopped_at", [1, 3, 4, 6, 8, 11])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_as_if_it_had_not(tmp_path, monkeypatch, stopped_at):
    """Also where the log's next record is half done: parameters, log and best step are those of a straight run."""
    step_fn, taken = jax.jit(quadratic, donate_argnums=0), []

    def counted(state, batch, key):
        taken.append(1)
        return step_fn(state, batch, key)

    monkeypatch.setattr(loop.hosts, "stop_asked", lambda: len(taken) == stopped_at)
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", 12, counted)
    assert len(taken) == stopped_at
    assert (tmp_path / "stopped" / "checkpoints" / f"{stopped_at:08d}.json").exists()
    resumed = run(tmp_path / "stopped", 12, counted)
    assert len(taken) == 12  # no step was taken twice
    straight = run(tmp_path / "straight", 12, step_fn)
    assert_trees_equal(resumed, straight)
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("stopped", "straight")]
    assert logs[0] == logs[1]
    best = [Checkpoints(tmp_path / name / "checkpoints").best_step() for name in ("stopped", "straight")]
    assert best[0] == best[1]


def test_a_stop_asked_for_at_the_last_step_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.hosts, "stop_asked", lambda: pytest.fail("there is nothing left to stop"))
    run(tmp_path, 1)


def test_a_step_that_fails_waits_for_its_own_save_and_for_no_other_host(tmp_path, monkeypatch):
    step_fn, barriers = jax.jit(quadratic, donate_argnums=0), []

    def fragile(state, batch, key):
        if int(state.step) == 6:  # the save of this step is under way
            raise Killed
        return step_fn(state, batch, key)

    monkeypatch.setattr(loop.hosts, "barrier", barriers.append)
    with pytest.raises(Killed):
        run(tmp_path, 12, fragile)
    assert not any("complete" in name for name in barriers)  # the others are not there
    assert (tmp_path / "checkpoints" / "00000006.json").exists()
