"""The comparison of residuals on corrupted images: its cells, who takes them, its numbers and its page."""

import argparse
import json
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from tdsm_jax import files
from tdsm_jax.benchmark import cells, corrupted_images, corrupted_page
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation.neighbours import nearest_squared

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def configured(monkeypatch):
    """The compiler of the tests' own process stays as it is; returns what was asked of it."""
    asked = []
    monkeypatch.setattr(corrupted_images.runtime, "configure", lambda **given: asked.append(given))
    return asked


def arguments(**given):
    defaults = {
        "config": "configs/digits.py",
        "kinds": "off_topic_photos,off_topic_symbols",
        "rates": "0,0.3",
        "residuals": "squared,huber",
        "labels": "true",
        "seeds": "0,1",
        "smoke": True,
        "table_only": True,
        "keys": [],
    }
    return argparse.Namespace(**defaults | given)


def test_kinds_share_the_cells_without_corruption():
    cells = corrupted_images.planned(arguments())
    assert len(cells) == 2 * 2 * 3 == len(set(cells))
    assert {cell.kind for cell in cells if cell.rate == 0} == {"none"}
    folders = {str(cell.folder(pathlib.Path("out"))) for cell in cells}
    assert len(folders) == len(cells) and "out/true_labels/none/huber/seed1" in folders
    assert "out/true_labels/off_topic_symbols0.3/squared/seed0" in folders


def test_a_cell_is_what_its_name_says_and_the_keys_given_have_the_last_word():
    (cell,) = corrupted_images.planned(
        arguments(kinds="occlusion", rates="0.3", residuals="huber_snr", labels="sym:0.4", seeds="2")
    )
    keys = cells.read_keys(["score.steps=7", "score.huber_form=example"])
    config = corrupted_images.config_of(cell, arguments(smoke=False), keys)
    assert (config.image_noise.kind, config.image_noise.rate) == ("occlusion", 0.3)
    assert (config.label_noise.kind, config.label_noise.rate, config.seed) == ("sym", 0.4, 2)
    assert (config.score.residual, config.score.huber_form, config.score.steps) == ("huber_snr", "example", 7)
    assert config.methods == ("dsm", "tdsm") and config.network.channels == 16
    (plain,) = corrupted_images.planned(arguments(kinds="occlusion", rates="0", residuals="squared", seeds="0"))
    config = corrupted_images.config_of(plain, arguments(smoke=False), {})
    assert config.image_noise.kind == "off" and config.label_noise.rate == 0 and config.methods == ("dsm",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kinds": "occlusions"}, "--kinds: 'occlusions' is not a choice; did you mean 'occlusion'?"),
        ({"residuals": "hubert"}, "did you mean 'huber'?"),
        ({"rates": "0,much"}, r"--rates=0,much must be numbers in \[0, 1\]"),
        ({"rates": "1.5"}, r"must be numbers in \[0, 1\]"),
        ({"labels": "syn:0.4"}, "did you mean 'sym'?"),
        ({"keys": ["score.steps"]}, "no config key with its value"),
        ({"keys": ["score.stepz=3"]}, "did you mean 'score.steps'?"),
        ({"keys": ["score.steps=many"]}, "config key score.steps='many' is not of type int"),
        ({"rates": "0", "keys": ["data.stream=True"]}, "data.stream=True leaves images on disk"),
    ],
)
def test_bad_arguments_end_in_one_line(given, said):
    with pytest.raises(UserError, match=said) as error:
        of = arguments(**given)
        keys = cells.read_keys(of.keys)
        for cell in corrupted_images.planned(of):
            corrupted_images.config_of(cell, of, keys)
    assert "\n" not in str(error.value)


def test_a_cell_that_somebody_is_at_is_left_alone_until_then(tmp_path):
    """Claims are of open files: the operating system ends them with the process, however that ends."""
    folder = tmp_path / "a" / "cell"
    with corrupted_images.claimed(folder) as first, corrupted_images.claimed(folder) as second:
        assert first and not second
    with corrupted_images.claimed(folder) as free:
        assert free


def cell_of(rate, residual, seed, coverage, kind="off_topic_photos", labels=("sym", 0.0), methods=("dsm",)):
    values = {"fd": 10 + rate, "label_fidelity": 0.9, "cas": 0.8, "cw_coverage": coverage}
    kinds = (kind,) if rate else ("off_topic_photos", "off_topic_symbols")
    values["taken_for"] = {name: rate / 2 for name in kinds}
    return {
        "kind": kind if rate else "none",
        "rate": rate,
        "labels": list(labels),
        "residual": residual,
        "seed": seed,
        "methods": {method: values for method in methods},
        "detectors": {name: {"false_alarms": 0.02, "hits": 0.97} for name in kinds},
    }


CELLS = [
    *(cell_of(0.0, "squared", seed, 0.8) for seed in (0, 1)),
    cell_of(0.3, "squared", 0, 0.4),
    cell_of(0.3, "squared", 1, 0.6),
    cell_of(0.3, "huber", 0, 0.5),
]


def test_what_survives_is_measured_against_the_same_residual_and_seed_on_clean_images():
    (group,) = corrupted_page.groups(CELLS).values()
    assert [row["resilience"] for row in group[0.3, "squared"]] == pytest.approx([0.5, 0.75])
    assert [row["resilience"] for row in group[0.0, "squared"]] == [1, 1]
    assert [row["resilience"] for row in group[0.3, "huber"]] == [None]  # no such cell of clean images yet
    assert corrupted_page.resilience({"cw_coverage": 0.1}, {"cw_coverage": 0.0}) is None


def test_tables_have_a_row_a_rate_and_residual_and_say_how_good_the_detector_is():
    text = corrupted_page.markdown(CELLS)
    assert "### off_topic_photos, true labels, DSM" in text
    assert (
        "| 30% | squared | 0, 1 | 10.30 ± 0.00 | 0.900 ± 0.000 | 0.800 ± 0.000 | 0.500 ± 0.141 | 0.150 ± 0.000 |"
        in text
    )
    assert "| off_topic_photos | 0.020 ± 0.000 | 0.970 ± 0.000 |" in text and "off_topic_symbols" not in text


def test_noisy_labels_and_methods_stand_apart():
    noisy = [cell_of(0.3, "squared", 0, 0.4, labels=("sym", 0.4), methods=("dsm", "tdsm"))]
    titles = [name for name, _ in corrupted_page.tables([*CELLS, *noisy])]
    assert titles[1:] == [f"off_topic_photos, symmetric label noise 40%, {name}" for name in ("DSM", "TDSM")]


def finish(out, values, given):
    """Writes what a cell leaves that was made by these arguments; returns its file."""
    cell = corrupted_images.Cell(
        values["kind"], values["rate"], tuple(values["labels"]), values["residual"], values["seed"]
    )
    config = corrupted_images.config_of(cell, given, cells.read_keys(given.keys))
    path = cell.folder(out) / "cell.json"
    files.write_json(path, values | {"digest": corrupted_images.digest_of(config)})
    return path


def test_a_last_call_collects_what_others_finished(tmp_path, capsys, configured):
    for values in CELLS[:3]:
        finish(tmp_path, values, arguments())
    corrupted_images.main(arguments(out=str(tmp_path)))
    assert configured == [{"compilation_cache": str(tmp_path / "compiled")}]
    assert "| 30% | squared | 0 |" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "cells.json").read_text())) == 3
    page = (tmp_path / "corrupted_images.html").read_text()
    assert "<svg" in page and "off-topic share" in page and "src=" not in page and "<script" not in page


@pytest.mark.parametrize("table_only", [True, False])
def test_cells_of_another_recipe_are_refused_in_one_line(table_only, tmp_path):
    path = finish(tmp_path, CELLS[2], arguments())
    for other in ({"smoke": False}, {"keys": ["score.steps=7"]}, {"keys": ["image_noise.severity=0.5"]}):
        with pytest.raises(UserError, match="was made by another --config, --smoke or keys: give those") as error:
            corrupted_images.main(arguments(out=str(tmp_path), table_only=table_only, **other))
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    files.write_json(path, CELLS[2])
    with pytest.raises(UserError, match="is of an older form, which does not say by what config") as error:
        corrupted_images.main(arguments(out=str(tmp_path), table_only=table_only))
    assert "\n" not in str(error.value)


def test_keys_that_change_no_numbers_make_no_other_recipe(tmp_path, capsys):
    finish(tmp_path, CELLS[2], arguments())
    keys = ["logging.log_every=10", "compute.remat=True", "robust_losses.steps=9"]
    corrupted_images.main(arguments(out=str(tmp_path), keys=keys))
    assert "| 30% | squared | 0 |" in capsys.readouterr().out


def test_what_a_cell_leaves_is_taken_by_the_same_arguments(tmp_path, monkeypatch):
    """With a training that takes no time."""
    (cell,) = corrupted_images.planned(arguments(kinds="occlusion", rates="0.3", residuals="huber", seeds="0"))
    config, folder = corrupted_images.config_of(cell, arguments(), {}), tmp_path
    done = types.SimpleNamespace(samples=lambda method: types.SimpleNamespace(images=None))
    detector = types.SimpleNamespace(share=lambda images: 0.1, worth=lambda: {"false_alarms": 0.0, "hits": 1.0})
    monkeypatch.setattr(corrupted_images, "carry_out", lambda *_: done)
    monkeypatch.setattr(corrupted_images, "Detector", lambda *_: detector)
    monkeypatch.setattr(corrupted_images, "measures", lambda *_: dict.fromkeys(corrupted_images.METRICS, 0.5))
    corrupted_images.carry_out_cell(config, cell, folder)
    found = corrupted_images.finished(folder, corrupted_images.digest_of(config))
    assert found["kind"] == "occlusion" and found["methods"]["dsm"]["taken_for"] == {"occlusion": 0.1}


@pytest.mark.parametrize("kind", ["occlusion", "off_topic_symbols"])
def test_a_detector_is_asked_about_images_that_it_has_not_seen_in_any_form(kind, monkeypatch):
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (n, 8, 8, 1), np.uint8) for n in (30, 20))
    noise = types.SimpleNamespace(severity=0.3)
    run = types.SimpleNamespace(
        train_set=types.SimpleNamespace(images=train),
        test_set=types.SimpleNamespace(images=test),
        config=types.SimpleNamespace(image_noise=noise, seed=0),
    )
    stages, seen = corrupted_images.judge_stages, []
    monkeypatch.setattr(stages, "reference_features", lambda run, judge: train.reshape(len(train), -1).astype(float))
    monkeypatch.setattr(
        stages, "look", lambda run, images: seen.append(images) or (None, images.reshape(len(images), -1).astype(float))
    )
    corrupted_images.Detector(run, kind).worth()
    reference, clean, bad = seen
    np.testing.assert_array_equal(clean, test)
    assert len(reference) == len(train) and len(bad) == len(test)
    if kind == "occlusion":  # most of each image is the test image's
        assert ((bad == test).mean(axis=(1, 2, 3)) > 0.4).all()
    assert (bad != test).any(axis=(1, 2, 3)).all() and (bad != reference[: len(test)]).any(axis=(1, 2, 3)).all()


def test_an_empty_folder_makes_an_empty_table(tmp_path, capsys):
    corrupted_images.main(arguments(out=str(tmp_path)))
    assert "resilience factor" in capsys.readouterr().out


def test_nearest_others_are_found_in_tiles():
    rng = np.random.default_rng(0)
    x, others = rng.normal(size=(1100, 3)), rng.normal(size=(40, 3))
    expected = ((x[:, None] - others) ** 2).sum(-1).min(axis=1)
    np.testing.assert_allclose(nearest_squared(x, others), expected, atol=1e-12)


@pytest.mark.slow
def test_one_command_runs_the_cells_and_goes_on(tmp_path):
    command = [sys.executable, "-m", "tdsm_jax.benchmark", "corrupted_images", f"--out={tmp_path}", "--smoke"]
    command += ["--rates=0,0.3", "--kinds=off_topic_symbols", "--residuals=huber_snr", "--labels=true,sym:0.4"]
    done = subprocess.run([*command, "--seeds=0"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads((tmp_path / "cells.json").read_text())
    assert len(cells) == 4 and {tuple(cell["methods"]) for cell in cells} == {("dsm",), ("dsm", "tdsm")}
    for cell in cells:
        assert all(0 <= share <= 1 for values in cell["methods"].values() for share in values["taken_for"].values())
        assert cell["detectors"]["off_topic_symbols"]["hits"] > 0.5
    record = json.loads((tmp_path / "true_labels/off_topic_symbols0.3/huber_snr/seed0/image_noise.json").read_text())
    assert record["kind"] == "off_topic_symbols"
    again = subprocess.run([*command, "--seeds=0"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.stdout == done.stdout and "score/" not in again.stderr
