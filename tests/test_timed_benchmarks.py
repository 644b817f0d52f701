"""Benchmarks of sampling and convolutions: what they time is what it says, and their tables hold it."""

import argparse
import itertools
import json
import pathlib
import re
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdsm_jax.benchmark import convolution, profile, reading, sampling, timing
from tdsm_jax.data import stream
from tdsm_jax.errors import UserError
from test_benchmark import ROOT, call

SMOKE = "configs/digits.py:smoke"


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("part", convolution.PARTS)
def test_all_forms_of_a_convolution_are_the_same_function(size, part):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel, g = (
        jax.random.normal(key, shape)
        for key, shape in zip(keys, ((2, 6, 6, 3), (size, size, 3, 4), (2, 6, 6, 4)), strict=True)
    )
    of_compiler, *others = (convolution.parts(form)[part](x, kernel, g) for form in convolution.FORMS.values())
    for other in others:
        np.testing.assert_allclose(*jax.tree.leaves((other, of_compiler)), rtol=1e-4, atol=1e-4)


def test_the_convolutions_of_a_network_are_those_of_its_parameters():
    model = sampling.untrained(SMOKE)
    found = convolution.convolutions(model)
    kernels = [leaf for leaf in jax.tree.leaves(model.params) if leaf.ndim == 4]
    assert sum(found.values()) == len(kernels)
    weights = sum(n * s.size**2 * s.channels * s.features for s, n in found.items())
    assert weights == sum(kernel.size for kernel in kernels)


def test_a_table_of_convolutions_sums_what_a_step_takes():
    shape = convolution.Shape(8, 3, 1, 8)
    fixed = {**shape._asdict(), "times_in_network": 3, "batch_size": 4}
    records = [fixed | found for found in convolution.measure(shape, batch_size=4, rounds=2)]
    assert len(records) == len(convolution.FORMS) * len(convolution.PARTS)
    row = convolution.table(records).splitlines()[2]
    assert row.startswith("| 8x8 | 3x3 | 1 | 8 | 3 |")
    first = convolution.totals(records).splitlines()[2].split("|")[2]
    assert float(first) == pytest.approx(3 * records[0]["milliseconds"], abs=0.06)


def test_a_sampler_makes_the_images_of_its_solver():
    model = sampling.untrained(SMOKE)
    images = sampling.sampler(model, batch_size=3)(4)
    assert images.shape == (3, *model.image_shape) and bool(jnp.isfinite(images).all())


def test_a_summary_is_median_and_quartiles():
    found = timing.summary([0.1, 0.2, 0.3, 0.4, 0.5], images=30)
    assert found["images_per_second"] == pytest.approx(100)
    assert timing.spread_of(found) == "300.0 (200.0..400.0)"


def test_the_environment_says_what_a_figure_depends_on():
    about = timing.environment()
    assert {"device", "driver_and_clocks", "versions", "matmul_precision", "date", "command"} <= about.keys()
    assert about["versions"]["jax"] == jax.__version__ and jax.__version__ in timing.described(about)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sampling", "--steps=4,x"), "--steps=4,x must be whole numbers"),
        (("sampling", "--batches=0"), "--batches=0 must be whole numbers of at least 1"),
        (("sampling", "--rounds=2"), "must be at least 3"),
        (("sampling", "--model=nowhere.npz"), "nowhere.npz"),
        (("convolution", "--rounds=0"), "must be at least 1"),
        (("startup", "--rounds=0"), "must be at least 1"),
        (("startup", "--config=nowhere.py"), "nowhere.py"),
    ],
)
def test_bad_arguments_end_in_one_line(arguments, said):
    done = call(*arguments)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_counts_are_read_from_text():
    assert sampling.counts("steps", "4,18") == [4, 18]
    with pytest.raises(UserError):
        sampling.counts("steps", "")


def test_sampling_is_measured_by_one_command(tmp_path):
    written, drawn = tmp_path / "sampling.json", tmp_path / "sampling.svg"
    arguments = (f"--config={SMOKE}", "--steps=2,4", "--batches=1,8", "--rounds=3")
    done = call("sampling", *arguments, f"--json={written}", f"--plot={drawn}")
    assert done.returncode == 0, done.stderr[-3000:]
    records = json.loads(written.read_text())
    assert [(r["batch_size"], r["steps"], r["evaluations"]) for r in records] == [
        (1, 2, 3), (1, 4, 7), (8, 2, 3), (8, 4, 7)
    ]  # fmt: skip
    assert all(r["images_per_second"] > 0 and r["versions"] and r["date"] for r in records)
    assert "| 8 | 4 | 7 |" in done.stdout and "batch 8" in pathlib.Path(drawn).read_text()


def test_batches_made_before_the_clock_starts_do_not_count():
    def batches(made_ahead):
        for step in itertools.count():
            if step >= made_ahead:
                time.sleep(0.02)
            yield np.zeros(3)

    assert reading.images_a_second(batches(9), 0.1, waiting=9) <= 3 / 0.02
    assert reading.images_a_second(batches(9), 0.1) > 3 / 0.02


def test_of_batches_ahead_all_that_may_wait_are_passed_over(monkeypatch):
    pytest.importorskip("grain")
    told = []
    monkeypatch.setattr(reading, "images_a_second", lambda batches, seconds, waiting=1: told.append(waiting) or 1.0)
    reading.main(argparse.Namespace(images=20, side=16, size=8, batch=4, seconds=1))
    assert told == [1, 1, stream.AHEAD + stream.THREADS]


def test_reading_is_measured_by_one_command():
    pytest.importorskip("grain")
    done = call("reading", "--images=40", "--side=32", "--size=8", "--batch=8", "--seconds=0.1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "32x32 JPEG to 8x8, batches of 8" in done.stdout
    rates = re.findall(r"^(in memory|when asked for|ahead, by grain) +([\d,]+) images/s$", done.stdout, re.MULTILINE)
    assert [name for name, _ in rates] == ["in memory", "when asked for", "ahead, by grain"]
    assert all(int(rate.replace(",", "")) > 0 for _, rate in rates)


def test_starting_up_is_measured_by_one_command(tmp_path):
    written = tmp_path / "startup.json"
    done = call("startup", f"--config={SMOKE}", "--rounds=1", f"--out={tmp_path / 'out'}", f"--json={written}")
    assert done.returncode == 0, done.stderr[-3000:]
    seconds = {record["what"]: record["milliseconds"] / 1e3 for record in json.loads(written.read_text())}
    assert list(seconds) == [
        "--help", "imports of a run", "first training step", "first training step, nothing compiled yet"
    ]  # fmt: skip
    assert all(seconds.values()) and "first training step" in done.stdout
    assert any((tmp_path / "out" / "compiled").iterdir())


def test_compiling_afresh_leaves_the_cache_of_compiled_programs_alone(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, jax, jax.numpy as jnp\n"
        "from tdsm_jax.benchmark.timing import compiling_afresh\n"
        "jax.config.update('jax_compilation_cache_dir', sys.argv[1])\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "kept = lambda: len(os.listdir(sys.argv[1]))\n"
        "compiled = lambda n: jax.jit(lambda x: x * n).lower(jnp.ones(3)).compile() and kept()\n"
        "first = compiled(2)\n"
        "with compiling_afresh():\n"
        "    inside = compiled(3)\n"
        "print(first > 0, inside == first, compiled(5) > inside)\n"
    )
    (tmp_path / "cache").mkdir()
    done = subprocess.run(
        [sys.executable, program, tmp_path / "cache"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stdout.split() == ["True", "True", "True"], done.stderr[-2000:]


def test_a_profile_names_what_a_call_spends_its_time_on():
    x = jnp.ones((200, 200))
    product = jax.jit(lambda x: jnp.sort(x @ x, axis=0))
    product(x).block_until_ready()
    found = profile.costs(lambda: product(x))
    assert {"dot", "sort"} & {cost.kind.partition("_")[0] for cost in found}, found
    assert all(cost.milliseconds >= 0 and cost.calls > 0 for cost in found)


def test_a_profile_table_holds_the_costliest_kinds_and_the_rest():
    found = [profile.Cost("convolution", 6.0, 2.0), profile.Cost("copy", 3.0, 1.0), profile.Cost("add", 1.0, 4.0)]
    lines = profile.table(found, rows=2).splitlines()
    assert lines[2] == "| convolution | 2 | 6.00 | 60% |" and lines[4] == "| everything else | 4 | 1.00 | 10% |"
    assert profile.kind_of("convolution.34") == "convolution" and profile.kind_of("dot.1.2") == "dot"
