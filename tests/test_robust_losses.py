"""The benchmark of robust losses: the real entry point in small, resume, the tables, one compilation for all fits."""

import json
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

import test_main
from tdsm_jax import checks, plan, robust_losses
from tdsm_jax import config as configuration
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import robust_page
from tdsm_jax.run import Run
from tdsm_jax.training import fit_step
from tdsm_jax.validation import validate

CONFIG = "configs/robust_losses.py"
SMALL = "--config.robust_losses.networks=('cnn',)"  # compiling a ResNet costs more than all else


def call(workdir, *arguments):
    return test_main.call(f"--workdir={workdir}", SMALL, *arguments, config=f"{CONFIG}:smoke")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workdir that one uninterrupted command has filled."""
    workdir = tmp_path_factory.mktemp("robust") / "run"
    done = call(workdir)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


def make_run(workdir, **changed):
    config = configuration.load_module(test_main.ROOT / CONFIG).get_config("smoke")
    config.robust_losses.update(changed)
    validate(config)
    return Run(FrozenConfigDict(config), pathlib.Path(workdir))


def test_one_command_leaves_table_metrics_and_page(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    results = metrics["results"]["cnn"]
    assert list(results) == ["sym:0", "sym:0.6", "asym:0.4"] and metrics["seeds"] == [0, 1]
    for losses in results.values():
        assert list(losses) == ["ce", "nce+rce"]
        for measures in losses.values():
            assert measures.keys() == {"last", "best", "validation", "reproduced"}
            assert all(len(values) == 2 and all(0 <= v <= 1 for v in values) for values in measures.values())
    one = json.loads((finished / "fits" / "cnn" / "sym0.6" / "seed1.json").read_text())
    assert one["losses"]["ce"]["last"] == results["sym:0.6"]["ce"]["last"][1]
    assert one["realised_rate"] == pytest.approx(0.6, abs=0.05)
    assert results["sym:0"] != results["sym:0.6"] and len(set(results["sym:0"]["ce"]["reproduced"])) == 2
    assert f"{100 * np.mean(results['sym:0']['ce']['last']):.1f} ±" in (finished / "table.md").read_text()
    page = (finished / "report.html").read_text()
    assert (
        page.count("<svg") >= 4 and page.count("<tbody>") >= 3 and "http" not in page.replace("http://www.w3.org", "")
    )


def test_only_what_is_missing_is_made_again(finished, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", finished, copy], check=True)
    again, kept = (copy / "fits" / "cnn" / name for name in ("sym0.6/seed1.json", "sym0/seed0.json"))
    before, untouched = again.read_bytes(), kept.stat().st_mtime_ns
    again.unlink()
    done = call(copy)
    assert done.returncode == 0, done.stderr[-3000:]
    assert again.read_bytes() == before and kept.stat().st_mtime_ns == untouched
    done = call(copy, "--config.robust_losses.noises=('sym:0','sym:0.2')", "--dry_run")
    state = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if line.startswith("  fit/")}
    assert (
        state["fit/cnn/sym0/seed0"] == "done" and state["fit/cnn/sym0.2/seed0"] == "run"
    )  # a longer list costs itself


def test_the_step_is_compiled_once_for_all_noises_and_seeds(tmp_path, monkeypatch):
    run, traces, original = make_run(tmp_path, steps=2), [], fit_step.example_losses
    monkeypatch.setattr(fit_step, "example_losses", lambda *rest: traces.append(rest[0].loss) or original(*rest))
    robust_losses.fit(run, robust_losses.Fit("cnn", "sym:0", 0))
    assert set(traces) == {"ce", "nce+rce"}
    traces.clear()
    for which in (robust_losses.Fit("cnn", "sym:0.6", 0), robust_losses.Fit("cnn", "asym:0.4", 1)):
        robust_losses.fit(run, which)
    assert not traces


def test_the_weights_of_sums_and_the_larger_network(tmp_path):
    run = make_run(tmp_path, active_weight=2.0, passive_weight=5.0, resnet_width=4)
    assert robust_losses.fit_settings(run, "cnn", "nce+rce").loss_parameters == (("a", 2.0), ("b", 5.0))
    settings = robust_losses.fit_settings(run, "resnet18", "ce")
    assert settings.loss_parameters == () and settings.stopping_by == "accuracy"
    x, c_noise = jnp.zeros((3, 8, 8, 1)), jnp.zeros(3)
    variables = jax.eval_shape(settings.network.init, jax.random.key(0), x, c_noise)
    logits, features = jax.eval_shape(settings.network.apply, variables, x, c_noise)
    assert logits.shape == (3, 10) and features.shape == (3, 4 * 8)


def test_the_plan_has_one_unit_for_a_network_a_noise_and_a_seed(tmp_path):
    run = make_run(tmp_path, networks=("cnn", "resnet18"))
    checks.check(run)
    units = plan.units(run)
    assert [unit.stage for unit in units] == ["fit"] * 12 + ["report"]
    reads = {unit.name: unit.reads for unit in units}
    assert "robust_losses.cnn_widths" in reads["fit/cnn/sym0/seed0"]
    assert "robust_losses.cnn_widths" not in reads["fit/resnet18/sym0/seed0"]


RESULTS = {
    "cnn": {
        f"sym:{rate}": {
            loss: {m: [a, a + 0.02] for m in ("last", "best", "reproduced")} for loss, a in (("ce", c), ("nce", n))
        }
        for rate, c, n in (("0", 0.9, 0.8), ("0.8", 0.1, 0.3))
    }
}


def test_tables_hold_mean_spread_and_the_best_of_each_column():
    found = {measure: (noises, rows) for _, measure, noises, rows in robust_page.tables(RESULTS)}
    noises, rows = found["last"]
    assert noises == ["sym:0", "sym:0.8"]
    assert rows == [["ce", "**91.0 ± 1.4**", "11.0 ± 1.4"], ["nce", "81.0 ± 1.4", "**31.0 ± 1.4**"]]
    assert "**" not in str(found["reproduced"])  # more is not better there
    page = robust_page.render("title", RESULTS, {}, {}, {})
    assert page.count("<b>31.0 ± 1.4</b>") == 2 and "nce: 80, 31" in page


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("losses", ("ce", "nec"), "config key robust_losses.losses: 'nec' is not a choice; did you mean 'nce'?"),
        ("networks", ("resnet",), "did you mean 'resnet"),
        ("noises", ("sim:0.4",), "unknown kind 'sim'; did you mean 'sym'?"),
        ("noises", ("sym0.4",), "unknown kind 'sym0.4'; did you mean 'sym'?"),
        ("noises", ("sym",), "label noise 'sym' must be a kind and a rate in [0, 1], such as sym:0.4"),
        ("noises", ("sym:1.4",), "such as sym:0.4"),
        ("noises", ("sym:nan",), "such as sym:0.4"),
        ("seeds", (0, 0), "name each once"),
        ("seeds", (), "at least one"),
        ("seeds", (-1,), "must lie in [0, inf]"),
        ("cnn_widths", (8,), "cnn_widths two"),
    ],
)
def test_bad_values_end_in_one_line(tmp_path, key, value, said):
    with pytest.raises(UserError) as error:
        make_run(tmp_path, **{key: value})
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_does_not_go_with_the_data_is_refused_before_any_fit(tmp_path):
    with pytest.raises(UserError, match="validation_share=0.0 of 1438 images leaves none to validate"):
        checks.check(make_run(tmp_path, validation_share=0.0))
    config = configuration.load_module(test_main.ROOT / CONFIG).get_config("smoke")
    config.label_noise.table = "cifar100"
    with pytest.raises(UserError, match="table 'cifar100' is for 100 classes"):
        checks.check(Run(FrozenConfigDict(config), tmp_path))
    done = call(tmp_path / "new", "--config.robust_losses.noises=('sym:much',)")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "error: label noise 'sym:much' must be" in done.stderr and not (tmp_path / "new").exists()
