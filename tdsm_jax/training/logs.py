"""What a run tells while it runs: metrics for machines, progress for people."""

import json
import os
import pathlib
import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO

import tqdm

from tdsm_jax import files, hosts, paths
from tdsm_jax.errors import UserError

PLAIN_INTERVAL = 30.0  # seconds between progress lines where there is no terminal


class MetricLog:
    """Appends to `metrics.jsonl`, and to TensorBoard files where tensorboardX is installed.

    What was written after `resume_step` is dropped on opening, so a run that was interrupted and resumed ends
    with the same file as one that was not.

    Among several hosts one writes.

    Args:
      directory: where `metrics.jsonl` and `tensorboard/` go; created if missing.
      resume_step: the step training continues from, 0 for a fresh run.
    """

    def __init__(self, directory: str | pathlib.Path, *, resume_step: int):
        self._file = self._tensorboard = None
        if not hosts.is_writer():
            return
        path = _metrics_path(directory)
        kept = [line for line, record in _complete_lines(path) if record["step"] <= resume_step]
        self._file = files.GrowingText(path, "".join(kept))
        self._tensorboard = _tensorboard_writer(path.parent / "tensorboard", resume_step)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Appends one record; it is in the file when this returns, in one under gs:// by the next `save`."""
        if self._file is None:
            return
        record = {"step": int(step)} | {name: float(value) for name, value in metrics.items()}
        self._file.write(json.dumps(record) + "\n")
        if self._tensorboard is not None:
            for name, value in metrics.items():
                self._tensorboard.add_scalar(name, float(value), int(step))

    def save(self) -> None:
        """Makes sure that the records so far are in the file: called before a checkpoint that resuming counts on."""
        if self._file is not None:
            self._file.save()

    def close(self) -> None:
        """Closes the files; a second call does nothing."""
        if self._file is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_metrics(directory: str | pathlib.Path) -> list[dict[str, float]]:
    """Returns the records of `metrics.jsonl` in order, without a torn last line; [] when there is no file."""
    return [record for _, record in _complete_lines(_metrics_path(directory))]


class Progress:
    """Context manager that shows steps done, images/s and the time left.

    On a terminal it is a bar; elsewhere (log files, wherever $CI is set) a plain line at most every 30 seconds and
    one at the end. Among several hosts the one that writes shows it.

    Args:
      label: what is going on, in a word.
      total_steps: the step at which the work is done.
      images_per_step: images in one step over all devices.
      initial_step: the step the work resumes from.
      stream: where to write; standard error when None.
    """

    def __init__(
        self,
        label: str,
        total_steps: int,
        images_per_step: int,
        initial_step: int = 0,
        stream: TextIO | None = None,
    ):
        stream = sys.stderr if stream is None else stream
        terminal = stream.isatty() and not os.environ.get("CI")  # some CI services give a terminal and keep a log
        display = _Silent if not hosts.is_writer() else _Bar if terminal else _PlainLines
        self._display = display(label, total_steps, images_per_step, initial_step, stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._display.close()

    def update(self, steps: int = 1, **shown: float) -> None:
        """Counts `steps` as done; `shown` are values such as loss=0.12 to display beside the rate."""
        self._display.update(steps, {name: float(value) for name, value in shown.items()})


class _Silent:
    def __init__(self, *_: Any):
        pass

    def update(self, steps: int, shown: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class _Bar:
    def __init__(self, label: str, total: int, images_per_step: int, initial: int, stream: TextIO):
        self._images_per_step = images_per_step
        self._bar = tqdm.tqdm(desc=label, total=total, initial=initial, unit="step", file=stream, dynamic_ncols=True)

    def update(self, steps: int, shown: dict[str, float]) -> None:
        rate: dict[str, str] = {}
        if steps_per_second := self._bar.format_dict["rate"]:
            rate = {"images/s": _format_rate(steps_per_second * self._images_per_step)}
        self._bar.set_postfix(rate | shown, refresh=False)
        self._bar.update(steps)

    def close(self) -> None:
        self._bar.close()


class _PlainLines:
    def __init__(self, label: str, total: int, images_per_step: int, initial: int, stream: TextIO):
        self._label, self._total, self._images_per_step = label, total, images_per_step
        self._stream = stream
        self._step = self._first_step = self._printed_step = initial
        self._start = self._printed_time = time.monotonic()
        self._shown: dict[str, float] = {}

    def update(self, steps: int, shown: dict[str, float]) -> None:
        self._step += steps
        self._shown = shown
        now = time.monotonic()
        if now - self._printed_time < PLAIN_INTERVAL:
            return
        # The rate since the last line, not since the start: compilation would spoil the time left.
        rate = (self._step - self._printed_step) / (now - self._printed_time)
        self._print(rate, f"{tqdm.tqdm.format_interval((self._total - self._step) / rate)} left")
        self._printed_step, self._printed_time = self._step, now

    def close(self) -> None:
        elapsed = time.monotonic() - self._start
        ending = "done" if self._step >= self._total else "stopped"
        rate = (self._step - self._first_step) / elapsed if elapsed > 0 else 0.0
        self._print(rate, f"{ending} after {tqdm.tqdm.format_interval(elapsed)}")

    def _print(self, steps_per_second: float, when: str) -> None:
        parts = [
            f"{self._label}: {self._step}/{self._total}",
            f"{_format_rate(steps_per_second * self._images_per_step)} images/s",
            when,
            *(f"{name}={value:.4g}" for name, value in self._shown.items()),
        ]
        print(", ".join(parts), file=self._stream, flush=True)


def _format_rate(images_per_second: float) -> str:
    return f"{images_per_second:.0f}" if images_per_second >= 100 else f"{images_per_second:.3g}"


def _metrics_path(directory: str | pathlib.Path) -> pathlib.Path:
    return paths.path_of(directory) / "metrics.jsonl"


def _complete_lines(path: pathlib.Path) -> list[tuple[str, dict[str, float]]]:
    """Returns (line with its newline, record) for every line that was written to its end."""
    if not paths.exists(path):
        return []
    lines = files.read_bytes(path).decode().splitlines(keepends=True)
    try:
        return [(line, json.loads(line)) for line in lines if line.endswith("\n")]
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: a line is not JSON ({error}); remove that line or the file") from None


def _tensorboard_writer(directory: pathlib.Path, resume_step: int) -> Any:
    if paths.is_remote(directory):  # event files grow, which objects cannot; metrics.jsonl has the same numbers
        return None
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    # Viewers hide what the interrupted run wrote from purge_step on.
    return SummaryWriter(str(directory), purge_step=resume_step + 1)
