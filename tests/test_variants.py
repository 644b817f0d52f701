"""The comparison of variants: cells differ by their keys alone, and the table holds what is finished."""

import argparse
import json
import os
import threading

import numpy as np
import pytest

from tdsm_jax.benchmark import variants
from tdsm_jax.benchmark.cells import carry_out, config_with
from tdsm_jax.errors import UserError
from test_benchmark import call

WINDOW = "dit.attention=window dit.window=9"


def arguments(**changes):
    given = {"config": "configs/digits.py", "method": "clean", "seeds": "0", "variant": ["score.weighting=p2"]}
    return argparse.Namespace(**given | {"jobs": 1, "smoke": True, "table_only": False, "keys": []} | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"variant": ["score.weightin=p2"]}, "did you mean 'score.weighting'?"),
        ({"variant": ["score.weighting=p3"]}, "score.weighting: 'p3' is not a choice; did you mean 'p2'?"),
        ({"variant": ["score.steps"]}, "'score.steps' is no config key with its value"),
        ({"variant": [" "]}, "--variant is empty"),
        ({"variant": ["init_from=/a", "init_from=_a"]}, "two variants would have one folder"),
        ({"keys": ["classifier.init_from=/none.npz", "classifier.folds=1"]}, "/none.npz: no such file"),
        ({"variant": ["network.multipliers=(1,2,2,2,2)"]}, "halves"),
        ({"variant": ["score.clip_percentile=None"]}, "score.clip_percentile=None is not of type float"),
        ({"variant": ["seed=3"]}, "share one method, the seeds and the task"),
        ({"variant": ["methods=('dsm',)"]}, "share one method, the seeds and the task"),
        ({"keys": ["task=robust_losses"]}, "share one method, the seeds and the task"),
        ({"keys": ["score.steps=many"]}, "config key score.steps='many' is not of type int"),
        ({"keys": ["score.stepz=3"], "table_only": True}, "did you mean 'score.steps'?"),
        ({"method": "cleen"}, "did you mean 'clean'?"),
        ({"method": "dsm+tdsm"}, "share one method, the seeds and the task"),
        ({"jobs": 0}, "must be at least 1"),
        ({"seeds": "0,x"}, "--seeds=0,x must be whole numbers"),
        ({"seeds": "0,-1"}, "seed"),
    ],
)
def test_cells_that_cannot_be_are_refused_before_any_runs(changes, said, tmp_path):
    with pytest.raises(UserError) as error:
        variants.main(arguments(out=str(tmp_path / "none"), **changes))
    assert said in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "none").exists()


def finish(out, variant, seed, fidelity, method="clean"):
    """Puts what a finished cell leaves."""
    folder = variants.folder_of(out, variant, seed)
    (folder / "measures" / method).mkdir(parents=True)
    metrics = dict.fromkeys(variants.SHOWN, 0.5) | {"label_fidelity": fidelity}
    (folder / "measures" / method / "metrics.json").write_text(json.dumps(metrics))
    (folder / "samples").mkdir()
    images = np.zeros((20, 8, 8, 1), np.uint8)
    np.savez(folder / "samples" / f"{method}.npz", images=images, labels=np.arange(20) % 10)


@pytest.fixture
def unchecked(monkeypatch):
    """Cells are taken as they are: what `finish` puts has no manifests."""
    monkeypatch.setattr(variants, "check", lambda cell, method: None)


@pytest.mark.parametrize("method", ["clean", "dsm"])
def test_the_table_takes_what_is_finished_and_the_page_shows_the_same_seed(method, unchecked, tmp_path, capsys):
    for variant, seed, fidelity in ((variants.AS_IT_IS, 0, 0.9), (variants.AS_IT_IS, 1, 0.8), (WINDOW, 1, 0.7)):
        finish(tmp_path, variant, seed, fidelity, method)
    given = {"config": "configs/digits.py:network=dit", "variant": [WINDOW], "method": method, "seeds": "0,1,1"}
    variants.main(arguments(out=str(tmp_path), table_only=True, **given))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| as_configured | 0, 1 | 0.850 ± 0.071 |")
    assert lines[3].startswith(f"| {WINDOW} | 1 | 0.700 |") and len(lines) == 4
    page = (tmp_path / "variants.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "Seed 1, one class a row" in page
    assert f'<th scope="row">{WINDOW}</th><td>1</td>' in page and page.count("<span>9</span>") == 2


def test_a_variant_with_nothing_finished_has_no_row_and_no_picture(unchecked, tmp_path, capsys):
    finish(tmp_path, variants.AS_IT_IS, 0, 0.9)
    variants.main(arguments(out=str(tmp_path), table_only=True))
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert "data:image/png" not in (tmp_path / "variants.html").read_text()


def test_cells_of_other_keys_are_refused_and_theirs_are_not(tmp_path):
    steps = ["label_noise.rate=0.0", "score.steps=2"]
    job = carry_out_cell(tmp_path, steps)
    variants.check(job, "clean")
    with pytest.raises(UserError, match=r"score.steps: 2 -> 3\); give its keys again, or another --out"):
        variants.check(job._replace(keys=job.keys | {"score.steps": 3}), "clean")


def carry_out_cell(out, keys):
    """The first cell of some arguments, trained."""
    cell = variants.planned(arguments(out=str(out), keys=keys))[0]
    carry_out(config_with(cell.specification, cell.keys), cell.folder, ("score",))
    return cell


def test_cells_differ_by_their_keys_alone(tmp_path, monkeypatch):
    """Each in a folder of its own; a variant has the last word over the keys of all."""
    calls = {}

    def run_cell(folder, config, stages, overrides):
        calls[folder.relative_to(tmp_path).as_posix()] = (config, stages, tuple(overrides))

    monkeypatch.setattr(variants, "run_cell", run_cell)
    given = arguments(
        out=str(tmp_path),
        config="configs/digits.py:network=dit",
        variant=[WINDOW, " score.steps=9", "score.steps=9", "dit.window=9 dit.attention='window'"],
        keys=["score.steps=7"],
        seeds="0,1",
        jobs=4,
        smoke=False,
    )
    variants.main(given)
    names = ("as_configured", "dit.attention=window,dit.window=9", "score.steps=9")
    assert set(calls) == {f"{name}/seed{seed}" for name in names for seed in (0, 1)}
    config = "configs/digits.py:network=dit,methods=clean,seed=1"
    stages = "score,sample,judge,measure"
    assert calls["as_configured/seed1"] == (config, stages, ("score.steps=7",))
    assert calls["score.steps=9/seed1"] == (config, stages, ("score.steps=9",))
    assert calls["dit.attention=window,dit.window=9/seed1"] == (
        config,
        stages,
        ("score.steps=7", "dit.attention=window", "dit.window=9"),
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads have no cores of their own here")
def test_cells_at_work_at_a_time_share_the_cores(monkeypatch):
    monkeypatch.setattr(variants.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    shares, both = [], threading.Barrier(2, timeout=30)
    monkeypatch.setattr(variants.os, "sched_setaffinity", lambda pid, cores: shares.append(cores))
    monkeypatch.setattr(variants, "run", lambda number: both.wait())
    variants.run_all([1, 2], jobs=2)
    assert sorted(shares, key=min) == [{0, 2}, {1, 3}]


def test_cells_run_where_threads_have_no_cores_of_their_own(monkeypatch):
    for name in ("sched_getaffinity", "sched_setaffinity"):  # as on macOS
        monkeypatch.delattr(variants.os, name, raising=False)
    ran = []
    monkeypatch.setattr(variants, "run", lambda number: ran.append(number))
    variants.run_all([1, 2, 3], jobs=2)
    assert ran == [1, 2, 3]


def test_a_cell_that_fails_is_not_passed_over_and_the_others_are_shown(unchecked, tmp_path, monkeypatch, capsys):
    def run(cell):
        if cell.variant != variants.AS_IT_IS:
            raise UserError(f"{cell.folder} ended")
        finish(tmp_path, cell.variant, cell.seed, 0.9)

    monkeypatch.setattr(variants, "run", run)
    with pytest.raises(UserError, match="ended"):
        variants.main(arguments(out=str(tmp_path)))
    assert "| as_configured | 0 | 0.900 |" in capsys.readouterr().out and (tmp_path / "variants.html").exists()


def test_an_interruption_leaves_what_has_not_begun(monkeypatch):
    ran = []

    def run(number):
        ran.append(number)
        raise KeyboardInterrupt

    monkeypatch.setattr(variants, "run", run)
    with pytest.raises(KeyboardInterrupt):
        variants.run_all(range(50), jobs=1)
    assert len(ran) < 50


@pytest.mark.slow
def test_the_comparison_runs_in_small(tmp_path):
    chosen = ("--variant=score.weighting=min_snr", "--variant=score.optimiser=adopt score.clip_percentile=90")
    done = call("variants", f"--out={tmp_path}", "--smoke", "--seeds=0", *chosen, "score.steps=2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| score.weighting=min_snr | 0 |" in done.stdout and (tmp_path / "variants.html").exists()
