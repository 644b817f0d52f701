"""Cells of comparisons: what is asked for reaches the run, and one that fails says so."""

import json
import subprocess

import pytest

from tdsm_jax.benchmark import cells
from tdsm_jax.errors import UserError


def test_arguments_are_added_to_a_config_with_or_without_some():
    assert cells.with_arguments("c.py", "noise=sym", "", "seed=1") == "c.py:noise=sym,seed=1"
    assert cells.with_arguments("c.py:rate=0.2", "seed=1", "smoke") == "c.py:rate=0.2,seed=1,smoke"
    assert cells.with_arguments("c.py", "") == "c.py"


def test_a_cell_is_a_run_whose_last_word_is_the_users(tmp_path, monkeypatch):
    calls = []
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command) or done)
    cells.run_cell(tmp_path, "c.py:seed=1", "score,sample", ["score.steps=5"], ["--config.score.steps=7"])
    (command,) = calls
    assert command[1:3] == ["-m", "tdsm_jax.main"]
    assert command[3:6] == ["--config=c.py:seed=1", f"--workdir={tmp_path}", "--stages=score,sample"]
    assert command[6:] == ["--config.score.steps=5", "--config.score.steps=7"]


def test_a_run_that_fails_ends_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cell ended with exit code 2; its error stands above"):
        cells.run_cell(tmp_path / "cell", "configs/none.py", "labels")


def test_measures_are_there_once_a_method_is_measured(tmp_path):
    assert cells.measures(tmp_path, "dsm") is None
    folder = tmp_path / "measures" / "dsm"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"cas": 0.5}))
    assert cells.measures(tmp_path, "dsm") == {"cas": 0.5}


def test_seeds_are_whole_numbers():
    assert cells.read_seeds("0,2") == [0, 2]
    with pytest.raises(UserError, match="--seeds=0,x must be whole numbers joined by commas"):
        cells.read_seeds("0,x")
