"""The real entry point, as a process: the whole job in small, its errors, and what a kill leaves behind."""

import dataclasses
import functools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdsm_jax import compare_runs, main
from tdsm_jax.data.dataset import to_uint8
from tdsm_jax.diffusion.process import make_denoiser
from tdsm_jax.evaluation import comparison
from tdsm_jax.training import model_file
from tdsm_jax.training.state import stream_key

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = "configs/digits.py"
SMOKE = f"{DIGITS}:smoke,methods=dsm+tdsm+clean"


def command(*arguments, config=SMOKE):
    return [sys.executable, "-m", "tdsm_jax.main", f"--config={config}", *arguments]


def environment():
    cache = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")}
    return os.environ | cache | {"JAX_PLATFORMS": "cpu"}


def call(*arguments, config=SMOKE):
    return subprocess.run(
        command(*arguments, config=config),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def results(workdir):
    """What must not depend on interruptions: metrics without times, and every sample."""
    metrics = json.loads((workdir / "metrics.json").read_text())
    del metrics["seconds"]
    samples = {path.name: np.load(path)["images"] for path in sorted((workdir / "samples").glob("*.npz"))}
    return metrics, samples


def assert_same_results(a, b):
    metrics_a, samples_a = results(a)
    metrics_b, samples_b = results(b)
    assert metrics_a == metrics_b
    assert samples_a.keys() == samples_b.keys()
    for name in samples_a:
        np.testing.assert_array_equal(samples_a[name], samples_b[name])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workdir that one uninterrupted command has filled."""
    workdir = tmp_path_factory.mktemp("run") / "digits"
    done = call(f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


def test_one_command_leaves_metrics_and_a_report(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert list(metrics["methods"]) == ["dsm", "tdsm", "clean"]
    for values in metrics["methods"].values():
        assert 0 <= values["label_fidelity"] <= 1 and 0 <= values["cas"] <= 1
        assert values["label_fidelity_worst_class"] == min(values["label_fidelity_per_class"])
        assert np.sum(values["confusion"]) == 80
    assert metrics["recovery"] == metrics["methods"]["tdsm"]["recovery"]
    assert set(metrics["recovery"]) >= {"label_fidelity", "cas", "fd", "cw_fd", "density", "coverage"}
    assert metrics["seconds"].keys() >= {"labels", "classifier", "score/tdsm", "sample/tdsm", "measure/tdsm"}
    quality = metrics["classifier"]
    for name, most in (("accuracy", 1), ("calibration_error", 1), ("weight_error", 2)):
        assert len(quality[name]) == len(quality["sigma"]) and all(0 <= value <= most for value in quality[name])
    page = (finished / "report.html").read_text()
    assert "0.4" in page and page.count("data:image/png") >= 4
    assert {path.name for path in (finished / "samples").glob("*.png")} == {
        "dsm.png",
        "tdsm.png",
        "clean.png",
    }
    labels = np.load(finished / "samples" / "dsm.npz")["labels"]
    assert np.bincount(labels).tolist() == [8] * 10
    assert not list(finished.rglob("*.partial"))


def test_a_finished_run_is_not_done_again(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    done = call(f"--workdir={finished}")
    assert done.returncode == 0, done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}


def test_a_finished_run_can_be_put_beside_another(finished):
    run = compare_runs.read(str(finished), "digits")
    assert run.config["label_noise.rate"] == 0.4 and run.config["score.steps"] == 20
    assert all(len(records) == 4 for records in run.curves.values())
    page = comparison.render([run, dataclasses.replace(run, name="again")])
    assert page.count("<img") == 6 and "the same config each time" in page


def test_a_trained_model_file_is_sampled_without_a_config(finished, tmp_path):
    """The one-file export is all it takes: the same images as the run's own, which has the same seed."""
    model = finished / "score" / "tdsm" / "ema.npz"
    keys = ("--config.sampling.per_class=8", "--config.sampling.steps=4", "--config.sampling.batch_size=40")
    arguments = ("--stages=sample", f"--config.init_from={model}", *keys, f"--workdir={tmp_path}")
    done = subprocess.run(
        [sys.executable, "-m", "tdsm_jax.main", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    own, again = np.load(finished / "samples" / "tdsm.npz"), np.load(tmp_path / "samples" / "init.npz")
    np.testing.assert_array_equal(again["images"], own["images"])
    np.testing.assert_array_equal(again["labels"], own["labels"])
    assert (tmp_path / "samples" / "init.png").exists() and not (tmp_path / "labels.json").exists()


def test_samples_are_guided_as_asked(finished, tmp_path):
    """One step of the sampler is one look of the guided denoiser at pure noise; so short a fit needs a great scale."""
    path = finished / "score" / "tdsm" / "ema.npz"
    keys = ("steps=1", "guidance=300.0", "per_class=2", "batch_size=20")
    arguments = (f"--config.init_from={path}", "--config.methods=('init',)", *(f"--config.sampling.{k}" for k in keys))
    done = call("--stages=sample", *arguments, f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    model, key, label = model_file.read(path), stream_key(0, "sample"), jnp.arange(20) % 10
    normal = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), model.image_shape))(jnp.arange(20))
    denoise = make_denoiser(model.process, functools.partial(model.network.apply, model.params))
    D, D_null = (denoise(80 * normal, jnp.full(20, 80.0), y) for y in (label, jnp.full(20, 10)))
    made = np.load(tmp_path / "samples" / "init.npz")["images"].astype(int)
    plain, expected = (to_uint8(np.asarray(image)) for image in (D, D_null + 300 * (D - D_null)))
    assert np.abs(made - plain).max() > 10 and np.abs(made - expected).max() <= 1


def test_training_goes_on_from_a_model_file(finished, tmp_path):
    """With a learning rate of nothing, what comes out is what went in."""
    model = finished / "score" / "tdsm" / "ema.npz"
    keys = (f"--config.init_from={model}", "--config.methods=('dsm',)", "--config.score.learning_rate=1e-12")
    done = call(f"--workdir={tmp_path / 'w'}", "--stages=labels,score", *keys)
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = np.load(model), np.load(tmp_path / "w" / "score" / "dsm" / "ema.npz")
    for name in set(before.files) - {"description"}:
        np.testing.assert_allclose(after[name], before[name], atol=1e-8, err_msg=name)
    done = call(f"--workdir={tmp_path / 'x'}", "--stages=labels,score", *keys, "--config.network.channels=16")
    assert done.returncode == 2 and "does not fit" in done.stderr and done.stderr.count("\n") <= 2


@pytest.mark.parametrize(
    ("config", "classifier"),
    [
        ("cifar10", "resnet18"),
        pytest.param("mnist", "cnn", marks=pytest.mark.slow),  # as cifar10, with one channel and the other classifier
        pytest.param("cifar100", "resnet18", marks=pytest.mark.slow),  # as cifar10, with more classes
    ],
)
def test_the_published_recipes_run_in_small(config, classifier, tmp_path):
    objective = "published" if config == "cifar10" else "floor"
    arguments = f"configs/{config}.py:smoke,methods=tdsm,objective={objective}"
    done = call(f"--workdir={tmp_path}", config=arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics["methods"]) == ["tdsm"]
    samples = np.load(tmp_path / "samples" / "tdsm.npz")
    channels, K = (1 if config == "mnist" else 3), (100 if config == "cifar100" else 10)
    assert samples["images"].shape == (2 * K, 32, 32, channels)
    model = json.loads(str(np.load(tmp_path / "score" / "tdsm" / "ema.npz")["description"]))
    assert model["network"]["augment_dim"] == 9 and model["network"]["num_classes"] == K
    folds = sorted(path.name for path in (tmp_path / "classifier").glob("*.npz"))
    assert folds == (["fold0.npz"] if objective == "published" else ["fold0.npz", "fold1.npz"])
    statistics = [name for name in np.load(tmp_path / "classifier" / "fold0.npz").files if "batch_stats" in name]
    assert bool(statistics) == (classifier != "cnn")


@pytest.mark.slow
def test_the_full_size_cifar10_network_takes_a_training_step(tmp_path):
    config = "configs/cifar10.py:smoke,methods=dsm"
    network = ("channels=128", "multipliers=(2,2,2)", "blocks=4")
    keys = [f"--config.network.{key}" for key in network]
    keys += ["--config.score.steps=1", "--config.score.batch_size=4", "--config.logging.log_every=1"]
    done = call(f"--workdir={tmp_path}", "--stages=labels,score", *keys, config=config)
    assert done.returncode == 0, done.stderr[-3000:]
    model = np.load(tmp_path / "score" / "dsm" / "ema.npz")
    count = sum(model[name].size for name in model.files if name != "description")
    assert count == pytest.approx(55.7e6, rel=0.01)


def test_a_singular_matrix_file_is_refused_at_once(tmp_path):
    np.save(tmp_path / "S.npy", np.full((10, 10), 0.1))
    keys = ("--config.transition.estimator=file", f"--config.transition.path={tmp_path / 'S.npy'}")
    done = call(f"--workdir={tmp_path / 'w'}", *keys, "--dry_run")
    assert done.returncode == 2 and "every clean class has (nearly) the same row" in done.stderr
    assert not (tmp_path / "w").exists()


def test_dry_run_prints_config_and_plan_and_writes_nothing(tmp_path):
    done = call(f"--workdir={tmp_path / 'new'}", "--dry_run", "--config.score.steps=7")
    assert done.returncode == 0, done.stderr
    assert '"steps": 7' in done.stdout and "score/tdsm" in done.stdout
    assert not (tmp_path / "new").exists()


def test_how_it_is_computed_may_change_and_the_task_may_not(finished):
    keys = ("--config.compute.parts=2", "--config.compute.remat=True", "--config.compute.steps_a_call=1")
    done = call(f"--workdir={finished}", *keys, "--dry_run")
    assert done.returncode == 0 and "of another config" not in done.stdout
    assert all("done" in line for line in done.stdout.splitlines() if line.startswith("  score/"))
    before = (finished / "report.html").read_bytes()
    done = call(f"--workdir={finished}", "--stages=report", config="configs/robust_losses.py:smoke")
    assert done.returncode == 2 and (finished / "report.html").read_bytes() == before


def test_class_imbalance_concerns_every_unit_that_sees_training_images(finished):
    """Also those that read no noisy label: the clean ceiling and the judge."""
    done = call(f"--workdir={finished}", "--config.label_noise.imbalance=0.5", "--dry_run")
    assert done.returncode == 0, done.stderr
    state = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    for unit in ("labels", "score/dsm", "score/clean", "judge", "measure/clean"):
        assert "label_noise.imbalance: 1.0 -> 0.5" in state[unit] or "unit " in state[unit], state[unit]


def test_a_changed_matrix_file_makes_new_labels(tmp_path):
    path, workdir = tmp_path / "S.npy", tmp_path / "run"
    keys = ("--config.label_noise.kind=matrix", f"--config.label_noise.path={path}", "--stages=labels")
    np.save(path, 0.5 * np.eye(10) + 0.05)
    assert call(f"--workdir={workdir}", *keys).returncode == 0
    before = json.loads((workdir / "labels.json").read_text())["S"]
    np.save(path, 0.8 * np.eye(10) + 0.02)
    done = call(f"--workdir={workdir}", *keys)
    assert done.returncode == 2 and "S.npy" in done.stderr
    done = call(f"--workdir={workdir}", *keys, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert json.loads((workdir / "labels.json").read_text())["S"] != before


@pytest.mark.parametrize("form", ["=", " "])
def test_a_missing_or_truncated_model_file_ends_in_one_line(form, tmp_path):
    (tmp_path / "cut.npz").write_bytes(b"PK" + bytes(50))
    for name in ("cut.npz", "none.npz"):
        flag = f"--config.init_from{form}{tmp_path / name}".split(" ")
        done = subprocess.run(
            [sys.executable, "-m", "tdsm_jax.main", "--stages=sample", *flag, f"--workdir={tmp_path / 'w'}"],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2 and name in done.stderr.splitlines()[-1], done.stderr
        assert "Traceback" not in done.stderr


def test_another_config_does_not_overwrite(finished):
    done = call(f"--workdir={finished}", "--config.score.steps=21")
    assert done.returncode == 2
    assert "holds score/dsm of another config (score.steps: 20 -> 21)" in done.stderr
    done = call(f"--workdir={finished}", "--config.score.steps=21", "--dry_run")
    assert done.returncode == 0 and "score.steps: 20 -> 21" in done.stdout


def test_only_what_changed_is_made_again(finished, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", finished, copy], check=True)
    done = call(f"--workdir={copy}", "--config.sampling.steps=3", "--overwrite", "--stages=sample")
    assert done.returncode == 0, done.stderr
    assert np.any(np.load(copy / "samples/dsm.npz")["images"] != np.load(finished / "samples/dsm.npz")["images"])
    assert (copy / "score/dsm/ema.npz").stat().st_mtime_ns != 0
    assert (copy / "score/dsm/ema.npz").read_bytes() == (finished / "score/dsm/ema.npz").read_bytes()


def test_an_edited_label_file_is_noticed(finished, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", finished, copy], check=True)
    text = (copy / "labels.json").read_text()
    (copy / "labels.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    done = call(f"--workdir={copy}")
    assert done.returncode == 2 and "labels.json was changed after labels wrote it" in done.stderr


def test_samples_do_not_depend_on_the_batch_size(finished, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", finished, copy], check=True)
    done = call(f"--workdir={copy}", "--config.sampling.batch_size=32", "--overwrite", "--stages=sample")
    assert done.returncode == 0, done.stderr
    for method in ("dsm", "tdsm", "clean"):
        a, b = (np.load(d / "samples" / f"{method}.npz")["images"].astype(int) for d in (finished, copy))
        assert np.abs(a - b).max() <= 1  # rounding to uint8 may tip over


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config.score.stepz=3"], "unknown config key 'score.stepz'; did you mean 'score.steps'?"),
        (["--config.score.steps=many"], "--config.score.steps=many: invalid literal for int()"),
        (["--config.label_noise.rate=1.5"], "config key label_noise.rate=1.5 must lie in [0, 1]"),
        (["--config.label_noise.rate=0.9"], "clean labels cannot be identified"),
        (
            ["--config.label_noise.kind=pair", "--config.label_noise.rate=0.5"],
            "clean labels cannot be identified",
        ),
        (
            ["--config.network.multipliers=(1,1,1,1,1)"],
            "config key network.multipliers halves 8x8 images 4 times",
        ),
        (["--config.evaluation.nearest=500"], "config key evaluation.nearest=500 must be below the 13"),
        (["--stages=scores"], "unknown stage 'scores'; did you mean 'score'?"),
        (["--stages=sample"], "sample/dsm needs score/dsm, which is not there"),
        (["--stages", "labels", "classifier"], "'classifier' is no flag"),
        (["--config.network.channels=15"], "config key network.channels: 15 must be even"),
        (["--config.data.test_fraction=0.005"], "the test set needs two images of each class"),
        (["--workdir="], "give --config=configs/digits.py and --workdir=FOLDER"),
        (["--wrokdir=x"], "Unknown command line flag 'wrokdir'"),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path, arguments, said):
    done = call(f"--workdir={tmp_path / 'new'}", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (f"{DIGITS}:nose=sym", "unknown config argument 'nose'; did you mean 'noise'?"),
        (f"{DIGITS}:rate=2", "config key label_noise.rate=2.0 must lie in [0, 1]"),
        ("configs/digit.py", "no config file configs/digit.py"),
    ],
)
def test_a_bad_config_ends_in_one_line(tmp_path, config, said):
    done = call(f"--workdir={tmp_path / 'new'}", config=config)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr
    assert not (tmp_path / "new").exists()


def test_work_of_others_is_not_overwritten(tmp_path):
    (tmp_path / "report.html").write_text("mine")
    done = call(f"--workdir={tmp_path}")
    assert done.returncode == 2 and "is not the work of this program" in done.stderr
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_damaged_artifact_is_named_and_made_again_once_deleted(finished, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", finished, copy], check=True)
    ema = copy / "score" / "dsm" / "ema.npz"
    ema.write_bytes(ema.read_bytes()[:100])
    done = call(f"--workdir={copy}")
    assert done.returncode == 2 and "ema.npz was changed after score/dsm wrote it" in done.stderr
    ema.unlink()
    done = call(f"--workdir={copy}")
    assert done.returncode == 0, done.stderr
    assert_same_results(copy, finished)


def test_help_shows_examples_and_flags():
    done = subprocess.run(
        [sys.executable, "-m", "tdsm_jax.main", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    for word in ("--config=configs/digits.py", "--workdir", "--stages", "dry_run", "overwrite"):
        assert word in done.stdout


def kill_when(process, condition, deadline=120):
    """Kills the process as soon as `condition` holds; says whether it was still running."""
    end = time.monotonic() + deadline
    while process.poll() is None and not condition() and time.monotonic() < end:
        time.sleep(0.02)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return alive


def start(workdir, *arguments, config=SMOKE, **options):
    quiet = {"cwd": ROOT, "env": environment(), "stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    return subprocess.Popen(command(f"--workdir={workdir}", *arguments, config=config), **quiet | options)


def test_a_killed_run_goes_on_to_the_same_results(finished, tmp_path):
    workdir = tmp_path / "killed"
    for sign in ("classifier/fold1/checkpoints/00000010.json", "score/tdsm/checkpoints/00000010.json"):
        assert kill_when(start(workdir), (workdir / sign).exists), f"ended before {sign}"
    done = call(f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "score/tdsm, going on" in done.stderr
    assert_same_results(workdir, finished)


@pytest.fixture
def interruptible():
    """Processes that are started hear SIGINT, also where those of this one, in a shell's background, would not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interruption_ends_in_one_line(interruptible, tmp_path):
    """Not in a crash of the threads that compile while their process is taken down around them."""
    compiles_long = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"), "XLA_FLAGS": ""}
    options = {"env": environment() | compiles_long, "stderr": subprocess.PIPE, "text": True}
    given = ("--stages=labels,score", "--config.score.steps=1000000")
    run = start(tmp_path / "run", *given, config="configs/digits.py:smoke,methods=dsm", **options)
    while "score/dsm" not in run.stderr.readline():
        assert run.poll() is None
    time.sleep(2)
    run.send_signal(signal.SIGINT)
    last = run.communicate()[1].splitlines()[-1]
    assert run.returncode == 130 and last.startswith("interrupted; the same command goes on")


def test_a_killed_sampling_goes_on_after_its_finished_batches(finished, tmp_path):
    workdir = tmp_path / "killed"
    arguments = ("--config.sampling.batch_size=4", "--stages=labels,score,sample")
    small = {"config": "configs/digits.py:smoke,methods=dsm"}
    parts = workdir / "samples" / "dsm.parts"
    assert kill_when(start(workdir, *arguments, **small), (parts / "00000008.npz").exists)
    made = {path: path.stat().st_mtime_ns for path in sorted(parts.glob("*.npz"))[:3]}
    assert kill_when(start(workdir, *arguments, **small), (parts / "00000020.npz").exists)
    assert {path: path.stat().st_mtime_ns for path in made} == made  # not made again
    done = call(f"--workdir={workdir}", *arguments, **small)
    assert done.returncode == 0, done.stderr
    a, b = (np.load(d / "samples" / "dsm.npz")["images"].astype(int) for d in (finished, workdir))
    assert a.shape == b.shape and np.abs(a - b).max() <= 1  # rounding to uint8 may tip over
    assert not parts.exists()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("runs/digits/score/tdsm/ema.npz", "tdsm"),
        ("runs/digits/score/tdsm/checkpoints/00000600", "tdsm-00000600"),
        ("ema.npz", "model"),
    ],
)
def test_samples_of_a_model_have_a_folder_of_their_own(model, name):
    argv = main.complete(["main", f"--config.init_from={model}"])
    assert f"--workdir=runs/samples-of-{name}" in argv


@pytest.mark.slow
def test_five_random_kills(finished, tmp_path):
    workdir, rng = tmp_path / "killed", random.Random(0)
    for _ in range(5):
        end = time.monotonic() + rng.uniform(4, 25)
        kill_when(start(workdir), lambda end=end: time.monotonic() > end)
    done = call(f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert_same_results(workdir, finished)
    assert not list(workdir.rglob("*.partial"))


def test_every_objective_runs_on_an_ensemble_and_an_estimated_matrix(tmp_path):
    methods = "relabel_tdsm+posterior+tdsm_sampled"
    keys = ("--config.classifier.members=2", "--config.evaluation.steps=5", "--config.label_noise.imbalance=0.5")
    keys += ("--config.transition.features=network", "--config.transition.start=hoc_shrunk")
    keys += ("--config.classifier.steps=120", "--config.classifier.evaluate_every=40", "--config.relabel=soft")
    config = f"{DIGITS}:smoke,noise=instance,transition=em_calibrated,methods={methods}"
    done = call(f"--workdir={tmp_path}", *keys, config=config)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics["methods"]) == methods.split("+")
    w = np.load(tmp_path / "image_posterior.npz")["w"]
    np.testing.assert_allclose(w.sum(axis=1), 1, rtol=1e-5)
    counts = np.bincount(np.load(tmp_path / "samples" / "posterior.npz")["labels"])
    assert counts.tolist() == [8] * 10 and len(w) < 1438
    assert (tmp_path / "classifier" / "fold1_member1.npz").exists()
    estimated = json.loads((tmp_path / "estimate.json").read_text())
    used = json.loads((tmp_path / "transition.json").read_text())
    np.testing.assert_allclose(used["S"], estimated["S"], rtol=1e-6)
    assert 0 < used["relative_l1"] < 0.5
