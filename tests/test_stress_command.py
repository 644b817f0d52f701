"""The command that makes classifiers worse on purpose: what it runs, tells and draws."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import pytest
from ml_collections import FrozenConfigDict

from tdsm_jax import config as configuration
from tdsm_jax import label_stages, pipeline, plan
from tdsm_jax.benchmark import stress
from tdsm_jax.benchmark.stress import METHODS, Setting
from tdsm_jax.data.noise_files import read_matrix
from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import symmetric
from tdsm_jax.labels.transition import relative_l1
from tdsm_jax.run import Run
from test_main import DIGITS, ROOT, environment


def write_cell(folder, fidelity, accuracy=(0.9, 0.7)):
    """Writes what the command reads of a finished cell."""
    for method, value in fidelity.items():
        (folder / "measures" / method).mkdir(parents=True)
        (folder / "measures" / method / "metrics.json").write_text(json.dumps({"label_fidelity": value}))
    quality = {"accuracy": accuracy, "calibration_error": [0.1, 0.3], "weight_error": [0.4, 0.8]}
    (folder / "transition.json").write_text(json.dumps({"classifier": quality}))


@pytest.fixture
def cells(tmp_path):
    for seed in (0, 1):
        write_cell(tmp_path / "references" / f"seed{seed}", {"dsm": 0.5, "clean": 0.9})
        write_cell(tmp_path / "none" / f"seed{seed}", dict.fromkeys(METHODS, 0.8 + 0.1 * seed))
    write_cell(tmp_path / "steps25" / "seed0", dict(zip(METHODS, (0.6, 0.4), strict=True)), (0.5, 0.3))
    write_cell(tmp_path / "steps50" / "seed1", {METHODS[0]: 0.6})  # the other method is not finished
    return tmp_path


SETTINGS = [Setting("none", 0), Setting("steps", 50), Setting("steps", 25)]


def read(out):
    return {s: [row for seed in (0, 1) if (row := stress.read_cell(out, seed, s))] for s in SETTINGS}


def test_the_table_has_the_finished_cells(cells):
    lines = stress.table(read(cells)).splitlines()
    assert lines[0].count("|") == lines[2].count("|") and "posterior recovery" in lines[0]
    assert lines[2].startswith("| as configured | 2 | 0.900 ± 0.000 | 0.800 ± 0.000 | 0.200 ± 0.000 | 0.600 ± 0.000 |")
    assert lines[2].endswith("| 0.850 ± 0.071 | 0.875 ± 0.177 |")
    assert lines[3] == "| early checkpoint 50 | 0 |" + "  |" * 8
    assert lines[4] == "| early checkpoint 25 | 1 | 0.500 | 0.400 | 0.200 | 0.600 | 0.600 | 0.250 | 0.400 | -0.250 |"


def test_the_figure_shows_recovery_against_each_measure(cells):
    drawing = ElementTree.fromstring(stress.figure(read(cells)))
    titles = [e.text for e in drawing.iter() if e.tag.endswith("title")]
    assert titles.count("early checkpoint: 0.4, 0.25") == 1 and "as configured: 0.6, 0.875" in titles
    assert len([e for e in drawing if e.get("role") == "img"]) == 6
    nothing = {setting: [] for setting in SETTINGS}
    assert stress.figure(nothing).count("nothing recorded") == 6


def test_what_is_no_setting_ends_in_one_line():
    assert stress.parse_setting("temperature:0.25") == Setting("temperature", 0.25)
    assert stress.parse_setting("none") == Setting("none", 0) and Setting("none", 0).name == "none"
    with pytest.raises(UserError, match="'temperatur' is no degradation; did you mean 'temperature'"):
        stress.parse_setting("temperatur:2")
    for text in ("temperature", "temperature:hot", "share:-1", "none:1", "S:nan"):
        with pytest.raises(UserError, match="and a positive amount"):
            stress.parse_setting(text)


def test_a_cell_is_its_config_alone(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(stress, "run_cell", lambda *arguments: ran.append(arguments))
    S = symmetric(10, 0.4)
    monkeypatch.setattr(stress.label_files, "read", lambda path: SimpleNamespace(S=S))
    arguments = SimpleNamespace(config="c.py:rate=0.4", smoke=True, rest=["--config.seed=3"])
    for setting in (None, Setting("steps", 25), Setting("S", 0.1)):
        stress.run(arguments, tmp_path, 1, setting)
    folders, configs, stages, overrides, rest = zip(*ran, strict=True)
    assert folders == tuple(tmp_path / name / "seed1" for name in ("references", "steps25", "S0.1"))
    assert configs[0] == "c.py:rate=0.4,methods=dsm+clean,seed=1,smoke"
    assert configs[1] == configs[2] == "c.py:rate=0.4,methods=tdsm_floor+posterior,seed=1,smoke"
    assert "classifier" not in stages[0].split(",") and "posterior" in stages[1].split(",")
    assert overrides[:2] == ([], ["classifier.steps=25", "classifier.stopping=False"])
    path = tmp_path / "S0.1" / "seed1" / "S.npy"
    assert overrides[2] == ["transition.estimator=file", f"transition.path={path}"]
    assert relative_l1(read_matrix(path, 10), S) == pytest.approx(0.1)
    assert rest == (["--config.seed=3"],) * 3


def test_share_and_noise_of_the_config_reach_the_classifiers(tmp_path, monkeypatch):
    config = configuration.load_module(ROOT / DIGITS).get_config("smoke,methods=tdsm+posterior")
    config.stress.update(share=0.1, logit_noise=2.0)
    run = Run(FrozenConfigDict(config), tmp_path)
    assert run.weigher.logit_noise == 2
    label_stages.make_labels(run)
    fitted_on = []
    monkeypatch.setattr(label_stages, "fit_fold", lambda data, key, **rest: fitted_on.append((data, rest["held_out"])))
    list(label_stages.fit_folds(run, "classifier", label_stages.fit_settings(run), run.given_S, members=1))
    assert [len(seen.labels) for seen, _ in fitted_on] == [72, 72]  # of 719
    assert [len(held_out.labels) for _, held_out in fitted_on] == [719, 719]
    planned = {p.unit.name: p for p in pipeline.plan(plan.units(run), run.config, tmp_path)}
    assert planned["classifier"].values["stress.share"] == 0.1
    assert planned["transition"].values["stress.logit_noise"] == 2
    for name in ("score/tdsm", "posterior"):
        assert "unit transition" in planned[name].values


@pytest.mark.slow
def test_the_command_runs_cells_and_goes_on(tmp_path):
    arguments = ["--smoke", "--settings=logit_noise:2,S:0.1", f"--out={tmp_path}", f"--config={DIGITS}"]

    def command(*more):
        done = subprocess.run(
            [sys.executable, "-m", "tdsm_jax.benchmark.stress", *arguments, *more],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    printed = command("--", "--config.score.steps=12")
    assert printed.splitlines()[2].startswith("| logit noise 2 | 1 |")
    assert printed.splitlines()[3].startswith("| wrong S 0.1 | 1 |")
    found = json.loads((tmp_path / "S0.1" / "seed0" / "transition.json").read_text())
    assert found["estimator"] == "file" and found["relative_l1"] == pytest.approx(0.1)
    drawn = (tmp_path / "stress.svg").read_text()
    assert command("--table_only") == printed and (tmp_path / "stress.svg").read_text() == drawn
