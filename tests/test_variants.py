"""The comparison of variants: cells differ by their keys alone, and the table holds what is finished."""

import argparse
import json

import numpy as np
import pytest

from tdsm_jax.benchmark import variants
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
        ({"keys": ["score.steps=many"]}, "config key score.steps='many' is not of type int"),
        ({"method": "cleen"}, "did you mean 'clean'?"),
        ({"jobs": 0}, "must be at least 1"),
        ({"seeds": "0,x"}, "--seeds=0,x must be whole numbers"),
    ],
)
def test_cells_that_cannot_be_are_refused_before_any_runs(changes, said, tmp_path):
    with pytest.raises(UserError, match=said) as error:
        variants.main(arguments(out=str(tmp_path / "none"), **changes))
    assert "\n" not in str(error.value) and not (tmp_path / "none").exists()


def finish(out, variant, seed, fidelity):
    """Puts what a finished cell leaves."""
    folder = variants.folder_of(out, variant, seed)
    (folder / "measures" / "clean").mkdir(parents=True)
    metrics = dict.fromkeys(variants.SHOWN, 0.5) | {"label_fidelity": fidelity}
    (folder / "measures" / "clean" / "metrics.json").write_text(json.dumps(metrics))
    (folder / "samples").mkdir()
    images = np.zeros((20, 8, 8, 1), np.uint8)
    np.savez(folder / "samples" / "clean.npz", images=images, labels=np.arange(20) % 10)


def test_the_table_takes_what_is_finished_and_the_page_shows_the_same_seed(tmp_path):
    for variant, seed, fidelity in ((variants.AS_IT_IS, 0, 0.9), (variants.AS_IT_IS, 1, 0.8), (WINDOW, 1, 0.7)):
        finish(tmp_path, variant, seed, fidelity)
    done = call(
        "variants", f"--out={tmp_path}", "--table_only", "--config=configs/digits.py:network=dit", f"--variant={WINDOW}"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[2].startswith("| as configured | 0, 1 | 0.850 ± 0.071 |")
    assert lines[3].startswith(f"| {WINDOW} | 1 | 0.700 |")
    page = (tmp_path / "variants.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "Seed 1, one class a row" in page
    assert f'<th scope="row">{WINDOW}</th><td>1</td>' in page and page.count("<span>9</span>") == 2


def test_cells_differ_by_their_keys_alone(tmp_path, monkeypatch):
    """Each in a folder of its own; a variant has the last word over the keys of all."""
    calls = {}

    def run_cell(folder, config, stages, overrides):
        calls[folder.relative_to(tmp_path).as_posix()] = (config, stages, tuple(overrides))

    monkeypatch.setattr(variants, "run_cell", run_cell)
    given = arguments(
        out=str(tmp_path),
        config="configs/digits.py:network=dit",
        variant=[WINDOW, " dit.window=1", "dit.window=1"],
        keys=["score.steps=7"],
        seeds="0,1",
        jobs=4,
    )
    variants.main(given)
    names = ("as_configured", "dit.attention=window,dit.window=9", "dit.window=1")
    assert set(calls) == {f"{name}/seed{seed}" for name in names for seed in (0, 1)}
    config = "configs/digits.py:network=dit,methods=clean,seed=1,smoke"
    stages = "images,labels,score,sample,judge,measure"
    assert calls["as_configured/seed1"] == (config, stages, ("score.steps=7",))
    assert calls["dit.attention=window,dit.window=9/seed1"] == (
        config,
        stages,
        ("score.steps=7", "dit.attention=window", "dit.window=9"),
    )


def test_a_method_that_reads_classifiers_has_them_fitted(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(variants, "run_cell", lambda folder, config, stages, keys: asked.update({config: stages}))
    for method in ("dsm", "tdsm"):
        variants.main(arguments(out=str(tmp_path), method=method))
    plain, full = asked.values()
    assert "classifier" not in plain.split(",") and {"classifier", "transition"} <= set(full.split(","))
    assert "report" not in full.split(",")


def test_cells_run_where_threads_have_no_cores_of_their_own(monkeypatch):
    for name in ("sched_getaffinity", "sched_setaffinity"):  # as on macOS
        monkeypatch.delattr(variants.os, name)
    ran = []
    monkeypatch.setattr(variants, "run", lambda number: ran.append(number))
    variants.run_all([(1,), (2,), (3,)], jobs=2)
    assert sorted(ran) == [1, 2, 3]


def test_a_cell_that_fails_is_not_passed_over(monkeypatch):
    def run(*cell):
        raise UserError(f"{cell} ended")

    monkeypatch.setattr(variants, "run", run)
    with pytest.raises(UserError, match="ended"):
        variants.run_all([(1,), (2,)], jobs=2)


@pytest.mark.slow
def test_the_comparison_runs_in_small(tmp_path):
    chosen = ("--variant=score.weighting=min_snr", "--variant=score.optimiser=adopt score.clip_percentile=90")
    done = call("variants", f"--out={tmp_path}", "--smoke", "--seeds=0", *chosen, "score.steps=2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| score.weighting=min_snr | 0 |" in done.stdout and (tmp_path / "variants.html").exists()
