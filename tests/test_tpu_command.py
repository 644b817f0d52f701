"""The figures of compiled TPU programs: what is read from them, what it is held against, and the command's errors."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from tdsm_jax.benchmark import tpu, tpu_block
from tdsm_jax.benchmark import tpu_figures as figures
from tdsm_jax.errors import UserError
from tdsm_jax.training.cross_fit import group_size

ROOT = pathlib.Path(__file__).parents[1]
CHIP = figures.Chip(flops=100e12, bandwidth=1e12, memory=10e9)
HLO = """
HloModule jit_step
%fused (p: f32[8]) -> f32[8] {
  %all-reduce.9 = f32[8]{0} all-reduce(f32[8]{0} %p), replica_groups={}
}
ENTRY %main {
  %all-reduce-start.1 = (f32[8]{0}, bf16[4]{0:T(8,128)}) all-reduce-start(f32[8]{0} %a, bf16[4]{0} %b), channel_id=1
  %all-reduce-done.1 = f32[8]{0} all-reduce-done(%all-reduce-start.1)
  %gathered = f32[64]{0} all-gather(f32[8]{0} %all-reduce-done.1), metadata={op_name="all-to-all(x)"}
  ROOT %t = (f32[8]{0}) tuple(%all-reduce.9), calls=%reduce-scatter(x)
}
"""


def test_topologies_are_read_with_the_chips_along_each_axis():
    pod, host = figures.read_topologies("v5e:16x16,v4:2x2x1")
    assert (pod.chip, pod.shape, pod.options) == ("v5e", (16, 16), {})
    assert (host.chip, host.shape) == ("v4", (2, 2, 1))
    assert host.options == {"chip_config_name": "megacore"}  # two cores, one device


def test_a_slice_smaller_than_a_host_says_so_to_the_compiler():
    (one,) = figures.read_topologies("v6e:1x2")
    assert one.options == {"chips_per_host_bounds": (1, 2, 1)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v5x:2x4", "unknown TPU 'v5x'; did you mean 'v5"),
        ("v5e", "'v5e' must be a TPU and its chips along each axis, such as v5e:2x2"),
        ("v5e:0x4", "must be a TPU and its chips"),
        ("v5e:2x2x2x2", "must be a TPU and its chips"),
    ],
)
def test_a_topology_that_is_none_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        figures.read_topologies(text)


def test_the_roofline_is_the_longer_of_computing_and_reading():
    assert figures.roofline(figures.Cost(200e12, 1e12), CHIP) == {
        "roofline_ms": 2000.0,
        "bound": "compute",
        "intensity": 200.0,
        "ridge": 100.0,
    }
    slow = figures.roofline(figures.Cost(10e12, 1e12), CHIP)
    assert (slow["roofline_ms"], slow["bound"]) == (1000.0, "memory")


def test_collectives_are_counted_once_and_only_where_they_are_operations():
    assert figures.count_collectives(HLO) == {"all-reduce": 2, "all-gather": 1}
    assert figures.count_collectives("ENTRY %main { ROOT %x = f32[] add(%a, %b) }") == {}


def test_outputs_in_the_place_of_arguments_need_memory_once():
    stats = SimpleNamespace(
        argument_size_in_bytes=3e9,
        output_size_in_bytes=2e9,
        alias_size_in_bytes=2e9,
        temp_size_in_bytes=1.5e9,
        generated_code_size_in_bytes=0.5e9,
    )
    found = figures.memory_of(stats, CHIP)
    assert found["total"] == 5e9 and found["share"] == 0.5


def test_the_branch_that_runs_sends_each_example_through_about_one_fold():
    # 100 of everything else, five folds of 10 each: XLA counts 150.
    run = figures.branch_that_runs(figures.Cost(150, 1500), figures.Cost(10, 100), folds=5, share=0.25)
    assert run == figures.Cost(100 + 5 * 0.25 * 10, 1000 + 5 * 0.25 * 100)
    assert figures.branch_that_runs(figures.Cost(150, 1500), figures.Cost(10, 100), 1, 1.0) == figures.Cost(150, 1500)
    assert group_size(64, 5) == 17 and group_size(2, 2) == 2


def record(program, flops, topology="v5e:2x4"):
    cost = figures.Cost(flops, 1e11)
    memory = {"arguments": 1e9, "temporaries": 1.5e9, "code": 0.5e9, "total": 3e9, "share": 0.1875}
    return {
        "topology": topology,
        "chips": 8,
        "classes": 10,
        "program": program,
        "flops": cost.flops,
        "bytes": cost.bytes,
        "counted_flops": 1.1 * flops,
        "counted_bytes": cost.bytes,
        "memory": memory,
        "collectives": {"all-reduce": 2},
        "compile_seconds": 12.3,
    } | figures.roofline(cost, CHIP)


FAILED = {"topology": "v6e:2x4", "chips": 8, "classes": 10, "program": "dsm", "failure": "does not fit"}
FAILED |= {"compile_seconds": 7.0}
RECORDS = [record("dsm", 1e13), record("floor", 1.35e13), record("sampling", 3e12), FAILED]


def test_ratios_are_to_dsm_of_the_same_topology_and_classes():
    dsm, floor, sampling, failed = figures.with_ratios(RECORDS)
    assert dsm["flops_ratio"] == 1 and floor["flops_ratio"] == 1.35 and floor["bytes_ratio"] == 1
    assert "flops_ratio" not in sampling and failed == FAILED
    (alone,) = figures.with_ratios([record("floor", 1.0, "v6e:2x4")])
    assert "flops_ratio" not in alone


def test_the_table_has_a_row_a_program_and_says_what_does_not_fit():
    lines = figures.table(figures.with_ratios(RECORDS)).splitlines()
    assert lines[3] == (
        "| v5e:2x4 | 8 | 10 | floor | 1.35 (1.35) | 1.00 (1.00) | 13.50 | 100.0 | 135 (100) | 135.0, compute "
        "| 1.00 + 1.50 + 0.50 = 3.00 (19%) | 2 all-reduce | 12 |"
    )
    assert lines[4].startswith("| v5e:2x4 | 8 | 10 | sampling |  |  | 3.00 ")
    assert "does not fit" in lines[5]
    assert len({line.count("|") for line in lines}) == 1


class OutOfMemory:
    def compile(self):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.\n Used 20G of 16G")


def test_a_program_that_does_not_fit_is_a_record_and_no_traceback():
    (topology,) = figures.read_topologies("v5e:2x4")
    found = tpu.figures(None, "dsm", OutOfMemory, topology)
    assert found["failure"] == "does not fit" and "Used 20G of 16G" in found["said"]


def test_a_missing_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"install it with the extra: pip install -e '\.\[tpu\]'"):
        tpu.use_compiler()


def call(*arguments):
    command = [sys.executable, "-m", "tdsm_jax.benchmark", "tpu", *arguments]
    # Tests compile for the CPU without optimisation; the TPU compiler would take the flag as its own.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--topologies=v7e:2x4", "did you mean 'v"),
        ("--rules=dsm,threshold", "'threshold' cannot be compiled without data"),
        ("--classes=1", "numbers of at least 2"),
        ("--dtype=float61", "config key network.dtype: 'float61' is not a choice"),
        ("--images_per_chip=0", "must be at least 1"),
        ("--config=configs/nowhere.py", "no config file"),
    ],
)
def test_bad_arguments_end_in_one_line(argument, said):
    done = call(argument)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: the extra [tpu]")
def test_a_small_config_compiles_for_a_host_of_tpus(tmp_path):
    arguments = ("--config=configs/digits.py:smoke", "--image_size=8", "--image_channels=1", "--images_per_chip=4")
    done = call(*arguments, "--topologies=v5e:2x4", f"--json={tmp_path / 'tpu.json'}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "compiler figures, not runs" in done.stdout and "libtpu" in done.stdout
    dsm, floor, sampling = json.loads((tmp_path / "tpu.json").read_text())
    assert [r["program"] for r in (dsm, floor, sampling)] == ["dsm", "floor", "sampling"]
    assert all(r["chips"] == 8 and r["batch_size"] == 32 for r in (dsm, floor, sampling))
    # A gradient must be reduced over the chips; an evaluation must not talk at all.
    assert dsm["collectives"]["all-reduce"] >= 1 and sampling["collectives"] == {}
    assert 0 < sampling["flops"] < dsm["flops"] < floor["flops"] <= floor["counted_flops"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: the extra [tpu]")
def test_every_chip_is_one_device_and_a_wrong_shape_is_one_line():
    script = (
        "from tdsm_jax.benchmark import tpu, tpu_figures\n"
        "tpu.use_compiler()\n"
        "for t in tpu_figures.read_topologies('v4:2x2x1,v5e:1x1,v5e:16x16,v5p:2x2x1,v6e:2x4'):\n"
        "    print(tpu.mesh_of(t).size)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["4", "1", "256", "4", "8"], done.stderr[-3000:]
    wrong = call("--topologies=v5e:3x3")
    assert wrong.returncode == 2 and "--topologies=v5e:3x3: " in wrong.stderr.splitlines()[-1]


def test_blocks_are_told_by_image_and_bad_ones_refused_before_anything_is_compiled():
    record = {"variant": "plain", "images": 4, "flops": 8e6, "bytes": 4e4, "compile_seconds": 2.4}
    record |= {"memory": {"temporaries": 8e3, "code": 1.5e6}, **figures.roofline(figures.Cost(8e6, 4e4), CHIP)}
    row = tpu_block.table([record]).splitlines()[-1]
    assert row == "| plain | 2 | 10 | 200 (100) | 0.0, compute | 2 | 1.5 | 2 |"
    for given, said in (
        ({"variants": "plian"}, "--variants: 'plian' is none; did you mean 'plain'"),
        ({"variants": "plain", "topology": "v5x:1x1"}, "unknown TPU 'v5x'"),
    ):
        with pytest.raises(UserError, match=said):
            tpu_block.main(SimpleNamespace(**{"topology": "v5e:1x1", "json": None} | given))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: the extra [tpu]")
def test_a_block_compiles_for_one_chip(monkeypatch, capsys, tmp_path):
    small = tpu_block.Variant(channels=32, side=8, images=8, attend=True)
    monkeypatch.setattr(tpu_block, "VARIANTS", {"plain": small, "float32": small._replace(dtype="float32")})
    tpu_block.main(SimpleNamespace(topology="v5e:1x1", variants=None, json=str(tmp_path / "blocks.json")))
    plain, float32 = json.loads((tmp_path / "blocks.json").read_text())
    assert plain["flops"] > 8 * 3 * 2 * 2 * 64 * 9 * 32 * 32 * 0.9  # two convolutions, forward and two gradients
    assert float32["bytes"] > plain["bytes"] and "| plain |" in capsys.readouterr().out
    with pytest.raises(UserError, match="has 4 chips; a block is compiled for one"):
        tpu_block.main(SimpleNamespace(topology="v5e:2x2", variants=None, json=None))
