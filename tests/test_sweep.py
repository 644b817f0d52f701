"""Sweeps of a model through the command, judged by a small run that has the method corrected too."""

import json
import pathlib
import re
import runpy
import signal
import sys

import numpy as np
import pytest

from tdsm_jax import config as configuration
from tdsm_jax import files, sweep
from tdsm_jax.benchmark.cells import carry_out
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import sweep_page
from test_pipeline import write_units

DIGITS = configuration.load_module(pathlib.Path(__file__).parents[1] / "configs" / "digits.py")
STAGES = ("labels", "classifier", "transition", "score", "sample", "judge")
FEW = ("--per_class=8", "--steps=2,4", "--at_steps=4", "--batch_size=40", "--no_cas")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished small run, of seed 3."""
    config = DIGITS.get_config("smoke,methods=dsm+corrected,seed=3")
    config.correction.limit = 4.0
    config.sampling.guidance = 2.0
    config.classifier.update(folds=1, steps=10)
    config.logging.update(log_every=10, save_every=10)
    return carry_out(config, tmp_path_factory.mktemp("run"), STAGES)


@pytest.fixture
def call(monkeypatch, capsys, run):
    before = signal.getsignal(signal.SIGTERM)

    def command(*arguments):
        given = (f"--checkpoint={run.workdir}/score/dsm", f"--run={run.workdir}", *FEW)
        named = {argument.partition("=")[0] for argument in arguments}
        left = [argument for argument in given if argument.partition("=")[0] not in named]
        monkeypatch.setattr(sys, "argv", ["sweep", *left, *map(str, arguments)])
        monkeypatch.delitem(sys.modules, "tdsm_jax.sweep", raising=False)  # or runpy warns
        code = 0
        try:
            runpy.run_module("tdsm_jax.sweep", run_name="__main__")
        except SystemExit as ending:
            code = ending.code
        return code, *capsys.readouterr()

    yield command
    signal.signal(signal.SIGTERM, before)


def test_a_run_corrects_what_it_has_trained_already(run):
    """One training, two methods: the second costs an evaluation of the classifiers a step, and no other model."""
    samples = {m: files.read_arrays(run.workdir / "samples" / f"{m}.npz")["images"] for m in ("dsm", "corrected")}
    assert (samples["dsm"] != samples["corrected"]).any()
    assert not (run.workdir / "score" / "corrected").exists()
    costs = [files.read_json(run.workdir / "samples" / f"{m}.json") for m in samples]
    assert [cost["evaluations"] for cost in costs] == [14, 14]  # w = 2: D_null serves both
    assert [cost["classifier_evaluations"] for cost in costs] == [0, 7]


@pytest.mark.slow
def test_a_corrected_model_is_measured_and_reported_like_any_other(run):
    carry_out(run.config, run.workdir, (*STAGES, "measure", "report"))
    metrics = json.loads((run.workdir / "metrics.json").read_text())
    assert metrics["evaluations"] == {"dsm": 14, "corrected": 14}
    assert 0 <= metrics["methods"]["corrected"]["label_fidelity"] <= 1
    assert "Evaluations of the network an image: DSM 14, Corrected 14" in (run.workdir / "report.html").read_text()


def test_a_sweep_draws_judges_resumes_and_grows(run, call, tmp_path):
    out = tmp_path / "sweep"
    code, printed, errors = call(f"--out={out}", "--guidance=1,2", "--solvers=heun,dpmpp_2m")
    assert code == 0, errors
    found = json.loads((out / "sweep.json").read_text())
    cells = {(c["solver"], c["guidance"], c["steps"]): c for c in found["cells"]}
    assert set(cells) == {(s, w, n) for s in ("heun", "dpmpp_2m") for w, n in ((1, 4), (2, 4), (1, 2))}
    evaluations = {key: cell["evaluations"] for key, cell in cells.items() if key[0] == "heun"}
    assert evaluations == {("heun", 1, 4): 7, ("heun", 2, 4): 14, ("heun", 1, 2): 3}
    assert "cas" not in cells["heun", 1, 4]["metrics"] and found["settings"]["cas"] is False
    page, table = (out / "sweep.html").read_text(), (out / "sweep.md").read_text()
    assert (
        page.count("data:image/png") == 4
        and page.count("<svg xmlns") >= 2 * 3
        and "http" not in page.replace("http://www.w3.org/2000/svg", "")
    )
    assert table.count("\n| ") == 7 - 1 and "| heun | 2 | 4 | 14 |" in table and table in printed

    untimed = files.read_json(out / "cells" / "heun-w1-2steps.json") | {"images_per_second": None}
    files.write_json(out / "cells" / "heun-w1-2steps.json", untimed)  # as a process leaves it that drew no image
    for cell in ("heun-w1-2steps", "euler-w1-2steps"):
        files.write_text(out / "cells" / f"{cell}.parts" / "0", "")
    before = {path.name: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    (out / "cells" / "heun-w2-4steps.json").unlink()
    code, printed, errors = call(f"--out={out}", "--guidance=1,2", "--solvers=heun,dpmpp_2m", "--at_guidance=1")
    assert code == 0 and printed.count("[") == 1 and "[2/6] heun-w2-4steps" in printed, errors
    after = {path.name: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"heun-w2-4steps.json", "heun-w2-4steps.npz"}
    assert [path.name for path in (out / "cells").glob("*.parts")] == ["euler-w1-2steps.parts"]  # which goes on
    assert re.search(r"\| heun \| 1 \| 2 \| 3 \| – \|", printed)
    again = json.loads((out / "sweep.json").read_text())["cells"]
    assert [c["metrics"] for c in again] == [c["metrics"] for c in found["cells"]]

    code, _, errors = call(f"--out={out}", "--per_class=9")
    assert code == 2 and "of another per_class" in errors


def test_cells_draw_the_images_of_the_run(run, call, tmp_path):
    out = tmp_path / "corrected"
    code, _, errors = call(f"--out={out}", "--guidance=2", "--steps=4", "--at_guidance=2", "--seed=3", "--corrected")
    assert code == 0, errors
    kept = files.read_arrays(out / "cells" / "heun-w2-4steps.npz")["images"]
    made = files.read_arrays(run.workdir / "samples" / "corrected.npz")["images"]
    np.testing.assert_array_equal(kept, made[: len(kept)])
    assert json.loads((out / "settings.json").read_text())["corrected"] == {"limit": 4.0, "slots": 9}
    code, _, errors = call(f"--out={out}", "--guidance=2", "--seed=3", "--corrected", "--limit=2")
    assert code == 2 and "of another corrected" in errors


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--solvers=hoin",), "did you mean 'heun'?"),
        (("--steps=4,x",), "--steps=4,x must be whole numbers of at least 1, joined by commas"),
        (("--at_steps=4,8",), "--at_steps=4,8 must be one number; --steps takes those to sweep"),
        (("--at_guidance=1,2",), "--at_guidance=1,2 must be one number; --guidance takes those to sweep"),
        (("--guidance=-1",), "--guidance=-1 must be numbers of at least 0"),
        (("--run=nowhere",), "no folder of a run whose small judge is fitted"),
        (("--limit=3",), "--limit must be at least 1, and belongs to --corrected"),
        (("--solvers=stochastic_heun",), "needs --churn above 0"),
        (("--checkpoint=nowhere",), "--checkpoint=nowhere: no such file or folder"),
    ],
)
def test_what_cannot_be_swept_is_said_in_one_line(call, tmp_path, given, said):
    code, _, errors = call(f"--out={tmp_path / 'out'}", *given)
    assert code == 2 and said in errors and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_cell_reads_only_what_means_something_to_it():
    others = sweep.Sampling(
        batch_size=8, churn=10.0, guidance_rescale=0.7, adaptive_guidance=0.9, guidance_interval=(1.0, 2.0)
    )
    plain = sweep.Cell("heun", 1.0, 4).sampling(others)
    assert plain == sweep.Sampling(batch_size=8, steps=4)
    null = sweep.Cell("stochastic_heun", 0.0, 4).sampling(others)
    assert (null.churn, null.guidance_rescale, null.guidance_interval) == (10.0, 0.0, (1.0, 2.0))
    assert sweep.Cell("heun", 2.0, 4).sampling(others).guidance_rescale == 0.7


def test_a_curve_moves_one_setting():
    cells = [
        {"solver": s, "guidance": w, "steps": n}
        for s in ("heun", "euler")
        for w, n in ((2, 18), (0, 18), (0, 4), (5, 9))
    ]
    at = {"guidance": 0, "steps": 18}
    found = sweep_page.lines(cells, "guidance", at)
    assert {s: [c["guidance"] for c in own] for s, own in found.items()} == {"heun": [0, 2], "euler": [0, 2]}
    assert [c["steps"] for c in sweep_page.lines(cells, "steps", at)["heun"]] == [4, 18]


def test_a_cell_asked_for_twice_is_one():
    class Asked:
        guidances, step_counts, solvers, at_steps, at_guidance = "1,2", "4,18", "heun", "18", "1"

    names = [cell.name for cell in sweep.asked_cells(Asked)]
    assert names == ["heun-w1-18steps", "heun-w2-18steps", "heun-w1-4steps"]


def test_cells_of_nearly_one_guidance_are_two():
    names = [sweep.Cell("heun", w, 4).name for w in (1.23456789, 1.2345678, 2.0, 0.0)]
    assert names == ["heun-w1.23456789-4steps", "heun-w1.2345678-4steps", "heun-w2-4steps", "heun-w0-4steps"]


def test_a_cell_that_was_drawn_before_it_could_be_timed_is_a_dash():
    cell = {"solver": "heun", "guidance": 1.5, "steps": 4, "evaluations": 7.0, "images_per_second": None, "metrics": {}}
    assert "| heun | 1.5 | 4 | 7 | – |" in sweep_page.markdown([cell])
    at, images = {"guidance": 1, "steps": 4}, [np.zeros((2, 4, 4, 1), np.uint8)]
    page = sweep_page.render("title", [cell], at, images, {}, {})
    assert '<tr><th scope="row">heun</th><td>1.5</td><td>4</td><td>7</td><td>–</td></tr>' in page


def test_a_judge_is_read_with_the_config_that_it_was_fitted_by(tmp_path):
    """Not with that of what was begun, or left over, beside it."""
    write_units(tmp_path, judge={"seed": 3, "evaluation.widths": [8]}, zebra={"seed": 7, "finished": False})
    assert sweep.finished_run(str(tmp_path)).config.seed == 3
    write_units(tmp_path, transition={"seed": 4, "classifier.folds": 1}, report={"seed": 9})
    config = sweep.finished_run(str(tmp_path)).config  # the page is not of this judge
    assert config.seed == 3 and config.evaluation.widths == (8,) and config.classifier.folds != 1
    with pytest.raises(UserError, match="judge and transition are of runs with other configs .seed: 3 and 4"):
        sweep.finished_run(str(tmp_path), corrected=True)
    write_units(tmp_path, transition={"seed": 3, "classifier.folds": 1})
    assert sweep.finished_run(str(tmp_path), corrected=True).config.classifier.folds == 1
    write_units(tmp_path, report={"unit judge": None, "label_noise.rate": 0.25})
    assert sweep.finished_run(str(tmp_path)).config.label_noise.rate == 0.25


def test_a_folder_without_a_judge_is_no_judge(tmp_path):
    with pytest.raises(UserError, match="run its stage judge first"):
        sweep.finished_run(str(tmp_path))
