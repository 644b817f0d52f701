"""Official snapshots through the command: what comes out samples like the official weights, and goes back exactly."""

import argparse
import functools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from golden_rule import official_state
from numpy_ddpmpp import Network, heun
from pickle_writer import Call, Global, inline, legacy, pickled, storage_id, tensor, zipped
from tdsm_jax.diffusion import sampling
from tdsm_jax.diffusion.process import EDM, VP, make_denoiser
from tdsm_jax.errors import UserError
from tdsm_jax.interop import edm_pickle
from tdsm_jax.interop.edm_pickle import as_json
from tdsm_jax.interop.state_dicts import read_state_dict, write_state_dict
from tdsm_jax.interop.torch_classifier import classifier_to_official
from tdsm_jax.labels.transition import volmin_matrix
from tdsm_jax.networks.resnet import ResNet
from tdsm_jax.training import model_file
from tdsm_jax.training.classifier import read_fitted

ROOT = pathlib.Path(__file__).parents[1]


def run(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"tdsm_jax.interop.{module}", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def strides(array):
    return tuple(stride // array.itemsize for stride in array.copy(order="C").strides)


def inline_storage(array):
    """Returns a storage as official snapshots hold it: saved on its own, within the pickle."""
    kind = {"float32": "FloatStorage", "int64": "LongStorage"}[array.dtype.name]
    return inline(legacy(storage_id(kind, "0", array.size), {"0": (array.size, array.tobytes())}))


def parameter(array, storage_of):
    value = tensor(storage_of(array), array.shape, strides(array))
    return Call(Global("torch._utils", "_rebuild_parameter"), (value, True, {}))


def persistent(class_name, state):
    """Returns an object of the persistence mechanism; its source must never run."""
    meta = {"type": "class", "version": 6, "module_src": "raise SystemExit('executed')", "class_name": class_name}
    return Call(Global("torch_utils.persistence", "_reconstruct_persistent_obj"), (meta | {"state": state},))


def module_of(state, class_name="Module", storage_of=inline_storage, **constants):
    """Returns a tree of persistent modules that holds a state dict."""
    own, below = {}, {}
    for name, array in state.items():
        head, _, rest = name.partition(".")
        (below.setdefault(head, {}).update({rest: array}) if rest else own.update({head: array}))
    modules = {name: module_of(inner, storage_of=storage_of) for name, inner in below.items()}
    parameters = {name: parameter(np.asarray(array), storage_of) for name, array in own.items()}
    parts = {"_parameters": parameters, "_buffers": {}, "_modules": modules, "training": False}
    return persistent(class_name, parts | constants)


def convert(snapshot, out, *, process=None, heads=0, safetensors=False):
    """The command without a process of its own."""
    given = {"snapshot": str(snapshot), "out": str(out), "process": process, "heads": heads}
    edm_pickle.main(argparse.Namespace(**given, to_safetensors=safetensors))


@pytest.fixture(scope="module")
def ddpmpp(golden):
    return official_state(golden("net_ddpmpp_edm"))


@pytest.fixture(scope="module")
def converted(ddpmpp, tmp_path_factory):
    """The folder that the command made of a snapshot with the official 16-channel network."""
    folder = tmp_path_factory.mktemp("converted")
    snapshot = {
        "ema": module_of(ddpmpp, "EDMPrecond", sigma_min=0, sigma_max=float("inf"), sigma_data=0.5),
        "loss_fn": persistent("EDMLoss", {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5}),
        "augment_pipe": persistent("AugmentPipe", {"p": 0.12}),
        "dataset_kwargs": {"path": "cifar10-32x32.zip", "use_labels": True},
    }
    (folder / "network-snapshot.pkl").write_bytes(pickled(snapshot))
    done = run("edm_pickle", folder / "network-snapshot.pkl", folder / "out", "--to-safetensors")
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_the_config_says_what_the_file_was(converted):
    config = json.loads((converted / "config.json").read_text())
    assert config["source"]["class"] == "EDMPrecond" and config["source"]["file"] == "network-snapshot.pkl"
    assert config["loss_fn"] == {"class": "EDMLoss", "P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5}
    assert config["augment_pipe"] == {"class": "AugmentPipe", "p": 0.12}
    assert config["dataset_kwargs"] == {"path": "cifar10-32x32.zip", "use_labels": True}
    assert config["config"]["network"]["style"] == "ddpmpp" and config["config"]["network"]["multipliers"] == [1, 2]


def test_a_converted_network_samples_the_images_of_the_official_weights(converted, ddpmpp):
    """18 Heun steps against a NumPy float64 network and sampler that share no code with ours."""
    model = model_file.read(converted / "ema.npz")
    K, (H, W, C) = model.network.num_classes, model.image_shape
    label = np.array([1, K - 1])
    latents = np.random.default_rng(0).normal(size=(2, C, H, W)).astype(np.float32)
    sigmas = sampling.edm_sigmas(18, model.process.sigma_min, model.process.sigma_max)

    @jax.jit
    def denoise(params, x, sigma):
        return make_denoiser(model.process, functools.partial(model.network.apply, params))(x, sigma, label)

    images = sampling.heun(functools.partial(denoise, model.params), jnp.asarray(latents.transpose(0, 2, 3, 1)), sigmas)
    official, one_hot = Network(ddpmpp), np.eye(K)[label]
    expected = heun(lambda x, sigma: official(x, sigma, one_hot), latents.astype(np.float64), sigmas)
    np.testing.assert_allclose(np.asarray(images).transpose(0, 3, 1, 2), expected, atol=1e-3)


def test_the_official_state_dict_comes_back_exactly(converted, ddpmpp, tmp_path):
    done = run("export", converted / "ema.npz", tmp_path / "back.npz")
    assert done.returncode == 0, done.stderr
    for path in (converted / "ema.safetensors", tmp_path / "back.npz"):
        back, _ = read_state_dict(path)
        assert back.keys() == ddpmpp.keys()
        for name, array in ddpmpp.items():
            np.testing.assert_array_equal(back[name], array, err_msg=name)


@pytest.mark.parametrize("name", ["rule_classifier_resnet18_transition", "net_classifier_cnn"])
def test_a_classifier_becomes_a_fitted_one(name, golden, tmp_path):
    state = official_state(golden(name))
    (tmp_path / "classifier.pkl").write_bytes(pickled({"ema": module_of(state, "EDMPrecond_classifier")}))
    done = run("edm_pickle", tmp_path / "classifier.pkl", tmp_path / "out", "--to-safetensors")
    assert done.returncode == 0, done.stderr
    fitted = read_fitted(tmp_path / "out" / "classifier.npz")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["config"]["classifier"]
    if "transition_matrix" in state:
        np.testing.assert_allclose(fitted.S, volmin_matrix(state["transition_matrix"]), rtol=1e-6)
        assert config == {"network": "resnet18", "folds": 1, "widths": [64]}
    else:
        assert fitted.S.shape == (0, 0) and config == {"network": "cnn", "folds": 1, "widths": [16, 32]}
    back, _ = read_state_dict(tmp_path / "out" / "classifier.safetensors")
    assert back.keys() == state.keys()
    for key, array in state.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)


def test_training_states_and_plain_state_dicts_are_read_too(golden, tmp_path):
    state = official_state(golden("net_ddpmpp_vp"))
    records = {}

    def stored(array):
        records[f"data/{len(records)}"] = np.ascontiguousarray(array).tobytes()
        return storage_id("FloatStorage", str(len(records) - 1), array.size)

    arrays = {name: tensor(stored(array), array.shape, strides(array)) for name, array in state.items()}
    (tmp_path / "weights.pt").write_bytes(zipped(arrays, records))
    done = run("edm_pickle", tmp_path / "weights.pt", tmp_path / "plain", "--process=vp")
    assert done.returncode == 0, done.stderr
    assert model_file.read(tmp_path / "plain" / "ema.npz").process == VP()

    records.clear()
    net = module_of(state, "VPPrecond", storage_of=stored, beta_d=19.9, beta_min=0.1, M=1000, epsilon_t=1e-5)
    (tmp_path / "state.pt").write_bytes(zipped({"net": net, "optimizer_state": {}}, records))
    done = run("edm_pickle", tmp_path / "state.pt", tmp_path / "raw")
    assert done.returncode == 0, done.stderr
    model = model_file.read(tmp_path / "raw" / "ema.npz")
    assert model.process == VP() and model.image_shape == (8, 8, 1)


@pytest.mark.parametrize(
    ("snapshot", "said"),
    [
        ({"ema": Call(Global("os", "system"), ("echo executed",))}, "os.system"),
        ({"weights": 3}, "holds no network: its entries are weights"),
        ([1, 2], "holds a list, not a snapshot"),
        ({"\x1b[31m\n" * 99: 3}, r"holds no network: its entries are \x1b[31m\n\x1b"),
        ({1: tensor(inline_storage(np.zeros(2, np.float32)), (2,), (1,))}, "holds no network: its entries are 1"),
        ({"ema": module_of({"\x1b\n.weight": np.zeros(2, np.float32)}, "EDMPrecond")}, "no U-Net of the EDM family"),
        ({"ema": persistent("iDDPMPrecond", {"_parameters": {}, "_buffers": {}, "_modules": {}})}, "iDDPMPrecond"),
        ({"ema": module_of({"conv.weight": np.zeros((2, 2), np.float32)}, "EDMPrecond")}, "no U-Net of the EDM family"),
        ({"ema": module_of({"model.classifier.linear.weight": np.zeros((2, 2), np.float32)})}, "no classifier of TDSM"),
    ],
)
def test_what_is_no_snapshot_ends_in_one_line_and_writes_nothing(snapshot, said, tmp_path):
    (tmp_path / "in.pkl").write_bytes(pickled(snapshot))
    done = run("edm_pickle", tmp_path / "in.pkl", tmp_path / "out")
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "executed" not in done.stdout
    assert "in.pkl" in done.stderr and not (tmp_path / "out").exists()


def test_a_state_dict_that_lacks_an_array_is_named(ddpmpp, tmp_path):
    short = {name: array for name, array in ddpmpp.items() if "map_layer1.bias" not in name}
    (tmp_path / "in.pkl").write_bytes(pickled({"ema": module_of(short, "EDMPrecond")}))
    done = run("edm_pickle", tmp_path / "in.pkl", tmp_path / "out")
    assert done.returncode == 2 and "lacks map_layer1.bias" in done.stderr


def test_the_export_needs_a_known_suffix(converted, tmp_path):
    done = run("export", converted / "ema.npz", tmp_path / "net.pth")
    assert done.returncode == 2 and ".safetensors or .npz" in done.stderr
    assert EDM() == model_file.read(converted / "ema.npz").process


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_an_exported_state_dict_is_converted_back(suffix, golden, tmp_path):
    state = official_state(golden("net_ddpmpp_vp"))
    write_state_dict(tmp_path / "given.npz", state, {})
    given, exported = tmp_path / "given" / "ema.npz", tmp_path / f"exported.{suffix}"
    assert run("edm_pickle", tmp_path / "given.npz", given.parent, "--process=vp").returncode == 0
    assert run("export", given, exported).returncode == 0
    asked = ["--process=vp"] if suffix == "npz" else []  # .safetensors says itself
    done = run("edm_pickle", exported, tmp_path / "back", *asked)
    assert done.returncode == 0, done.stderr
    model, back = model_file.read(given), model_file.read(tmp_path / "back" / "ema.npz")
    assert back._replace(params=None) == model._replace(params=None) and back.process == VP()
    jax.tree.map(np.testing.assert_array_equal, back.params, model.params)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("no JSON", "describes no model"),
        ("[" * 99_999, "describes no model"),
        (json.dumps({"process": {"kind": "odd"}}), "its process cannot be read"),
    ],
)
def test_metadata_that_describe_no_model_are_refused(model, said, ddpmpp, tmp_path):
    write_state_dict(tmp_path / "in.safetensors", ddpmpp, {"model": model})
    with pytest.raises(UserError, match=f"in.safetensors: .*{said}"):
        convert(tmp_path / "in.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_state_dicts_are_named(tmp_path):
    header = json.dumps({"a\n": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    contents = (b"", b"no header here", len(header).to_bytes(8, "little") + header + b"x")
    for content in contents:
        (tmp_path / "in.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="in.safetensors: not a readable .safetensors file"):
            convert(tmp_path / "in.safetensors", tmp_path / "out")
    with pytest.raises(UserError, match="absent.safetensors: no such file"):
        convert(tmp_path / "absent.safetensors", tmp_path / "out")


def test_a_classifier_of_no_known_kind_writes_nothing(golden, tmp_path):
    """Two stages of a block each: read and exported like the others, but no config names it."""
    network = ResNet(3, (1, 1), 8, 8)
    template = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
    write_state_dict(tmp_path / "in.npz", classifier_to_official(network, variables), {})
    with pytest.raises(UserError, match=r"ResNet with \(1, 1\) blocks"):
        convert(tmp_path / "in.npz", tmp_path / "out", safetensors=True)
    assert not (tmp_path / "out").exists()


def test_the_config_is_written_last(ddpmpp, tmp_path, monkeypatch):
    """A state dict that cannot be written leaves no config.json, which would say that all is there."""

    def full_disk(*_):
        raise OSError(28, "No space left on device", "ema.safetensors")

    monkeypatch.setattr(edm_pickle, "write_state_dict", full_disk)
    write_state_dict(tmp_path / "in.npz", ddpmpp, {})
    with pytest.raises(OSError, match="No space"):
        convert(tmp_path / "in.npz", tmp_path / "out", safetensors=True)
    assert not (tmp_path / "out" / "config.json").exists()


def test_what_else_a_snapshot_says_is_cut():
    shared = ["x"]
    for _ in range(4):
        shared = [shared] * 64  # 16 million
    said = as_json({"deep": shared, "text": "y" * 10_000, "k" * 10_000: 1})
    assert len(json.dumps(said)) < 20_000
    assert as_json({"text": "y" * 10_000})["text"] == "y" * 200 + "..."
    assert as_json({"k" * 10_000: 1}) == {"k" * 200 + "...": 1}
    assert as_json(dict.fromkeys(map(str, range(100_000)), 1)).keys() == set(map(str, range(64)))
    assert as_json(np.zeros((1 << 40, 0))) == f"array of shape {(1 << 40, 0)}"
    assert as_json(np.array([1.0, np.inf])) == [1.0, "inf"]


def test_a_file_that_cannot_be_written_ends_in_one_line(converted, tmp_path):
    (tmp_path / "file").touch()
    for arguments in (
        ("export", converted / "ema.npz", tmp_path / "file" / "e.npz"),
        ("edm_pickle", converted / "ema.safetensors", tmp_path / "file" / "out"),
    ):
        done = run(*arguments)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(f"error: {tmp_path / 'file'}")
