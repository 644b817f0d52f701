"""Checkpoints: what is saved comes back bit for bit; what is damaged or unfinished never does."""

import logging as std_logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging

from tdsm_jax import files
from tdsm_jax.errors import UserError
from tdsm_jax.training import manifests
from tdsm_jax.training.checkpoint import Checkpoints


class State(NamedTuple):
    step: jax.Array
    params: dict
    opt_state: tuple
    key: jax.Array


def make_state(seed: int, width: int = 40) -> State:
    kernel_key, bias_key = jax.random.split(jax.random.key(seed))
    params = {
        "dense": {
            "kernel": jax.random.normal(kernel_key, (30, width)),
            "bias": jax.random.normal(bias_key, (width,), jnp.bfloat16),
        },
        "no parameters": {},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    return State(jnp.int32(seed), params, optimizer.init(params), jnp.array([0, seed], jnp.uint32))


def assert_same(actual, expected) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array) and a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save_all(directory: pathlib.Path, *steps: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(directory, keep=keep)
    for step in steps:
        checkpoints.save(step, make_state(step))
    checkpoints.wait()
    return checkpoints


def names(directory: pathlib.Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("two_steps")
    save_all(directory, 1, 2)
    return directory


@pytest.fixture
def copy(two_steps, tmp_path) -> pathlib.Path:
    return shutil.copytree(two_steps, tmp_path / "copy")


@pytest.fixture
def gate(monkeypatch) -> threading.Event:
    """Holds every save between its last array and its manifest until set."""
    gate, write_manifest = threading.Event(), manifests.write

    def wait_and_write(*arguments):
        assert gate.wait(timeout=60)
        write_manifest(*arguments)

    monkeypatch.setattr(manifests, "write", wait_and_write)
    return gate


def flip(path: pathlib.Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# What is saved comes back.


@pytest.mark.parametrize("abstract", [False, True])
def test_round_trip(two_steps, abstract):
    like = make_state(0)
    step, state = Checkpoints(two_steps).restore(jax.eval_shape(lambda: like) if abstract else like)
    assert step == 2
    assert_same(state, make_state(2))


def test_nothing_saved_restores_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.latest_step() is None
    assert checkpoints.restore(make_state(0)) is None


def test_a_relative_directory_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_all(pathlib.Path("here"), 3)
    assert names(tmp_path / "here") == ["00000003", "00000003.json"]


def test_what_happens_to_the_state_after_save_is_not_saved(tmp_path):
    donate = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    state = {"donated": jnp.arange(300_000.0), "overwritten": np.zeros(300_000, np.float32)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    overwritten = state["overwritten"]
    donate(donate(state["donated"]))
    overwritten[:] = 7
    like = {"donated": jnp.zeros(300_000), "overwritten": jnp.zeros(300_000)}
    _, restored = checkpoints.restore(like)
    assert_same(restored, {"donated": jnp.arange(300_000.0), "overwritten": jnp.zeros(300_000)})


def test_restores_onto_eight_devices_what_one_device_saved(two_steps):
    script = """
import sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
import test_checkpoint as test
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
def abstract(leaf):
    spec = PartitionSpec(None, "data") if leaf.ndim == 2 else PartitionSpec()
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))
like = jax.tree.map(abstract, test.make_state(0))
step, state = test.Checkpoints(sys.argv[1]).restore(like)
assert step == 2
assert all(leaf.sharding == wanted.sharding for leaf, wanted in zip(*map(jax.tree.leaves, (state, like))))
assert state.params["dense"]["kernel"].addressable_shards[3].data.shape == (30, 5)
test.assert_same(state, test.make_state(2))
"""
    run_child(script, two_steps, XLA_FLAGS=f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8")


# Saving overlaps with training, in the right order.


def test_a_step_counts_from_its_manifest_on(tmp_path, gate):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1))
    assert checkpoints.latest_step() is None
    assert not (tmp_path / "00000001.json").exists()
    gate.set()
    checkpoints.wait()
    assert checkpoints.latest_step() == 1
    assert names(tmp_path) == ["00000001", "00000001.json"]


def test_old_steps_go_once_the_new_one_is_complete(tmp_path, gate):
    gate.set()
    checkpoints = save_all(tmp_path, 1, 2, keep=2)
    gate.clear()
    checkpoints.save(3, make_state(3))
    assert {"00000001.json", "00000002.json"} < set(names(tmp_path))
    gate.set()
    checkpoints.wait()
    assert names(tmp_path) == ["00000002", "00000002.json", "00000003", "00000003.json"]


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1))
    checkpoints.save(1, make_state(5))
    assert_same(checkpoints.restore(make_state(0))[1], make_state(1))


def test_a_failed_save_is_raised_by_wait_and_does_not_count(tmp_path, monkeypatch):
    def full_disk(*arguments):
        raise OSError("No space left on device")

    checkpoints = save_all(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(manifests, "write", full_disk)
        checkpoints.save(2, make_state(2))
        with pytest.raises(OSError, match="No space left"):
            checkpoints.wait()
    assert checkpoints.latest_step() == 1
    checkpoints.save(2, make_state(2))
    assert checkpoints.restore(make_state(0))[0] == 2


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(UserError, match="keep at least 1"):
        Checkpoints(tmp_path, keep=0)


# What is damaged is reported and not used.


def assert_falls_back(directory: pathlib.Path, caplog, reason: str) -> None:
    caplog.clear()
    step, state = Checkpoints(directory).restore(make_state(0))
    assert step == 1
    assert_same(state, make_state(1))
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "absl"]
    assert ("step 2" in warning or "00000002" in warning) and reason in warning


def test_a_flipped_byte_in_any_file_falls_back(two_steps, tmp_path, caplog):
    written = [path for path in (two_steps / "00000002").rglob("*") if path.is_file() and path.stat().st_size]
    assert len(written) >= 5
    for index, path in enumerate(written):
        directory = shutil.copytree(two_steps, tmp_path / str(index))
        name = path.relative_to(two_steps)
        flip(directory / name, path.stat().st_size // 2)
        assert_falls_back(directory, caplog, reason=f"wrong checksum of file {name.relative_to('00000002')}")


def damage_truncate(step: pathlib.Path) -> str:
    path = max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(path, 10)
    return "has 10 bytes instead of"


def damage_remove_file(step: pathlib.Path) -> str:
    (step / "state" / "manifest.ocdbt").unlink()
    return "missing file state/manifest.ocdbt"


def damage_empty_directory(step: pathlib.Path) -> str:
    shutil.rmtree(step)
    step.mkdir()
    return "missing file"


def damage_remove_directory(step: pathlib.Path) -> str:
    shutil.rmtree(step)
    return "missing file"


def damage_truncate_manifest(step: pathlib.Path) -> str:
    os.truncate(step.with_suffix(".json"), 40)
    return "not valid JSON"


def damage_edit_manifest(step: pathlib.Path) -> str:
    path = step.with_suffix(".json")
    path.write_text(path.read_text().replace("40", "41", 1))
    return "does not match its own digest"


def damage_replace_manifest(step: pathlib.Path) -> str:
    step.with_suffix(".json").write_text("[]")
    return "does not match its own digest"


def damage_wrong_array_checksum(step: pathlib.Path) -> str:
    manifest = files.read_json(step.with_suffix(".json"))
    del manifest["digest"]
    manifest["arrays"][".key"]["sha256"] = "0" * 64
    files.write_json(step.with_suffix(".json"), {**manifest, "digest": files.digest(manifest)})
    return "wrong checksum of array .key"


def damage_remove_manifest(step: pathlib.Path) -> str:
    step.with_suffix(".json").unlink()
    return "no manifest"


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_remove_file,
        damage_empty_directory,
        damage_remove_directory,
        damage_truncate_manifest,
        damage_edit_manifest,
        damage_replace_manifest,
        damage_wrong_array_checksum,
        damage_remove_manifest,
    ],
)
def test_a_damaged_step_falls_back(copy, caplog, damage):
    assert_falls_back(copy, caplog, damage(copy / "00000002"))


def test_no_good_step_left_stops(copy):
    damage_empty_directory(copy / "00000001")
    damage_truncate(copy / "00000002")
    checkpoints = Checkpoints(copy)
    for _ in range(2):
        with pytest.raises(UserError, match=r"every checkpoint is damaged \(steps \[1, 2\]\)"):
            checkpoints.restore(make_state(0))
    assert checkpoints.latest_step() is None


def test_a_damaged_step_is_saved_again_when_training_comes_by(copy):
    damage_truncate(copy / "00000002")
    checkpoints = Checkpoints(copy)
    assert checkpoints.restore(make_state(0))[0] == 1
    checkpoints.save(2, make_state(2))
    assert_same(checkpoints.restore(make_state(0))[1], make_state(2))
    assert names(copy) == ["00000001", "00000001.json", "00000002", "00000002.json"]


def test_a_damaged_newer_step_does_not_push_out_a_good_one(tmp_path):
    save_all(tmp_path, 1, 4)
    damage_truncate(tmp_path / "00000004")
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.restore(make_state(0))
    checkpoints.save(3, make_state(3))
    assert checkpoints.restore(make_state(0))[0] == 3
    assert names(tmp_path) == ["00000003", "00000003.json"]


# Another configuration's checkpoint stops the run: an older one would hide the mistake.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: make_state(0, width=41), r"bfloat16\[40\] in the checkpoint, bfloat16\[41\] here"),
        (lambda state: state._replace(step=state.step.astype(jnp.uint32)), r"\.step: int32\[\].*uint32\[\]"),
        (lambda state: state._replace(params={}), r"bfloat16\[40\] in the checkpoint, absent here"),
        (
            lambda state: state._replace(opt_state=[state.opt_state]),
            r"absent in the checkpoint, int32\[\] here",
        ),
        (lambda state: state._replace(opt_state=(*state.opt_state, optax.EmptyState())), "another structure"),
    ],
)
def test_other_arrays_are_a_user_error(two_steps, change, message):
    with pytest.raises(UserError, match=message):
        Checkpoints(two_steps).restore(change(make_state(0)))


def test_another_format_is_a_user_error(copy, monkeypatch):
    monkeypatch.setattr(manifests, "FORMAT", 3)
    with pytest.raises(UserError, match="checkpoint format 2, this version reads 3"):
        Checkpoints(copy).restore(make_state(0))


# A killed process leaves a directory that works.


def test_leftovers_are_removed_and_nothing_else(copy, caplog):
    before = names(copy)
    for unfinished in ("00000002", "00000003"):
        (copy / f"{unfinished}.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    shutil.copytree(copy / "00000002", copy / "00000004")
    (copy / ".00000004.json.abc.partial").write_text("{")
    (copy / "notes").mkdir()
    Checkpoints(copy)
    assert names(copy) == sorted([*before, "notes"])
    assert "00000004" in caplog.text


def run_child(script: str, *arguments, **environment: str) -> subprocess.CompletedProcess:
    tests = pathlib.Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{tests}:{tests.parent}", "JAX_PLATFORMS": "cpu"} | environment
    child = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert child.returncode in (0, -signal.SIGKILL), child.stderr
    return child


@pytest.mark.parametrize("moment", ["while arrays are written", "before the manifest"])
def test_sigkill_in_mid_save(tmp_path, moment):
    script = """
import os, signal, sys
import test_checkpoint as test
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
checkpoints = test.save_all(sys.argv[1], 1)
if sys.argv[2] == "before the manifest":
    test.manifests.write = die
checkpoints.save(2, test.make_state(2, width=100_000))
if sys.argv[2] == "while arrays are written":
    die()
checkpoints.wait()
"""
    assert run_child(script, tmp_path, moment).returncode == -signal.SIGKILL
    checkpoints = Checkpoints(tmp_path)
    assert names(tmp_path) == ["00000001", "00000001.json"]
    step, state = checkpoints.restore(make_state(0))
    assert step == 1
    assert_same(state, make_state(1))
    checkpoints.save(2, make_state(2))
    assert checkpoints.restore(make_state(0))[0] == 2


def test_orbax_is_quiet(tmp_path, capfd):
    seen = []
    handler = std_logging.Handler()
    handler.emit = seen.append
    verbosity = logging.get_verbosity()
    logging.get_absl_logger().addHandler(handler)
    logging.set_verbosity(logging.INFO)
    try:
        logging.info("ours")
        save_all(tmp_path, 1).restore(make_state(0))
    finally:
        logging.set_verbosity(verbosity)
        logging.get_absl_logger().removeHandler(handler)
    assert [record.getMessage() for record in seen] == ["ours"]
    assert "rbax" not in "".join(capfd.readouterr())


# The best step stays, and notes come back.


def test_the_best_step_stays_beside_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, measure in ((1, 0.5), (2, 0.2), (3, None), (4, 0.4), (5, 0.3)):
        checkpoints.save(step, make_state(step, width=4), measure=measure)
    checkpoints.wait()
    assert checkpoints.best_step() == 2 and checkpoints.latest_step() == 5
    manifests = ["00000002.json", "00000004.json", "00000005.json"]
    assert [name for name in names(tmp_path) if name.endswith(".json")] == manifests
    again = Checkpoints(tmp_path, keep=2)
    assert again.best_step() == 2
    again.save(6, make_state(6, width=4), measure=0.2)  # as good, and newer
    again.wait()
    assert [name for name in names(tmp_path) if name.endswith(".json")] == ["00000005.json", "00000006.json"]


def test_without_a_measure_there_is_no_best_step(tmp_path):
    assert save_all(tmp_path, 1, 2).best_step() is None


def test_notes_come_back_with_their_step(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1, width=4), notes={"losses": [0.1, 1e-30]})
    checkpoints.save(2, make_state(2, width=4))
    checkpoints.wait()
    assert Checkpoints(tmp_path).notes(1) == {"losses": [0.1, 1e-30]} and checkpoints.notes(2) == {}
