"""Model files: what is written is what is read; what is not a model file ends in one line that names it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdsm_jax import files
from tdsm_jax.diffusion.process import EDM, VE, VP
from tdsm_jax.errors import UserError
from tdsm_jax.networks.unet import UNet
from tdsm_jax.training import model_file
from tdsm_jax.training.checkpoint import Checkpoints
from tdsm_jax.training.model_file import Model
from tdsm_jax.training.state import Optimisation, initial_state


def made(style="ncsnpp", process=None):
    network = UNet(3, 8, (1, 1), 1, (4,), 0.1, style, augment_dim=9, dtype=jnp.dtype(jnp.bfloat16))
    rng = np.random.default_rng(0)
    shapes = model_file.variable_shapes(network, (8, 8, 1))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    return Model(network, params, process or EDM(P_mean=-0.5), (8, 8, 1))


@pytest.mark.parametrize("process", [EDM(sigma_max=50.0), VP(M=500), VE()])
def test_a_model_survives_the_way_through_its_file(process, tmp_path):
    model = made(process=process)
    model_file.write(tmp_path / "ema.npz", model)
    back = model_file.read(tmp_path / "ema.npz")
    assert back._replace(params=None) == model._replace(params=None)
    jax.tree.map(np.testing.assert_array_equal, back.params, model.params)


@pytest.fixture
def checkpointed(tmp_path):
    """A model, and the folder of a step in the middle of its training."""
    model = made()
    model_file.write_description(tmp_path, model)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    optimisation = Optimisation(8, 1e-3, 0, 8, 1.0, 0.0, 0.0)
    others = jax.tree.map(jnp.zeros_like, model.params)
    state = dataclasses.replace(initial_state(others, optimisation), ema_params=model.params)
    checkpoints.save(600, state)
    checkpoints.wait()
    return model, tmp_path / "checkpoints" / "00000600"


def test_a_checkpoint_is_read_like_a_model_file(checkpointed):
    model, folder = checkpointed
    back = model_file.read(folder)
    assert back._replace(params=None) == model._replace(params=None)
    jax.tree.map(np.testing.assert_array_equal, back.params, model.params)


def test_a_damaged_checkpoint_is_no_model(checkpointed):
    _, folder = checkpointed
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(UserError, match="00000600 is damaged: wrong checksum of file .*; take another step"):
        model_file.read(folder)


def test_a_checkpoint_of_another_network_is_no_model(checkpointed):
    model, folder = checkpointed
    model_file.write_description(folder.parent.parent, model._replace(network=model.network.clone(channels=16)))
    with pytest.raises(UserError, match="arrays differ from this configuration's"):
        model_file.read(folder)


def test_a_checkpoint_without_description_says_what_is_missing(checkpointed):
    _, folder = checkpointed
    (folder.parent.parent / "model.json").unlink()
    with pytest.raises(UserError, match="model.json: no such file"):
        model_file.read(folder)


def rewrite(path, **changes):
    """Writes the file again with changed arrays (None: without) or description entries."""
    arrays = files.read_arrays(path)
    description = json.loads(str(arrays["description"]))
    description["network"] |= changes.pop("entries", {})
    for name, value in changes.items():
        if name in description:
            description[name] = value
        else:
            name = next(key for key in arrays if key.endswith(name))
            arrays[name] = value
    arrays["description"] = np.array(json.dumps(description))
    files.write_arrays(path, {name: array for name, array in arrays.items() if array is not None})


def test_a_description_without_a_kind_is_that_of_a_unet(tmp_path):
    """As files were written before there was another kind."""
    model = made()
    model_file.write(tmp_path / "ema.npz", model)
    network = model_file.describe(model)["network"]
    assert network.pop("kind") == "unet"
    rewrite(tmp_path / "ema.npz", network=network)
    assert model_file.read(tmp_path / "ema.npz").network == model.network


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 99}, "newer than this program's"),
        ({"format": "one"}, "description cannot be read"),
        ({"process": {"kind": "odd"}}, "its process cannot be read"),
        ({"process": {"kind": "vp", "beta_d": "19.9"}}, "its process cannot be read"),
        ({"process": {"kind": "edm", "sigma_max": 0.001}}, "allow no noise levels"),
        ({"process": 3}, "its process cannot be read"),
        ({"network": {"colour\n\x1b[31m": 1}}, r"unknown entries: colour\n\x1b[31m"),
        ({"network": {}}, "description cannot be read"),
        ({"network": []}, "description cannot be read"),
        ({"entries": {"kind": "unett"}}, "of kind 'unett'; did you mean 'unet'?"),
        ({"entries": {"kind": ["unet"]}}, "of kind ('unet',)"),
        ({"entries": {"style": "foo"}}, "style foo"),
        ({"entries": {"style": ["adm"]}}, "has style"),
        ({"entries": {"dtype": "float33"}}, "dtype 'float33'; valid: float32"),
        ({"entries": {"dtype": {}}}, "dtype {}; valid: float32"),
        ({"entries": {"channels": 0}}, "[0, 0] channels"),
        ({"entries": {"channels": 10**30}}, "channels a level"),
        ({"entries": {"channels": 8.0}}, "has channels 8.0"),
        ({"entries": {"blocks": 10**9}}, "1000000000 blocks"),
        ({"entries": {"multipliers": []}}, "0 levels"),
        ({"entries": {"multipliers": [1] * 5}}, "5 levels"),
        ({"entries": {"multipliers": [1, "2"]}}, "has multipliers (1, '2')"),
        ({"entries": {"multipliers": [1, 25], "style": "adm"}}, "200 channels, which are not 3 equal heads"),
        ({"entries": {"dropout_rate": None}}, "has dropout_rate None"),
        ({"image_shape": [8, 8]}, "images have shape (8, 8)"),
        ({"image_shape": ["8", 8, 1]}, "images have shape"),
        ({"image_shape": [1 << 20, 1 << 20, 1]}, "1 to 4096"),
        ({"image_shape": 8}, "description cannot be read"),
        ({"freqs": np.array(["a"] * 8)}, "dtype <U1"),
        ({"image_shape": [8, 8, 3]}, "does not fit"),
        ({"freqs": None}, "needs constants/map_noise/freqs"),
        ({"freqs": np.zeros(3)}, "has shape (3,)"),
    ],
)
def test_a_file_that_does_not_hold_together_is_refused(changes, said, tmp_path):
    path = tmp_path / "ema.npz"
    model_file.write(path, made())
    rewrite(path, **changes)
    with pytest.raises(UserError, match="ema.npz") as error:
        model_file.read(path)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_shapes_of_large_images_take_no_memory():
    shapes = model_file.variable_shapes(made().network, (1 << 20, 1 << 20, 3))  # an image of 13 TB
    assert shapes["params"]["enc_1048576x1048576_conv"]["kernel"].shape == (3, 3, 3, 8)


def test_other_arrays_and_missing_files_are_refused(tmp_path):
    files.write_arrays(tmp_path / "samples.npz", {"images": np.zeros(3)})
    with pytest.raises(UserError, match="not a model file"):
        model_file.read(tmp_path / "samples.npz")
    with pytest.raises(UserError, match="no such file"):
        model_file.read(tmp_path / "absent.npz")
