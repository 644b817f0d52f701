"""The comparison with PyTorch: both sides compute the same before anything is timed. Skipped where PyTorch is not."""

import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from tdsm_jax import config as configuration
from tdsm_jax.benchmark import torch_handover, torch_timing
from tdsm_jax.benchmark.cells import carry_out
from tdsm_jax.benchmark.torch_process import check_python
from tdsm_jax.errors import UserError
from tdsm_jax.labels.weights import make_table
from tdsm_jax.run import optimisation
from tdsm_jax.training.state import initial_state, unflatten_params, update

ROOT = pathlib.Path(__file__).parents[1]
BATCH = 12


@pytest.fixture(scope="module")
def torch_baseline():
    module = pytest.importorskip("tdsm_jax.benchmark.torch_baseline")
    module.torch.set_num_threads(1)  # two that wait for each other are far slower where other tests run
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Digits with a network of two levels and attention on both, a classifier after a few steps."""
    config = configuration.load_module(ROOT / "configs/digits.py").get_config("smoke")
    torch_handover.like_for_like(config, "float32", BATCH)
    config.network.update(multipliers=(1, 2), attention_resolutions=(8,))
    config.sampling.steps = 3
    return carry_out(config, tmp_path_factory.mktemp("run"), ("labels", "classifier", "transition"))


@pytest.fixture(scope="module")
def handed_over(run, tmp_path_factory):
    """What is handed over and the folder it lies in: (params, batches, probe, folder)."""
    folder = tmp_path_factory.mktemp("torch")
    params, batches, probe = (
        torch_handover.stirred_params(run), torch_handover.make_batches(run), torch_handover.make_probe(run)
    )  # fmt: skip
    torch_handover.hand_over(run, params, batches, probe, folder, device="cpu", threads=1)
    return params, batches, probe, folder


@pytest.fixture
def baseline(torch_baseline, handed_over):
    return torch_baseline.Baseline(handed_over[-1])


def test_both_sides_compute_the_same(run, handed_over, baseline):
    params, batches, probe, folder = handed_over
    ours = torch_handover.outputs(run, params, batches[0], probe)
    baseline.write_outputs()
    theirs = dict(np.load(folder / "torch_outputs.npz"))
    assert ours.keys() == theirs.keys() and probe.dropped.any()
    torch_handover.compare(ours, theirs)
    assert all(np.std(theirs[name]) > 0.01 for name in ("w", "D", "samples"))
    assert len({float(theirs[f"{task} gradient norm"]) for task in torch_handover.METHODS}) == 3


def test_a_difference_is_refused_in_one_line():
    ours = {"D": np.array([1.0, -2.0])}
    assert torch_handover.compare(ours, {"D": ours["D"] + 1e-4}) == {"D": pytest.approx(5e-5)}
    for theirs in (ours["D"] + 3e-4, ours["D"] * np.nan):
        with pytest.raises(UserError, match="D differs by .* nothing is timed"):
            torch_handover.compare(ours, {"D": theirs})


def test_dense_noise_has_slots_of_its_own(torch_baseline, run, monkeypatch):
    """The floor rule with residual classes and the null label, from weights alone."""
    import torch

    K, rng = run.num_classes, np.random.default_rng(0)
    table = make_table(rng.dirichlet(np.ones(K), K) / 2 + np.eye(K) / 2, np.full(K, 1 / K))
    w = rng.dirichlet(np.ones(K), BATCH).astype(np.float32)
    y_tilde, dropped = np.arange(BATCH) % K, np.arange(BATCH) == 3
    plan = torch_handover.mixture.floor_plan(table, jnp.asarray(w), jnp.asarray(y_tilde), (2, True))
    plan = torch_handover.mixture.drop_labels(plan, jnp.asarray(dropped), null=K)
    sizes, M = [], []

    def denoise(x, sigma, label, dropout_rate=0.0):
        sizes.append(len(label))
        return torch.ones_like(x) * label[:, None, None, None]

    losses = torch_baseline.Losses(
        denoise, lambda *_: torch.from_numpy(w), torch.tensor(np.asarray(table.residual)), (2, True), 0.01, 0.5, 0.0
    )
    monkeypatch.setattr(torch_baseline.Losses, "compared", lambda self, mixture, *_: M.append(mixture))
    x0 = torch.zeros(BATCH, 1, 2, 2)
    arguments = (x0, x0, torch.from_numpy(y_tilde), torch.ones(BATCH), torch.from_numpy(dropped))
    losses.floor(*arguments)
    np.testing.assert_allclose(M[0][:, 0, 0, 0], (plan.classes * plan.weights).sum(1), rtol=1e-5)
    assert sizes == [BATCH, 3 * BATCH]
    sizes.clear()
    losses.published(*arguments)  # a class at a time, those that no example keeps left out
    kept = (w > 0.01) & ~dropped[:, None] & (y_tilde[:, None] != np.arange(K))
    assert sizes == [BATCH, *filter(None, kept.sum(0))]
    expected = np.where(dropped, K, (w * (kept | (y_tilde[:, None] == np.arange(K))) * np.arange(K)).sum(1))
    np.testing.assert_allclose(M[1][:, 0, 0, 0], expected, rtol=1e-5)


def test_optimiser_and_average_move_alike(run, handed_over, baseline):
    import torch

    rng, settings = np.random.default_rng(1), optimisation(run.config.score)
    names = [f"p{i}" for i in range(len(baseline.parameters))]
    params = {name: p.detach().numpy().copy() for name, p in zip(names, baseline.parameters, strict=True)}
    state = initial_state(unflatten_params(params), settings)
    for _ in range(3):
        gradient = {name: rng.standard_normal(array.shape).astype(np.float32) for name, array in params.items()}
        state = update(state, gradient, settings)
        for name, parameter in zip(names, baseline.parameters, strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(torch.from_numpy(gradient[name]))  # of its layout
        baseline.update()
    for name, parameter, average in zip(names, baseline.parameters, baseline.average, strict=True):
        np.testing.assert_allclose(parameter.detach(), state.params[name], atol=1e-6)
        np.testing.assert_allclose(average, state.ema_params[name], atol=1e-6)
        assert not np.array_equal(average, state.params[name])


def test_a_training_step_moves_every_parameter(baseline):
    before = [p.detach().clone() for p in baseline.parameters]
    assert len(baseline.time("published", "eager", units=2)) == 2
    assert baseline.steps == 2 and all((p != b).any() for p, b in zip(baseline.parameters, before, strict=True))


class Side:
    """Answers as a side does, with seconds as given."""

    def __init__(self, seconds):
        self.seconds, self.asked = seconds, []

    def warm(self, task):
        return 10.0

    def time(self, task, units):
        self.asked.append((task, units))
        return [self.seconds] * units


def test_sides_take_turns_and_are_compared_with_eager():
    sides = {torch_timing.JAX: Side(0.1), torch_timing.EAGER: Side(0.2), torch_timing.COMPILED: Side(0.16)}
    records = torch_timing.measure(sides, batch_size=8, rounds=2, steps=3)
    assert [(r["task"], r["side"]) for r in records[:3]] == [("dsm", name) for name in sides]
    assert [r["ratio"] for r in records[:3]] == pytest.approx([2, 1, 1.25])
    assert records[0]["images_per_second"] == pytest.approx(80) and records[0]["compile_seconds"] == 9.9
    assert len(records[0]["seconds"]) == 6 and len(records[-1]["seconds"]) == 2
    assert sides["JAX"].asked == 2 * [("dsm", 3), ("floor", 3), ("published", 3), ("sampling", 1)]
    lines = torch_timing.table(records).splitlines()
    assert lines[2] == "| DSM step | JAX | 100.0 (100.0..100.0) | 80 | 2.00 | 9.9 |"
    assert lines[-1].endswith("published loop: 2.00 of PyTorch eager, 1.60 of PyTorch compile")


def test_a_python_without_pytorch_is_refused_in_one_line(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ModuleNotFoundError: no torch' >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(UserError, match="has no PyTorch: pip install 'tdsm_jax\\[torch\\]'"):
        check_python(str(python), "cpu")
    with pytest.raises(UserError, match="does not run"):
        check_python(str(tmp_path / "none"), "cpu")


def test_what_has_no_counterpart_is_refused():
    config = configuration.load_module(ROOT / "configs/digits.py").get_config()
    config.network.style = "adm"
    with pytest.raises(UserError, match="ddpmpp"):
        torch_handover.like_for_like(config, "float32", None)


@pytest.mark.slow
def test_the_command_compares_times_and_reports(torch_baseline, tmp_path):
    command = [sys.executable, "-m", "tdsm_jax.benchmark.torch", "--config=configs/digits.py:smoke"]
    done = subprocess.run(
        [*command, f"--out={tmp_path}", "--rounds=1", "--steps=1", "--batch=8", "--config.sampling.steps=2"],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "outputs agree" in done.stdout and done.stdout.count("| JAX |") == 4
    found = json.loads((tmp_path / "torch.json").read_text())
    assert len(found["records"]) == 12 and max(found["errors"].values()) < 1e-4 and found["pytorch"]["torch"]
