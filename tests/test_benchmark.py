"""The benchmarks' entry point, and what the step benchmark says of a number of classes."""

import json
import pathlib
import subprocess
import sys

import pytest

from tdsm_jax.benchmark import step

ROOT = pathlib.Path(__file__).parents[1]


def call(*arguments):
    command = [sys.executable, "-m", "tdsm_jax.benchmark", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_help_lists_the_commands_and_what_each_measures():
    done = call("--help")
    assert done.returncode == 0
    for name in ("step", "sampling", "convolution", "torch", "tpu", "stress", "estimators", "label_noise"):
        assert f"  {name}" in done.stdout
    assert "What a training step of each mixture costs" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("stepp",), "did you mean 'step'?"),
        (("step", "--rounds=2"), "must be at least 3"),
        (("step", "--rules=floor"), "must hold dsm"),
        (("step", "--classes=10,ten"), "numbers of at least 2"),
        (("step", "--workdir=nowhere"), "holds no finished classifiers"),
        (("estimators", "--estimators=dual"), "did you mean 'dualt'?"),
    ],
)
def test_bad_arguments_end_in_one_line(arguments, said, tmp_path):
    if len(arguments) > 1:
        arguments += (f"--out={tmp_path}",)
    done = call(*arguments)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def record(rule, classes, ratio):
    return {
        "rule": rule,
        "classes": classes,
        "ratio": ratio,
        "milliseconds": 10.0,
        "quartile_1": 9.0,
        "quartile_3": 11.0,
        "images_per_second": 100.0,
        "flops": 2e9,
        "utilisation": 0.25,
        "peak_bytes": 3e6,
        "compile_seconds": 1.5,
        "capacity": None if rule == "dsm" else 1.25,
    }


RECORDS = [record(rule, K, ratio) for K in (10, 100) for rule, ratio in (("dsm", 1.0), ("floor", 1.3))]


def test_the_table_has_a_row_a_rule_and_number_of_classes():
    lines = step.table(RECORDS).splitlines()
    assert len(lines) == 2 + len(RECORDS)
    assert lines[3] == "| 10 | floor | 1.30 | 10.0 (9.0..11.0) | 100 | 2.0 | 25% | 3 | 1.5 | 1.25 |"


def test_the_plot_draws_each_rule_against_the_classes():
    drawn = step.plot(RECORDS)
    assert drawn.startswith("<svg") and "floor" in drawn and "classes (log scale)" in drawn


@pytest.mark.slow
def test_any_number_of_classes_is_measured_by_one_command(tmp_path):
    arguments = ("--classes=10,20", "--rounds=3", "--rules=dsm,floor,threshold", "--config=configs/digits.py:smoke")
    done = call("step", *arguments, f"--out={tmp_path}", f"--json={tmp_path / 'step.json'}")
    assert done.returncode == 0, done.stderr[-3000:]
    records = json.loads((tmp_path / "step.json").read_text())
    assert {(r["rule"], r["classes"]) for r in records} == {
        (rule, K) for rule in ("dsm", "floor", "threshold") for K in (10, 20)
    }
    assert all(r["flops"] > 0 and r["peak_bytes"] > 0 for r in records)
