"""The training loop, of classifiers and score networks alike: resume, step, log, evaluate, save."""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tdsm_jax.errors import UserError
from tdsm_jax.training import parallel
from tdsm_jax.training.checkpoint import Checkpoints
from tdsm_jax.training.logs import MetricLog, Progress


class Diverged(UserError):
    """A loss that is not a finite number."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long a run is and how often it logs, evaluates and saves, in steps; 0 means never.

    Saving falls on logging steps, so that a resumed run logs what an uninterrupted one would. The step function
    takes `steps_a_call` steps at a time, of which all these numbers are multiples.
    """

    steps: int
    log_every: int
    save_every: int
    evaluate_every: int = 0
    steps_a_call: int = 1

    def __post_init__(self):
        if min(self.steps, self.log_every, self.save_every) < 1:
            raise UserError(f"steps, log_every and save_every must be at least 1, got {self}")
        if self.save_every % self.log_every:
            raise UserError(f"save_every={self.save_every} must be a multiple of log_every={self.log_every}")
        whole = math.gcd(self.steps, self.log_every, self.save_every, self.evaluate_every)
        if self.steps_a_call < 1 or whole % self.steps_a_call:
            raise UserError(f"steps_a_call={self.steps_a_call} must divide steps, log_every and the like: {self}")


def run(
    label: str,
    step_fn: Callable[[Any, dict, jax.Array], tuple[Any, dict]],  # (state, batch, key) -> (state, metrics)
    state: Any,
    batches: Callable[[int], dict[str, np.ndarray]],  # step -> global batch, a pure function
    key: jax.Array,
    *,
    schedule: Schedule,
    mesh: Mesh,
    directory: pathlib.Path | None = None,
    evaluate: Callable[[Any], tuple[Any, dict]] | None = None,
) -> Any:
    """Returns the state after `schedule.steps` steps.

    With a `directory`, checkpoints and metrics are kept there, and a run that finds checkpoints goes on from
    the newest good one to the very state an uninterrupted run reaches. `evaluate` may replace the state (to
    remember the best parameters). A non-finite loss raises `Diverged` with its step, before anything is saved.
    """
    state, key = parallel.replicate((state, key), mesh)
    checkpoints = Checkpoints(directory / "checkpoints") if directory else None
    restored = checkpoints.restore(state) if checkpoints else None
    start, state = restored or (0, state)
    if start % schedule.steps_a_call:
        raise UserError(
            f"{label} goes on from step {start}, of which steps_a_call={schedule.steps_a_call} is no divisor"
        )
    log = MetricLog(directory, resume_step=start) if directory else None
    pending: list[dict] = []  # metrics of the steps since the last record, still on the devices

    def record(step: int) -> dict[str, float]:
        """Averages the pending metrics into one log record; stops at the first non-finite loss."""
        fetched = jax.device_get(pending)
        values = {name: np.concatenate([np.atleast_1d(metrics[name]) for metrics in fetched]) for name in fetched[0]}
        bad = np.flatnonzero(~np.isfinite(values["loss"]))
        if len(bad):
            raise Diverged(
                f"{label}: the loss is {values['loss'][bad[0]]} at step {step - len(values['loss']) + 1 + bad[0]}; "
                "lower the learning rate or set clip_norm, in another --workdir or with --overwrite"
            )
        pending.clear()
        means = {name: float(np.mean(column)) for name, column in values.items()}
        if log:
            log.write(step, means)
        return means

    def batch_of(step: int) -> dict[str, jax.Array]:
        """Puts the batches of a call that ends at `step` on the devices."""
        if per_call == 1:
            return parallel.split(batches(step - 1), mesh)
        several = [batches(number) for number in range(step - per_call, step)]
        stacked = {name: np.stack([batch[name] for batch in several]) for name in several[0]}
        return parallel.split(stacked, mesh, per_call)

    per_call, batch_size = schedule.steps_a_call, len(next(iter(batches(0).values())))
    try:
        with Progress(label, schedule.steps, batch_size, initial_step=start) as progress:
            for step in range(start + per_call, schedule.steps + 1, per_call):
                state, metrics = step_fn(state, batch_of(step), key)
                pending.append(metrics)
                last = step == schedule.steps
                shown = record(step) if step % schedule.log_every == 0 or last else {}
                if evaluate and (last or (schedule.evaluate_every and step % schedule.evaluate_every == 0)):
                    state, measured = evaluate(state)
                    shown |= measured
                    if log:
                        log.write(step, measured)
                if checkpoints and (last or step % schedule.save_every == 0):
                    if log:
                        log.save()
                    checkpoints.save(step, state)
                progress.update(per_call, **shown)
    finally:
        if checkpoints:
            checkpoints.wait()
        if log:
            log.close()
    return state
