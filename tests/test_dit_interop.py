"""Official weights of diffusion transformers: through the command into a model file, and back exactly."""

import json

import jax
import numpy as np
import pytest

from numpy_dit import official_state
from pickle_writer import Built, Call, Global, storage_id, tensor, zipped
from tdsm_jax import config as configuration
from tdsm_jax import job
from tdsm_jax.diffusion.process import EDM, VP
from tdsm_jax.errors import UserError
from tdsm_jax.interop.dit_params import dit_to_official
from tdsm_jax.interop.state_dicts import read_state_dict, write_state_dict
from tdsm_jax.interop.torch_params import network_from_official
from tdsm_jax.networks.dit import DiT
from tdsm_jax.training import model_file
from tdsm_jax.training.model_file import Model
from test_edm_pickle import convert, run, strides

STATE = official_state(0)


def refused(state, said, heads=4):
    with pytest.raises(UserError) as error:
        network_from_official(state, heads=heads)
    assert said in str(error.value) and "\n" not in str(error.value), error.value


def test_a_state_dict_goes_through_a_model_file_and_back(tmp_path):
    write_state_dict(tmp_path / "DiT.safetensors", STATE, {})
    convert(tmp_path / "DiT.safetensors", tmp_path / "out", heads=4, safetensors=True)
    model = model_file.read(tmp_path / "out" / "ema.npz")
    assert isinstance(model.network, DiT) and model.process == VP() and model.image_shape == (8, 8, 3)
    keys = json.loads((tmp_path / "out" / "config.json").read_text())["config"]
    assert keys["network"] == {"style": "dit"} and keys["process"]["kind"] == "vp"
    assert keys["dit"] == {"patch": 2, "width": 16, "depth": 2, "heads": 4, "conditioning": "adaln_zero"}
    back, metadata = read_state_dict(tmp_path / "out" / "ema.safetensors")
    assert back.keys() == STATE.keys()
    for name, array in STATE.items():
        np.testing.assert_allclose(back[name], array, atol=1e-6 if name == "pos_embed" else 0, err_msg=name)
    again, _, _ = network_from_official(back, like=model.network)
    assert again == model.network and "heads" in metadata["model"]


def test_what_predicts_a_variance_is_left_out():
    """Of each pixel of a patch the first half of the channels stays."""
    state = official_state(0, out_channels=6)
    _, params, image_shape = network_from_official(state, heads=4)
    assert image_shape == (8, 8, 3)
    kernel, bias = (params["params"]["final_layer"]["linear"][name] for name in ("kernel", "bias"))
    for pixel in range(4):
        own, given = slice(3 * pixel, 3 * pixel + 3), slice(6 * pixel, 6 * pixel + 3)
        np.testing.assert_array_equal(kernel[:, own], state["final_layer.linear.weight"][given].T)
        np.testing.assert_array_equal(bias[own], state["final_layer.linear.bias"][given])


def test_a_training_checkpoint_of_torch_is_read_without_torch(tmp_path):
    """Its averaged weights, beside the raw ones, an optimiser and the settings as an argparse.Namespace."""
    records = {}

    def saved(array):
        records[f"data/{len(records)}"] = np.ascontiguousarray(array).tobytes()
        storage = storage_id("FloatStorage", str(len(records) - 1), array.size)
        return tensor(storage, array.shape, strides(array))

    settings = Built(Call(Global("argparse", "Namespace"), ()), {"model": "DiT-XL/2", "image_size": 256})
    ema = {name: saved(array) for name, array in STATE.items()}
    raw = {name: saved(0 * array) for name, array in STATE.items()}
    checkpoint = {"model": raw, "ema": ema, "opt": {"state": {0: {"step": 3}}}, "args": settings}
    (tmp_path / "0400000.pt").write_bytes(zipped(checkpoint, records))
    convert(tmp_path / "0400000.pt", tmp_path / "out", heads=4)
    found = model_file.read(tmp_path / "out" / "ema.npz").params["params"]["y_embedder"]["embedding"]
    np.testing.assert_array_equal(found, STATE["y_embedder.embedding_table.weight"])


def test_what_is_missing_extra_or_of_another_shape_is_named():
    refused({n: a for n, a in STATE.items() if n != "blocks.1.mlp.fc2.bias"}, "lacks blocks.1.mlp.fc2.bias (1 in all)")
    refused(STATE | {"blocks.1.norm1.weight": np.zeros(16)}, "unknown arrays: blocks.1.norm1.weight (1 in all)")
    refused(STATE | {"blocks.9.norm1.weight": np.zeros(16)}, "lacks blocks.2.adaLN_modulation.1.bias")
    refused(STATE | {"final_layer.linear.bias": np.zeros(13)}, "final_layer.linear.bias is (13,)")
    refused(STATE | {"blocks.0.attn.qkv.weight": np.zeros((48, 15))}, "blocks.0.attn.qkv.weight is (48, 15)")
    refused(STATE | {"pos_embed": STATE["pos_embed"][:, :15]}, "pos_embed is (1, 15, 16)")
    refused(STATE | {"pos_embed": STATE["pos_embed"] + 0.01}, "pos_embed is not the fixed embedding")
    refused({"x_embedder.proj.weight": np.zeros((16, 3, 2, 2))}, "it has no pos_embed")
    refused(STATE | {f"blocks.{10**3}.attn.qkv.weight": np.zeros(1)}, "in 1001 blocks")
    refused(STATE, "say how many heads: --heads=", heads=0)
    refused(STATE, "not 5 equal heads", heads=5)
    refused(STATE, "not -2 equal heads", heads=-2)


def test_the_heads_of_a_published_size_are_known():
    state = official_state(0, width=384, depth=12, channels=4, out_channels=8, classes=3)
    network, _, image_shape = network_from_official(state)
    assert network.heads == 6 and image_shape == (8, 8, 4)


def model_of(**changes):
    network = DiT(5, 2, 16, 2, 4, 0.0, time_scale=1000.0).clone(**changes)
    shapes = model_file.variable_shapes(network, (8, 8, 3))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes)
    return Model(network, params, EDM(P_mean=-0.5, sigma_max=50.0), (8, 8, 3))


def test_an_exported_transformer_of_ours_is_converted_back(tmp_path):
    """The description beside the arrays says what they do not: heads, the scale of time, the process."""
    model = model_of()
    model_file.write(tmp_path / "ema.npz", model)
    done = run("export", tmp_path / "ema.npz", tmp_path / "net.safetensors")
    assert done.returncode == 0, done.stderr
    convert(tmp_path / "net.safetensors", tmp_path / "back")
    back = model_file.read(tmp_path / "back" / "ema.npz")
    assert back.network == model.network and back.process.sigma_max == 50
    jax.tree.map(np.testing.assert_array_equal, back.params, model.params)


def test_latents_are_not_drawn_as_pictures(tmp_path):
    network = model_of().network
    shapes = model_file.variable_shapes(network, (8, 8, 4))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    model_file.write(tmp_path / "ema.npz", Model(network, params, VP(), (8, 8, 4)))
    config = configuration.load("base")
    config.methods, config.init_from = ("init",), str(tmp_path / "ema.npz")
    with pytest.raises(UserError, match="images of 4 channels are no pictures"):
        job.run(config, tmp_path / "run", stages=("sample",))
    assert not list((tmp_path / "run").rglob("*.npz"))


@pytest.mark.parametrize(
    "changes", [{"conditioning": "in_context"}, {"pattern": "window", "window": 3}, {"num_classes": 0}]
)
def test_what_the_official_module_does_not_compute_is_not_exported(changes):
    model = model_of(**changes)
    with pytest.raises(UserError, match="the official diffusion transformer has adaLN-Zero"):
        dit_to_official(*model[:2], model.image_shape)


def test_the_augmentation_label_adds_nothing_to_what_is_exported():
    model, plain = model_of(augment_dim=9), model_of()
    own, other = (dit_to_official(m.network, m.params, m.image_shape) for m in (model, plain))
    assert own.keys() == other.keys()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"process": {"kind": "vp"}}, "`model` describes no network"),
        ({"process": {"kind": "vp"}, "network": {"kind": "dit"}}, "`model` describes no network"),
        ({"process": {"kind": "vp"}, "network": {"kind": "dint"}}, "of kind 'dint'"),
    ],
)
def test_metadata_that_describe_no_network_are_refused(model, said, tmp_path):
    write_state_dict(tmp_path / "in.safetensors", STATE, {"model": json.dumps(model)})
    with pytest.raises(UserError, match=f"in.safetensors: .*{said}"):
        convert(tmp_path / "in.safetensors", tmp_path / "out")
