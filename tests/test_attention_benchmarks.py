"""Benchmarks of attention: what they time and compare is what they say, and the table holds what is finished."""

import argparse
import json

import jax
import numpy as np
import pytest

from tdsm_jax.benchmark import attention, windows
from tdsm_jax.errors import UserError
from test_attention import seen_by
from test_benchmark import call

SHAPE = attention.Shape(batch=2, heads=2, channels=4, window=3, dtype="float32")


def test_each_kind_is_the_attention_of_its_name():
    """The window in the row of tokens is as long as the neighbourhood is large."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 25, 2, 4))
    masks = {"window": seen_by((25,), 9), "neighbourhood": seen_by((5, 5), 3)}
    for name, function in attention.kinds(SHAPE, 5).items():
        mask = masks.get(name, np.ones((25, 25), bool))
        expected = jax.nn.dot_product_attention(q, k, v, mask=mask[None, None])
        np.testing.assert_allclose(function(q, k, v), expected, atol=1e-5, err_msg=name)


def test_attention_is_measured_by_one_command(tmp_path):
    arguments = ("--tokens=16,64", "--batch=1", "--heads=1", "--channels=4", "--window=3", "--rounds=3")
    written, drawn = tmp_path / "attention.json", tmp_path / "attention.svg"
    done = call("attention", *arguments, f"--json={written}", f"--plot={drawn}")
    assert done.returncode == 0, done.stderr[-3000:]
    records = json.loads(written.read_text())
    assert {(r["kind"], r["part"], r["tokens"]) for r in records} == {
        (kind, part, tokens)
        for kind in ("full", "full, chunked", "window", "neighbourhood")
        for part in attention.PARTS
        for tokens in (16, 64)
    }
    assert all(r["milliseconds"] > 0 and r["temporary_bytes"] >= 0 and r["versions"] for r in records)
    full = [line for line in done.stdout.splitlines() if "| full |" in line]
    assert len(full) == 4 and all(line.split("|")[4].strip() == "1" for line in full)
    assert "neighbourhood" in drawn.read_text()


@pytest.mark.parametrize(
    ("tokens", "window", "said"), [(60, 3, "60 are no square grid; 49 or 64 are"), (16, 5, "larger than the 4x4 grid")]
)
def test_tokens_that_are_no_grid_for_the_window_are_refused(tokens, window, said):
    with pytest.raises(UserError, match=said):
        attention.side_of(tokens, window)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attentions": "windows"}, "did you mean 'window'?"),
        ({"jobs": 0}, "must be at least 1"),
        ({"seeds": "0,x"}, "--seeds=0,x must be whole numbers"),
    ],
)
def test_cells_that_cannot_be_are_refused_before_any_runs(changes, said, tmp_path):
    given = {"out": str(tmp_path / "none"), "seeds": "0", "attentions": "full", "jobs": 1, "window": 3} | changes
    with pytest.raises(UserError) as error:
        windows.main(argparse.Namespace(**given))
    assert said in str(error.value) and not (tmp_path / "none").exists()


def finish(out, name, seed, fidelity):
    """Puts what a finished cell leaves."""
    folder = windows.folder_of(out, name, seed)
    (folder / "measures" / "clean").mkdir(parents=True)
    metrics = dict.fromkeys(windows.SHOWN, 0.5) | {"label_fidelity": fidelity}
    (folder / "measures" / "clean" / "metrics.json").write_text(json.dumps(metrics))
    (folder / "samples").mkdir()
    images = np.zeros((20, 8, 8, 1), np.uint8)
    np.savez(folder / "samples" / "clean.npz", images=images, labels=np.arange(20) % 10)


def test_the_table_takes_what_is_finished_and_the_page_shows_the_same_seed(tmp_path):
    for name, seed, fidelity in (("full", 0, 0.9), ("full", 1, 0.8), ("window", 1, 0.7)):
        finish(tmp_path, name, seed, fidelity)
    command = ("windows", f"--out={tmp_path}", "--table_only", "--attentions=full,window")
    done = call(*command)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[2].startswith("| full | 0, 1 | 0.850 ± 0.071 |") and lines[3].startswith("| window | 1 | 0.700 |")
    page = (tmp_path / "windows.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "Seed 1, one class a row" in page
    assert '<th scope="row">full</th><td>0, 1</td>' in page and page.count("<span>9</span>") == 2


def test_cells_differ_by_the_attention_alone(tmp_path, monkeypatch):
    """Each in a folder of its own, a share of the cores to each of those at work at a time."""
    calls = {}

    def run_cell(folder, config, stages, overrides, rest):
        calls[folder] = (config, stages, tuple(overrides), tuple(rest))

    monkeypatch.setattr(windows, "run_cell", run_cell)
    parsed = argparse.Namespace(config="c.py:rate=0.2", method="clean", window=3, smoke=True, rest=["--x=1"])
    windows.run_all([(parsed, tmp_path, name, seed) for seed in (0, 1) for name in windows.PATTERNS], jobs=4)
    assert calls[tmp_path / "neighbourhood" / "seed1"] == (
        "c.py:rate=0.2,network=dit,attention=neighbourhood,methods=clean,seed=1,smoke",
        windows.CLEAN_STAGES,
        ("dit.window=3",),
        ("--x=1",),
    )
    assert calls[tmp_path / "window" / "seed0"][2] == ("dit.window=9",) and len(calls) == 6


def test_cells_run_where_threads_have_no_cores_of_their_own(monkeypatch):
    for name in ("sched_getaffinity", "sched_setaffinity"):  # as on macOS
        monkeypatch.delattr(windows.os, name)
    ran = []
    monkeypatch.setattr(windows, "run", lambda number: ran.append(number))
    windows.run_all([(1,), (2,), (3,)], jobs=2)
    assert sorted(ran) == [1, 2, 3]


def test_a_cell_that_fails_is_not_passed_over(tmp_path, monkeypatch):
    def run(*cell):
        raise UserError(f"{cell} ended")

    monkeypatch.setattr(windows, "run", run)
    with pytest.raises(UserError, match="ended"):
        windows.run_all([(1,), (2,)], jobs=2)


@pytest.mark.slow
def test_the_comparison_runs_in_small(tmp_path):
    steps = "--config.score.steps=2"
    done = call("windows", f"--out={tmp_path}", "--smoke", "--seeds=0", "--attentions=full,neighbourhood", "--", steps)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| neighbourhood | 0 |" in done.stdout and (tmp_path / "windows.html").exists()
