"""The soak: what it calls whole, left over or different, and what it makes of a few kills."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tdsm_jax import files
from tdsm_jax.benchmark import soak
from test_benchmark import call
from test_main import ROOT, environment

CHECKPOINTS = "score/dsm/checkpoints"


@pytest.fixture
def pair(tmp_path):
    """Two workdirs with the same content, made at other times."""
    for name, seconds in (("reference", 1.5), ("workdir", 2.5)):
        folder = tmp_path / name
        files.write_arrays(folder / "samples" / "dsm.npz", {"images": np.arange(4)})
        files.write_json(folder / "units" / "score-dsm.json", {"unit": "score/dsm", "seconds": seconds})
        files.write_json(folder / "metrics.json", {"methods": {"dsm": {"cas": 0.5}}, "seconds": {"score/dsm": seconds}})
        files.write_text(folder / "report.html", f"<p>{seconds}</p>")
        files.write_json(folder / CHECKPOINTS / "00000020.json", {"step": 20})
    return tmp_path / "reference", tmp_path / "workdir"


def test_runs_that_differ_in_times_alone_are_the_same(pair):
    reference, workdir = pair
    files.write_json(workdir / CHECKPOINTS / "00000013.json", {"step": 13})  # a stop out of turn
    assert soak.differences(*pair) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: (w / "metrics.json").unlink(), "metrics.json is missing"),
        (lambda w: (w / "samples" / ".dsm.npz.x.partial").touch(), "samples/.dsm.npz.x.partial is left over"),
        (lambda w: files.write_arrays(w / "samples" / "dsm.npz", {"images": np.arange(5)}), "samples/dsm.npz differs"),
        (lambda w: files.write_json(w / "metrics.json", {"methods": {"dsm": {"cas": 0.4}}}), "metrics.json differs"),
        (
            lambda w: (w / CHECKPOINTS / "00000020.json").rename(w / CHECKPOINTS / "00000019.json"),
            f"checkpoint {CHECKPOINTS}/00000019.json on one side only",
        ),
    ],
)  # fmt: skip
def test_what_differs_is_named(pair, change, said):
    change(pair[1])
    assert said in soak.differences(*pair)


def test_files_are_whole_or_marked_as_being_written(pair):
    _, workdir = pair
    assert soak.broken_files(workdir) == []
    (workdir / "samples" / ".tdsm.npz.abc.partial").write_bytes(b"PK")
    assert soak.broken_files(workdir) == []
    content = (workdir / "samples" / "dsm.npz").read_bytes()
    (workdir / "samples" / "dsm.npz").write_bytes(content[:-30])
    (workdir / "metrics.json").write_text('{"methods": ')
    assert [path.name for path in soak.broken_files(workdir)] == ["metrics.json", "dsm.npz"]


def test_the_report_counts_kills_and_problems():
    killed = {"run": 0, "processes": 2, "signal": "SIGKILL", "hit": 1, "unit": "score/dsm"}
    killed |= {"finished": False, "problems": []}
    ended = killed | {"unit": "report", "finished": True, "problems": ["a.npz is left over", "b.npz differs"]}
    said = soak.table([killed, killed | {"signal": "SIGTERM", "unit": "start"}, ended])
    assert said.startswith("2 kills, 1 runs finished; 2 problems, 1 of them orphaned or half-written files.")
    assert "| score | 1 |  |" in said and "| all | 1 | 1 |" in said and "- b.npz differs" in said


def test_bad_arguments_end_in_one_line(tmp_path):
    for wrong in ("--processes=1,x", "--cycles=0"):
        done = call("soak", f"--out={tmp_path}", wrong)
        assert done.returncode == 2 and "must be whole numbers of at least 1" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_few_kills_leave_no_trace(tmp_path):
    command = [sys.executable, "-m", "tdsm_jax.benchmark", "soak", f"--out={tmp_path}", "--cycles=6", "--processes=1,2"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in (tmp_path / "cycles.jsonl").read_text().splitlines()]
    kills = sum(map(soak.was_killed, records))
    assert kills >= 6  # a run that is begun is brought to its end
    assert f"{kills} kills" in (tmp_path / "report.md").read_text()
