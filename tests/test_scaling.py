"""What to expect of many chips: the formulas on cases counted by hand, and the command that prints them."""

import json
import pathlib

import pytest

from tdsm_jax.benchmark import scaling
from tdsm_jax.benchmark import scaling_figures as figures
from tdsm_jax.benchmark.scaling_figures import Machine, Step
from tdsm_jax.benchmark.tpu_figures import Chip, Cost
from tdsm_jax.errors import UserError
from test_benchmark import call

CHIP = Chip(flops=100e12, bandwidth=1e12, memory=10e9)
ROOT = pathlib.Path(__file__).parents[1]
POD = Machine(CHIP, send=100e9, domain=16, a_host=4, torus=8)
HOSTS = Machine(CHIP, send=400e9, domain=8, a_host=8, between=50e9)
# 1 GB of parameters: 4 of state, 9 of reads and writes in an update.
STEP = Step(flops=20e12, bytes=29e9, temporaries=4e9, images=100, parameters=250_000_000)
COMPILED = {
    "topology": "v6e:2x4",
    "program": "floor",
    "flops": 10e12,
    "bytes": 50e9,
    "memory": {"temporaries": 2e9},
    "images_per_chip": 64,
    "parameters": 55_000_000,
}


def test_a_ring_sends_all_but_a_chips_own_part_twice():
    assert figures.sent(8e9, 1) == 0
    assert figures.sent(8e9, 2) == 8e9
    assert figures.sent(8e9, 8) == 14e9


def test_an_all_reduce_takes_what_its_links_allow():
    assert figures.all_reduce_seconds(8e9, 1, POD) == 0
    assert figures.all_reduce_seconds(8e9, 8, POD) == pytest.approx(14e9 / 100e9)
    assert figures.all_reduce_seconds(8e9, 4, POD) == pytest.approx(12e9 / 50e9)  # no rings: half of the links


def test_between_hosts_each_chip_carries_its_part():
    inside = 14e9 / 400e9
    assert figures.all_reduce_seconds(8e9, 8, HOSTS) == pytest.approx(inside)
    assert figures.all_reduce_seconds(8e9, 32, HOSTS) == pytest.approx(inside + 1.5 * 1e9 / 50e9)


def test_chips_are_part_of_a_domain_or_whole_ones():
    assert [figures.reachable(POD, chips) for chips in (3, 16, 32)] == [True, True, False]
    assert [figures.reachable(HOSTS, chips) for chips in (4, 16, 12)] == [True, True, False]


def test_a_share_costs_its_images_and_one_update():
    assert figures.share_of(STEP, 100) == Cost(20e12, 29e9)
    assert figures.share_of(STEP, 50) == Cost(10e12, 10e9 + 9e9)
    assert figures.checkpoint_bytes(STEP) == 4e9 and figures.all_reduced(STEP) == 1e9


def test_an_expectation_is_the_roofline_and_then_the_all_reduce():
    found = figures.expectation(STEP, POD, chips=8, batch_size=800)
    reduce = 1.75e9 / 100e9
    assert found["images_a_chip"] == 100 and found["parts"] == 1
    assert found["compute"] == pytest.approx(0.2)  # by FLOPs; bytes take 0.029
    assert found["step"] == pytest.approx(0.2 + reduce) and found["step_overlapped"] == pytest.approx(0.2)
    assert found["efficiency"] == pytest.approx(0.2 / (0.2 + reduce))
    assert found["efficiency_overlapped"] == pytest.approx(1)
    assert found["images_per_second"] == pytest.approx(800 / found["step"])
    assert found["images_per_second_a_host"] == pytest.approx(800 / 0.2 / 2)


def test_what_the_update_takes_lowers_the_efficiency():
    by_memory = STEP._replace(flops=0)
    found = figures.expectation(by_memory, POD, chips=8, batch_size=80)
    assert found["compute"] == pytest.approx(2e-3 + 9e-3)
    assert found["efficiency_overlapped"] == pytest.approx(2 / 17.5)  # the all-reduce outlasts the computation
    assert found["step_overlapped"] == pytest.approx(17.5e-3)


def test_images_that_do_not_fit_are_cut_into_equal_parts():
    # Beside 4 GB of state 5 of 9 usable GB are left: 125 images at a time.
    assert [figures.parts_needed(STEP, images, CHIP) for images in (125, 126, 250, 500)] == [1, 2, 2, 4]
    assert figures.parts_needed(STEP, 127, CHIP) == 127  # a prime
    assert figures.parts_needed(STEP, 8, CHIP._replace(memory=4e9)) == 0


def test_a_save_takes_its_share_of_the_time_between_saves():
    assert figures.saving_share(save=1.0, step_seconds=0.01, save_every=900) == pytest.approx(0.1)


def test_tables_hold_a_row_a_number_of_chips_and_name_the_limit():
    found = [figures.expectation(STEP, POD, 8, batch) for batch in (800, 2000)]
    table = figures.step_table(found, (800, 1000, 2000)).splitlines()
    assert table[2] == "| 8 | 17.5 | 217.5 ms, 92% (100%) |  | 517.5 ms, 97% (100%), 2 parts |"
    (fast,) = [found[0] | {"machine": "pod"}]
    row = figures.loading_table([fast], 1000, {"memory": 20_000, "stream": 1000}).splitlines()[2]
    assert row == "| pod | 8 | 800 | 2,000 | 2 | 8 | 10.0% | 200.0%, the limit |"
    row = figures.saving_table([fast], 4e9, 10, {"disk": 4e9, "bucket": 1e9}).splitlines()[2]
    assert row == "| pod | 8 | 800 | 2 | 31.50% | 64.78%, the limit |"


def test_published_links_of_tpus_are_half_of_what_both_directions_carry():
    assert figures.MACHINES["v5e"].send == 200e9 and figures.MACHINES["v6e"].send == 400e9
    assert figures.MACHINES["v5p"].send == 600e9 and figures.MACHINES["h200"].send == 450e9


def test_compiled_steps_are_those_of_the_program_by_chip(tmp_path):
    written = tmp_path / "tpu.json"
    failed = COMPILED | {"topology": "v5e:2x4", "failure": "does not fit"}
    written.write_text(json.dumps([failed, COMPILED, COMPILED | {"topology": "v6e:1x1", "flops": 1.0}]))
    assert scaling.compiled_steps(str(written), "floor") == {"v6e": Step(10e12, 50e9, 2e9, 64, 55_000_000)}
    with pytest.raises(UserError, match="no compiled step of --program=dsm"):
        scaling.compiled_steps(str(written), "dsm")
    with pytest.raises(UserError, match="absent.json: no such file"):
        scaling.compiled_steps(str(tmp_path / "absent.json"), "dsm")
    written.write_text('{"no": "records"}')
    with pytest.raises(UserError, match="holds no records"):
        scaling.compiled_steps(str(written), "floor")


def test_the_steps_that_the_docs_rest_on_are_read():
    written = ROOT / "docs" / "tpu.json"
    dsm, floor = (scaling.compiled_steps(str(written), program) for program in ("dsm", "floor"))
    assert set(dsm) == {"v5e", "v6e"} and set(floor) == {"v4", "v5e", "v6e"}
    for chip, step in dsm.items():
        assert step.images == floor[chip].images == 64 and step.parameters == 55_735_299
        assert floor[chip].flops / step.flops <= 1.40 and floor[chip].bytes / step.bytes <= 1.40  # as the page says


def test_the_command_counts_parameters_and_prints_every_table(tmp_path):
    written = tmp_path / "scaling.json"
    done = call("scaling", "--config=configs/cifar10.py:smoke", "--chips=8,16", "--batches=512", f"--json={written}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "nothing ran here" in done.stdout and "v5e: 7.79 TFLOP and 45.2 GB for 64 images" in done.stdout
    assert "data loading" in done.stdout and "checkpoints of" in done.stdout
    records = json.loads(written.read_text())
    assert len(records) == 2 * len(figures.MACHINES)
    assert all(0 < r["efficiency"] <= r["efficiency_overlapped"] <= 1 for r in records)


def test_the_command_reads_what_the_compiler_benchmark_wrote(tmp_path):
    written = tmp_path / "tpu.json"
    written.write_text(json.dumps([COMPILED]))
    done = call("scaling", f"--compiled={written}", "--program=floor", "--machines=v5e,v6e", "--chips=8")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all-reduced in a step: 220 MB" in done.stdout
    assert "v6e: 10.00 TFLOP and 50.0 GB for 64 images, compiled for v6e" in done.stdout
    assert "v5e: 10.00 TFLOP and 50.0 GB for 64 images, compiled for another chip" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--machines=v5x",), "unknown machine 'v5x'; did you mean 'v5"),
        (("--chips=8,x",), "--chips=8,x must be whole numbers of at least 1"),
        (("--machines=h200", "--chips=12"), "--chips=12: h200 joins 8 chips"),
        (("--machines=v5e", "--chips=512"), "--chips=512: v5e joins 256 chips"),
        (("--chips=7", "--batches=512"), "--chips=7 share none of --batches=512 equally"),
        (("--disk=0",), "--disk=0 must be a number above 0"),
        (("--compiled=nowhere.json",), "nowhere.json"),
        (("--config=configs/nowhere.py",), "no config file"),
    ],
)
def test_bad_arguments_end_in_one_line(arguments, said):
    done = call("scaling", *arguments)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
