"""The training loop, of classifiers and score networks alike: resume, step, log, evaluate, save."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from tdsm_jax import hosts
from tdsm_jax.data import stream
from tdsm_jax.errors import Stopped, UserError
from tdsm_jax.training import parallel
from tdsm_jax.training.checkpoint import Checkpoints
from tdsm_jax.training.logs import MetricLog, Progress

Batches = Callable[[int, np.ndarray], dict[str, np.ndarray]]  # step, positions in its global batch -> those rows


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
    batches: Batches,  # a pure function; each host asks for its own rows
    key: jax.Array,
    *,
    batch_size: int,
    schedule: Schedule,
    mesh: parallel.DataMesh,
    directory: pathlib.Path | None = None,
    evaluate: Callable[[Any], tuple[Any, dict]] | None = None,
    ahead: bool = False,
) -> Any:
    """Returns the state after `schedule.steps` steps.

    With a `directory`, checkpoints and metrics are kept there, and a run that finds checkpoints goes on from
    the newest good one to the very state and log an uninterrupted run reaches. `evaluate` may replace the state (to
    remember the best parameters). With `ahead`, threads make the batches of the next steps while the devices
    work on one: the same batches. A non-finite loss raises `Diverged` with its step, before anything is saved; a
    request to stop (SIGTERM) raises `Stopped` once the state is saved.
    """
    state, key = parallel.replicate((state, key), mesh)
    checkpoints = Checkpoints(directory / "checkpoints") if directory else None
    start, state = (checkpoints.restore(state) if checkpoints else None) or (0, state)
    if start % schedule.steps_a_call:
        raise UserError(
            f"{label} goes on from step {start}, of which steps_a_call={schedule.steps_a_call} is no divisor; "
            "set config key compute.steps_a_call=1"
        )
    pending = Pending(label, checkpoints.notes(start) if checkpoints and start else {})
    log = MetricLog(directory, resume_step=start) if directory else None
    per_call, stopping = schedule.steps_a_call, False
    calls = range(start + per_call, schedule.steps + 1, per_call)
    making = _host_batches(batches, mesh.rows(batch_size), calls, ahead)
    try:
        with making as made, Progress(label, schedule.steps, batch_size, initial_step=start) as progress:
            for step, batch in zip(calls, made, strict=True):
                state, metrics = step_fn(state, parallel.feed(batch, mesh, per_call), key)
                pending.add(metrics)
                state, shown = _measured(step, state, schedule, pending, evaluate, log)
                stopping = step < schedule.steps and hosts.stop_asked()
                in_turn = step == schedule.steps or step % schedule.save_every == 0
                if checkpoints and (in_turn or stopping):
                    if log:
                        log.save()
                    checkpoints.save(step, state, **pending.at_save(step, in_turn))
                progress.update(per_call, **shown)
                if stopping:
                    break
        if checkpoints:
            checkpoints.wait()
    finally:
        if checkpoints:
            checkpoints.settle()
        if log:
            log.close()
    if stopping:
        raise Stopped
    return state


def _host_batches(
    batches: Batches, rows: np.ndarray, calls: range, ahead: bool
) -> contextlib.AbstractContextManager[Iterator[dict[str, np.ndarray]]]:
    """Gives this host's rows of the batches of each call, which `calls` names by the step that it ends at."""

    def rows_of(step: int) -> dict[str, np.ndarray]:
        if calls.step == 1:
            return batches(step - 1, rows)
        several = [batches(number, rows) for number in range(step - calls.step, step)]
        return {name: np.stack([batch[name] for batch in several]) for name in several[0]}

    return stream.ahead(rows_of, calls) if ahead else contextlib.nullcontext(map(rows_of, calls))


def _measured(
    step: int,
    state: Any,
    schedule: Schedule,
    pending: "Pending",
    evaluate: Callable[[Any], tuple[Any, dict]] | None,
    log: MetricLog | None,
) -> tuple[Any, dict[str, float]]:
    """Logs what is due at a step; returns the state, which evaluating may replace, and what has been logged."""
    last, shown = step == schedule.steps, {}
    if step % schedule.log_every == 0 or last:
        shown = pending.means(step)
        if log:
            log.write(step, shown)
    if evaluate and (last or (schedule.evaluate_every and step % schedule.evaluate_every == 0)):
        state, measured = evaluate(state)
        shown = shown | measured
        if log:
            log.write(step, measured)
    return state, shown


class Pending:
    """The metrics of the steps since the last log record, still on the devices, and the losses since the last save.

    A save may fall between two records: its `notes` hold what the next one will need.
    """

    def __init__(self, label: str, notes: dict[str, Any]):
        self._label = label
        self._metrics: list[dict] = []
        if saved := notes.get("pending"):
            self._metrics.append({name: np.asarray(values, np.float32) for name, values in saved.items()})
        self._losses: list[float] = notes.get("losses", [])

    def add(self, metrics: dict[str, jax.Array]) -> None:
        self._metrics.append(metrics)

    def means(self, step: int) -> dict[str, float]:
        """Returns the mean of each metric since the last call."""
        values = self._fetch(step)
        self._metrics.clear()
        means = {name: float(np.mean(column)) for name, column in values.items()}
        self._losses.append(means["loss"])
        return means

    def at_save(self, step: int, in_turn: bool) -> dict[str, Any]:
        """Returns what is saved beside the state: the mean loss since the last save as its measure, or the notes.

        A save out of turn measures nothing, so that those in turn measure what they would without it.
        """
        if in_turn:
            measure, self._losses = float(np.mean(self._losses)), []
            return {"measure": measure}
        values = {name: column.tolist() for name, column in self._fetch(step).items()} if self._metrics else {}
        return {"notes": {"pending": values, "losses": list(self._losses)}}

    def _fetch(self, step: int) -> dict[str, np.ndarray]:
        """Brings the metrics to the host; the first value that is not finite raises `Diverged`."""
        fetched = jax.device_get(self._metrics)
        values = {name: np.concatenate([np.atleast_1d(metrics[name]) for metrics in fetched]) for name in fetched[0]}
        for name in sorted(values, key="loss".__ne__):
            bad = np.flatnonzero(~np.isfinite(values[name]))
            if len(bad):
                raise Diverged(
                    f"{self._label}: the {name} is {values[name][bad[0]]} at step "
                    f"{step - len(values[name]) + 1 + bad[0]}; lower the learning rate or set clip_norm, "
                    "in another --workdir or with --overwrite"
                )
        return values
