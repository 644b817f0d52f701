"""Runs side by side: one page of what differs, every run's numbers under its own name, wrong folders refused."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from tdsm_jax import compare_runs
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import comparison
from test_pipeline import write_units

K = 3


def make_run(folder, seed=0, rate=0.4, fidelity=0.5, methods=("dsm", "tdsm"), judge="a"):
    """Writes what a finished run leaves and the comparison reads."""
    random = np.random.default_rng(seed)
    for method in methods:
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        images = random.integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
        np.savez(folder / "samples" / f"{method}.npz", images=images, labels=np.arange(6) % K)
        (folder / "score" / method).mkdir(parents=True)
        records = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
        (folder / "score" / method / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    measured = {m: {"label_fidelity": fidelity + 0.1 * i, "fd": 1.25} for i, m in enumerate(methods)}
    real = {"label_fidelity": 0.99, "fd": 0.1}
    judges = {"stages": {"test_accuracy": 0.99, "weights_sha256": judge * 64}}
    metrics = {"methods": measured, "real": real, "class_names": ["cat", "dog", "owl"], "judges": judges}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    values = {"seed": seed, "label_noise.rate": rate, "file a": "y"}
    write_units(folder, score=values, report={"task": "generation", "unit score": None})
    return str(folder)


def read_all(folders, methods=()):
    return [compare_runs.read(f, n, methods) for f, n in zip(folders, compare_runs.names_of(folders), strict=True)]


def rows_of(page):
    """Returns {row: cells} of all tables, the last of a name winning."""
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', page)
    return {name: re.findall("<td>(.*?)</td>", cells) for name, cells in rows}


def test_the_page_shows_what_differs_and_every_number(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1, rate=0.2, fidelity=0.7, methods=("dsm",))]
    page = comparison.render(read_all(runs))
    rows = rows_of(page)
    assert rows["label_noise.rate"] == ["0.4", "0.2"] and rows["seed"] == ["0", "1"]
    assert "unit score" not in page and "file a" not in page
    fidelity = page.partition("<summary>Label fidelity, %")[2].partition("</details>")[0]
    assert rows_of(fidelity) == {"DSM": ["50.0", "70.0"], "TDSM": ["60.0", "–"]}
    assert page.count("<img") == 3 and "owl" in page
    assert "http" not in page.replace("http://www.w3.org", "") and "<script" not in page


def test_only_what_the_page_was_made_of_says_what_differs(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    write_units(tmp_path / "b", zebra={"seed": 7}, sample={"label_noise.rate": 0.1, "finished": False})
    assert comparison.differences(read_all(runs)) == {}
    write_units(tmp_path / "b", score={"seed": 7})
    with pytest.raises(UserError, match="no finished run: .* is gone or was made again"):
        read_all(runs)


def test_a_run_called_like_a_method_is_a_run(tmp_path):
    page = comparison.render(read_all([make_run(tmp_path / "tdsm"), make_run(tmp_path / "real")]))
    assert "<figcaption><b>tdsm</b> </figcaption>" in page and "<figcaption><b>real</b> </figcaption>" in page


def test_repeats_get_mean_and_deviation_and_a_table(tmp_path):
    runs = [make_run(tmp_path / f"seed{s}", seed=s, fidelity=0.4 + 0.2 * s) for s in (0, 1)]
    command = [sys.executable, "-m", "tdsm_jax.compare_runs", *runs, f"--out={tmp_path / 'page.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "| dsm | 0.500 ± 0.141 |" in done.stdout
    page = (tmp_path / "page.html").read_text()
    fidelity = page.partition("<summary>Label fidelity, %")[2].partition("</details>")[0]
    assert rows_of(fidelity)["DSM"] == ["40.0", "60.0", "50.0 ± 14.1"]
    assert "Repeats with other seeds" in page and "seed0, seed1" in page


def test_methods_can_be_chosen(tmp_path):
    runs = read_all([make_run(tmp_path / "a"), make_run(tmp_path / "b")], ("tdsm",))
    page = comparison.render(runs)
    assert page.count("<img") == 2 and "DSM" not in re.sub("TDSM|<dt>.*?</dd>", "", page)
    assert "the same config each time" in page


@pytest.mark.parametrize(("judges", "said"), [("aa", False), ("ab", True)])
def test_other_judges_are_pointed_out(tmp_path, judges, said):
    runs = read_all([make_run(tmp_path / str(i), judge=judge) for i, judge in enumerate(judges)])
    assert ("classifiers of their own as judges" in comparison.render(runs)) == said


def test_judges_of_two_kinds_are_no_others(tmp_path):
    runs = [make_run(tmp_path / name) for name in "ab"]
    for name in "ab":
        path = tmp_path / name / "metrics.json"
        metrics = json.loads(path.read_text())
        metrics["judges"]["resnet18"] = {"test_accuracy": 0.9, "weights_sha256": "c" * 64}
        path.write_text(json.dumps(metrics))
    assert "classifiers of their own" not in comparison.render(read_all(runs))


def test_what_is_no_run_is_refused(tmp_path):
    a = make_run(tmp_path / "a")
    with pytest.raises(UserError, match="lacks metrics.json"):
        compare_runs.read(str(tmp_path), "x")
    with pytest.raises(UserError, match="named twice"):
        compare_runs.names_of([a, f"{a}/"])
    with pytest.raises(UserError, match="no method 'tdms'; did you mean 'tdsm'"):
        compare_runs.read(a, "a", ("tdms",))
    (tmp_path / "a" / "metrics.json").write_text(json.dumps({"losses": {}}))
    with pytest.raises(UserError, match="no run that trained diffusion models"):
        compare_runs.read(a, "a")
    done = subprocess.run(
        [sys.executable, "-m", "tdsm_jax.compare_runs", a], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("error: name two finished runs") and not done.stdout
