"""Metric files that do not show an interruption; progress for terminals and for log files."""

import io
import sys
import time

import pytest

from tdsm_jax.errors import UserError
from tdsm_jax.training import logs
from tdsm_jax.training.logs import MetricLog, Progress, read_metrics


def write_steps(directory, steps, *, resume_step):
    log = MetricLog(directory, resume_step=resume_step)
    for step in steps:
        log.write(step, {"loss": 1 / step, "accuracy": step / 7})
    log.close()


def test_records_come_back_in_order(tmp_path):
    write_steps(tmp_path / "new", [1, 2], resume_step=0)
    assert read_metrics(tmp_path / "new") == [
        {"step": 1, "loss": 1.0, "accuracy": 1 / 7},
        {"step": 2, "loss": 0.5, "accuracy": 2 / 7},
    ]
    assert (tmp_path / "new" / "metrics.jsonl").read_text().startswith('{"step": 1, "loss": 1.0, ')


def test_no_file_has_no_records(tmp_path):
    assert read_metrics(tmp_path) == []


def test_a_record_is_in_the_file_before_close(tmp_path):
    log = MetricLog(tmp_path, resume_step=0)
    log.write(3, {"loss": 2.0})
    assert read_metrics(tmp_path) == [{"step": 3, "loss": 2.0}]
    log.close()


def test_a_resumed_run_ends_with_the_file_of_an_uninterrupted_one(tmp_path):
    write_steps(tmp_path / "whole", range(1, 11), resume_step=0)
    write_steps(tmp_path / "resumed", range(1, 8), resume_step=0)
    with (tmp_path / "resumed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    assert [record["step"] for record in read_metrics(tmp_path / "resumed")] == list(range(1, 8))
    write_steps(tmp_path / "resumed", range(6, 11), resume_step=5)
    whole, resumed = ((tmp_path / run / "metrics.jsonl").read_bytes() for run in ("whole", "resumed"))
    assert whole == resumed


def test_a_torn_line_of_a_kept_step_goes(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 1.0}')
    MetricLog(tmp_path, resume_step=5).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n'


def test_a_line_that_is_not_json_is_a_user_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("step 1\n")
    with pytest.raises(UserError, match="metrics.jsonl: a line is not JSON"):
        read_metrics(tmp_path)


def test_tensorboard_gets_the_scalars(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    write_steps(tmp_path, [1], resume_step=0)
    (event_file,) = (tmp_path / "tensorboard").iterdir()
    content, events = event_file.read_bytes(), []
    while content:  # TFRecord: 8 bytes of length, 4 of checksum, payload, 4 of checksum
        length = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    scalars = [(value.tag, value.simple_value, event.step) for event in events for value in event.summary.value]
    assert scalars == [("loss", 1.0, 1), ("accuracy", pytest.approx(1 / 7), 1)]


def test_works_without_tensorboard(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    write_steps(tmp_path, [1], resume_step=0)
    assert not (tmp_path / "tensorboard").exists()
    assert len(read_metrics(tmp_path)) == 1
    assert capfd.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time in seconds, as its one element."""
    now = [1000.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    return now


def test_log_files_get_a_line_every_thirty_seconds_and_one_at_the_end(clock):
    stream = io.StringIO()
    with Progress("score", total_steps=100, images_per_step=64, initial_step=20, stream=stream) as progress:
        for _ in range(80):
            clock[0] += 1
            progress.update(loss=0.12345678)
    assert stream.getvalue().splitlines() == [
        "score: 50/100, 64 images/s, 00:50 left, loss=0.1235",
        "score: 80/100, 64 images/s, 00:20 left, loss=0.1235",
        "score: 100/100, 64 images/s, done after 01:20, loss=0.1235",
    ]


def test_the_time_left_follows_the_latest_rate(clock):
    stream = io.StringIO()
    with Progress("score", total_steps=1000, images_per_step=10, stream=stream) as progress:
        clock[0] += 100  # compilation
        progress.update()
        clock[0] += 50
        progress.update(steps=499)
    assert "score: 500/1000, 99.8 images/s, 00:50 left" in stream.getvalue()


def test_an_interrupted_run_says_where_it_stopped(clock):
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress("score", 100, 64, stream=stream) as progress:
        clock[0] += 2
        progress.update(3)
        raise KeyboardInterrupt
    assert stream.getvalue() == "score: 3/100, 96 images/s, stopped after 00:02\n"


def test_no_step_and_no_time(clock):
    stream = io.StringIO()
    with Progress("score", 5, 64, initial_step=5, stream=stream):
        pass
    assert stream.getvalue() == "score: 5/5, 0 images/s, done after 00:00\n"


def test_terminals_get_a_bar(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    stream = Terminal()
    with Progress("score", total_steps=10, images_per_step=64, initial_step=4, stream=stream) as progress:
        for _ in range(3):
            time.sleep(0.12)  # longer than the bar's refresh interval
            progress.update(2, loss=0.5)
    first, last = (stream.getvalue().split("\r")[index] for index in (1, -1))
    assert first.startswith("score:  40%|") and "| 4/10 [" in first
    assert last.startswith("score: 100%|") and "| 10/10 [" in last
    assert "images/s=" in last and "loss=0.5" in last and last.endswith("\n")


def test_a_terminal_of_a_ci_service_gets_lines(monkeypatch):
    monkeypatch.setenv("CI", "true")
    stream = Terminal()
    with Progress("score", total_steps=2, images_per_step=64, stream=stream) as progress:
        progress.update(2)
    assert "\r" not in stream.getvalue() and stream.getvalue().startswith("score: 2/2, ")


def test_standard_error_is_the_default(capsys):
    with Progress("score", 1, 1):
        pass
    assert capsys.readouterr().err.startswith("score: 0/1")


def test_one_host_writes_and_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(logs.hosts, "is_writer", lambda: False)
    write_steps(tmp_path / "other", [1, 2], resume_step=0)
    assert not (tmp_path / "other").exists()
    stream = io.StringIO()
    with Progress("work", 2, 8, stream=stream) as progress:
        progress.update()
    assert stream.getvalue() == ""
