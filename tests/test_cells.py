"""Cells of comparisons: what is asked for reaches the run, and one that fails says so."""

import argparse
import json
import pathlib
import subprocess

import pytest
from ml_collections import FrozenConfigDict

from tdsm_jax.benchmark import cells, label_noise
from tdsm_jax.errors import UserError
from tdsm_jax.run import Run


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


def test_a_row_of_the_noise_table_takes_the_seeds_that_its_method_has(tmp_path):
    metrics = dict.fromkeys(("cas", "cw_fd", "cw_density", "cw_coverage"), 0.5)

    def finish(noise, seed, method, fidelity):
        folder = label_noise.Cell(noise, seed).folder(tmp_path) / "measures" / method
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(metrics | {"label_fidelity": fidelity}))

    sym = ("sym", 0.4)
    for seed, clean in ((0, 1.0), (1, 0.8)):
        finish(sym, seed, "dsm", 0.5)
        finish(None, seed, "clean", clean)
    finish(sym, 0, "posterior", 0.9)
    finish(sym, 2, "tdsm_all", 0.7)
    found = label_noise.results(tmp_path, sym, ("dsm", "posterior", "tdsm_all", "relabel"), [0, 1, 2])
    printed = label_noise.table(sym, found)
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in printed.splitlines()[4:]
    }
    assert rows["dsm"][:2] == ["0, 1", "0.500 ± 0.000"] and rows["dsm"][-1] == ""
    assert rows["posterior"][:2] == ["0", "0.900"] and rows["posterior"][-1] == "0.800"
    assert rows["tdsm_all"][0] == "2" and rows["tdsm_all"][-1] == ""  # no ceiling of its seed
    assert rows["clean"][:2] == ["0, 1", "0.900 ± 0.141"]
    assert "relabel" not in rows
    for method, evaluations, rate, folder in (("dsm", 35, 50.0, "sym0.4"), ("posterior", 70, 20.0, "sym0.4")):
        at = tmp_path / folder / "seed0"
        (at / "samples").mkdir(exist_ok=True)
        (at / "units").mkdir(exist_ok=True)
        cost = {"evaluations": evaluations, "classifier_evaluations": 0.0, "images_per_second": rate}
        (at / "samples" / f"{method}.json").write_text(json.dumps(cost))
        unit = {"unit": f"score/{method}", "finished": True, "seconds": 12.0}
        (at / "units" / f"score-{method}.json").write_text(json.dumps(unit))
    printed = label_noise.cost_table(tmp_path, sym, found)
    assert "| posterior | 12 | 70 | 0 | 0.40 |" in printed and "| dsm | 12 | 35 | 0 | 1.00 |" in printed
    assert "clean" not in printed  # not sampled yet
    assert "| posterior | 0.800 |" in label_noise.overview({sym: found})


def test_cost_counts_what_a_method_goes_on_from_and_leaves_out_a_rate_that_nobody_knows(tmp_path):
    sym = ("sym", 0.4)
    folder = label_noise.Cell(sym, 0).folder(tmp_path)
    for name in ("samples", "units"):
        (folder / name).mkdir(parents=True)
    for method, rate in (("dsm", 50.0), ("posterior", 25.0), ("refined", None), ("corrected", 10.0)):
        cost = {"evaluations": 35, "classifier_evaluations": 0.0, "images_per_second": rate}
        (folder / "samples" / f"{method}.json").write_text(json.dumps(cost))
    for unit, seconds in (("score/dsm", 1), ("score/posterior", 2), ("refine", 4), ("score/refined", 8)):
        values = {"unit": unit, "finished": True, "seconds": seconds}
        (folder / "units" / f"{unit.replace('/', '-')}.json").write_text(json.dumps(values))
    found = {method: {0: {}} for method in ("dsm", "posterior", "refined", "corrected")}
    printed = label_noise.cost_table(tmp_path, sym, found)
    assert "| posterior | 2 | 35 | 0 | 0.50 |" in printed and "| corrected | 1 | 35 | 0 | 0.20 |" in printed
    assert "| refined | 14 | 35 | 0 |  |" in printed


@pytest.mark.parametrize(
    ("ceiling", "noises"), [("with", ["clean", "sym0.4"]), ("without", ["sym0.4"]), ("only", ["clean"])]
)
def test_ceilings_may_be_run_by_a_command_of_their_own(ceiling, noises, tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(label_noise, "run_cell", lambda folder, *_, **__: ran.append(folder))
    arguments = {"config": "c.py", "noise": "sym:0.4", "methods": "dsm,corrected", "seeds": "1", "smoke": False}
    more = {"table_only": False, "rest": [], "out": str(tmp_path), "ceiling": ceiling}
    label_noise.main(argparse.Namespace(**arguments, **more))
    assert ran == [tmp_path / noise / "seed1" for noise in noises]
    assert "sym 40%: cost" in capsys.readouterr().out


def stages_of(arguments, keys):
    config = cells.config_with(f"configs/digits.py:smoke,{arguments}", cells.read_keys(keys))
    return cells.measuring_stages(Run(FrozenConfigDict(config), pathlib.Path("none")))


def test_the_stages_of_a_comparison_are_what_its_measures_build_on():
    photos = ("image_noise.kind=off_topic_photos", "image_noise.rate=0.3")
    assert stages_of("methods=clean", photos) == ["score", "sample", "judge", "measure"]
    assert stages_of("methods=dsm", ()) == ["labels", "score", "sample", "judge", "measure"]
    assert stages_of("methods=dsm", photos) == ["images", "labels", "score", "sample", "judge", "measure"]
    weights = ["labels", "classifier", "transition", "posterior"]
    assert stages_of("methods=posterior", ()) == [*weights, "score", "sample", "judge", "measure"]
