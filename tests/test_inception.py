"""FID's Inception network: torch-fidelity's numbers, TensorFlow 1's resize, and weights that are refused."""

import collections
import functools

import jax
import numpy as np
import pytest

import fidelity
from golden_rule import inception_state
from official import load
from pickle_writer import Call, Global, storage_id, tensor, zipped
from tdsm_jax.errors import UserError
from tdsm_jax.interop import inception_weights
from tdsm_jax.interop.inception_weights import SHA256, read_inception, variables_from
from tdsm_jax.networks.inception import InceptionV3, average_pool, max_pool, resized, scaled

PICTURES = range(3)
ACTIVATIONS = fidelity.NAMES  # as `Activations` orders them


@pytest.fixture(scope="module")
def arrays():
    return load("inception_rule")


@pytest.fixture(scope="module")
def state(arrays):
    return inception_state(arrays)


@functools.cache
def compiled():
    return jax.jit(InceptionV3().apply)


@pytest.fixture(scope="module")
def activations(arrays, state):
    """What our network makes of the stored images, resized one by one and then seen in one batch."""
    images = [resized(arrays[f"image_{n}"][None].astype(np.float32), 299)[0] for n in PICTURES]
    return jax.device_get(compiled()(variables_from(state), np.stack(images)))


# -- the network --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(len(ACTIVATIONS)), ids=ACTIVATIONS)
def test_the_activations_are_those_of_torch_fidelity(place, arrays, activations):
    expected = np.stack([arrays[f"{ACTIVATIONS[place]}_{n}"] for n in PICTURES])
    assert 0.3 < np.abs(expected).mean() < 3  # the stored outputs have not faded, and images differ
    assert np.abs(expected[0] - expected[1]).mean() > 0.01
    np.testing.assert_allclose(activations[place], expected, atol=1e-5, rtol=0)


def test_the_random_network_is_that_of_torch_fidelity(tmp_path, state):
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(1)
    drawn = {name: _redrawn(name, array, generator) for name, array in state.items()}
    torch.save({name: torch.from_numpy(array) for name, array in drawn.items()}, tmp_path / "random.pth")
    images = generator.integers(0, 256, (3, 299, 299, 3), dtype=np.uint8)
    variables, _ = read_inception(tmp_path / "random.pth", checked=False)
    ours = compiled()(variables, images.astype(np.float32))
    theirs = fidelity.extractor(tmp_path / "random.pth")(torch.from_numpy(images).permute(0, 3, 1, 2))
    for name, got, want in zip(ACTIVATIONS, ours, theirs, strict=True):
        scale = max(1.0, float(want.abs().max()))
        np.testing.assert_allclose(got, want.numpy(), atol=1e-4 * scale, rtol=0, err_msg=name)


def _redrawn(name, array, generator):
    """Other weights of the same sizes: kernels drawn anew, statistics and factors moved a little."""
    if array.ndim >= 2:
        return generator.normal(0, array.std(), array.shape).astype(np.float32)
    return array if "num_batches" in name else (array * generator.uniform(0.9, 1.1, array.shape)).astype(np.float32)


def test_a_grayscale_image_counts_for_all_three_colours(arrays):
    gray = arrays["image_1"][None, :, :, :1]
    np.testing.assert_array_equal(scaled(gray), scaled(gray.repeat(3, axis=-1)))


def test_the_average_pool_leaves_the_padding_out_and_the_maximum_takes_no_zeros():
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1) - 20
    assert float(average_pool(x)[0, 0, 0, 0]) == (0 + 1 + 4 + 5) / 4 - 20
    assert float(average_pool(x)[0, 1, 1, 0]) == 5 - 20
    assert max_pool(x, stride=1)[0, :, :, 0].tolist() == [[-15, -14, -13, -13], [-11, -10, -9, -9], [-11, -10, -9, -9]]
    assert max_pool(x, stride=2)[0, :, :, 0].tolist() == [[-10]]


# -- the resize ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(28, 28), (32, 32), (40, 61), (299, 299), (512, 300)], ids=str)
def test_the_resize_is_that_of_torch_fidelity(shape):
    torch = pytest.importorskip("torch")
    like_tensorflow = fidelity.modules()[1].interpolate_bilinear_2d_like_tensorflow1x
    images = np.random.default_rng(0).integers(0, 256, (2, *shape, 3)).astype(np.float32)
    theirs = like_tensorflow(torch.from_numpy(images).permute(0, 3, 1, 2), size=(299, 299), align_corners=False)
    np.testing.assert_allclose(resized(images, 299), theirs.permute(0, 2, 3, 1).numpy(), atol=255e-6, rtol=0)


def test_output_pixels_lie_at_multiples_of_the_scale_and_repeat_the_last_pixel():
    ramp = np.broadcast_to(np.arange(4, dtype=np.float32)[:, None], (4, 8))[None, :, :, None]
    out = np.asarray(resized(ramp, 16))[0, :, :, 0]
    np.testing.assert_allclose(out, np.broadcast_to(np.minimum(np.arange(16) / 4, 3)[:, None], (16, 16)), atol=1e-6)
    down = np.asarray(resized(np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1), 4))[0, :, 0, 0]
    assert down.tolist() == [0, 2, 4, 6]  # every other pixel as it is: nothing is averaged


def test_an_image_of_the_size_stays_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (1, 299, 299, 3)).astype(np.float32)
    np.testing.assert_array_equal(resized(image, 299), image)


# -- files of weights ---------------------------------------------------------------------------------------


def saved(state):
    """Returns a state dict as torch.save would write it."""
    value, records = {}, {}
    for number, (name, array) in enumerate(state.items()):
        kind = "LongStorage" if array.dtype == np.int64 else "FloatStorage"
        strides = tuple(step // array.itemsize for step in array.strides)
        value[name] = tensor(storage_id(kind, str(number), array.size), array.shape, strides)
        records[f"data/{number}"] = array.tobytes()
    return zipped(value, records)


def test_a_file_is_read_with_its_digest_and_batch_norm_is_folded(tmp_path, state):
    (tmp_path / "weights.pth").write_bytes(saved(state))
    variables, digest = read_inception(tmp_path / "weights.pth", checked=False)
    assert len(digest) == 64 and digest != SHA256
    layer, name = variables["params"]["Mixed_6b"]["branch7x7_2"], "Mixed_6b.branch7x7_2"
    assert layer["kernel"].shape == (1, 7, 128, 128)
    gain = state[f"{name}.bn.weight"] / np.sqrt(state[f"{name}.bn.running_var"] + np.float32(1e-3))
    kernel = state[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * gain
    np.testing.assert_allclose(layer["kernel"], kernel, rtol=1e-6)
    bias = state[f"{name}.bn.bias"] - gain * state[f"{name}.bn.running_mean"]
    np.testing.assert_allclose(layer["bias"], bias, atol=1e-6)
    assert set(variables["params"]["fc"]) == {"kernel"}  # the logits have no bias


def test_batch_counters_may_lack(state):
    old = {name: array for name, array in state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    jax.tree.map(np.testing.assert_array_equal, variables_from(old), variables_from(state))


def test_another_file_than_the_published_is_refused_before_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "weights.pth").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"weights.pth: is not the published file .* inception_unchecked:") as refused:
        read_inception(tmp_path / "weights.pth")
    assert "\n" not in str(refused.value)
    monkeypatch.setattr(inception_weights, "SHA256", inception_weights.files.file_digest(tmp_path / "weights.pth"))
    with pytest.raises(UserError, match="neither a pickle nor a file of torch.save"):  # so it was the digest
        read_inception(tmp_path / "weights.pth")


def test_the_published_digest_is_that_of_the_published_name():
    assert SHA256.startswith("6726825d") and len(SHA256) == 64


def without(name):
    return lambda state: {key: array for key, array in state.items() if key != name}


CHANGES = {
    "missing and unknown": (
        lambda state: {("Mixed_5b.other" if k == "fc.weight" else k): v for k, v in state.items()},
        r"lacks fc.weight \(1 in all\) and has unknown arrays: Mixed_5b.other \(1 in all\)",
    ),
    "missing": (without("Mixed_7c.branch_pool.bn.running_var"), r"lacks Mixed_7c.branch_pool.bn.running_var \(1"),
    "no bias": (without("fc.bias"), "lacks fc.bias"),
    "shape": (lambda state: state | {"fc.weight": np.zeros((1000, 2048), np.float32)}, r"fc.weight is \(1000, 2048\);"),
    "transposed": (
        lambda state: state | {"Conv2d_3b_1x1.conv.weight": np.zeros((64, 80, 1, 1), np.float32)},
        r"Conv2d_3b_1x1.conv.weight is \(64, 80, 1, 1\); .* must be \(80, 64, 1, 1\)",
    ),
    "variance": (
        lambda state: state | {"Mixed_6a.branch3x3.bn.running_var": np.full(384, -1, np.float32)},
        "Mixed_6a.branch3x3.kernel are not all numbers, or a variance",
    ),
    "not a number": (
        lambda state: state | {"fc.weight": np.full((1008, 2048), np.nan, np.float32)},
        "fc.kernel are not all numbers",
    ),
    "kind": (lambda state: state | {"fc.bias": np.zeros(1008, bool)}, "fc.bias has dtype bool"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_weights_that_do_not_fit_are_refused(case, state):
    change, match = CHANGES[case]
    with pytest.raises(UserError, match=match) as refused:
        variables_from(change(state))
    assert "\n" not in str(refused.value)


HOSTILE = zipped(Call(Global("os", "system"), ("touch stolen",)), {})
CONTENTS = {
    "empty": (b"", "it is empty"),
    "text": (b"<html>not found</html>", "neither a pickle nor a file of torch.save"),
    "hostile": (HOSTILE, "posix.system|os.system"),
    "no names": (zipped([1, 2], {}), "holds no state dict"),
    "no arrays": (zipped({"fc.weight": "text"}, {}), "holds no state dict"),
    "another network": (saved({"conv.weight": np.zeros((2, 2), np.float32)}), "lacks Conv2d_1a_3x3.bn.bias,"),
    "truncated": (saved({"fc.weight": np.zeros((100, 100), np.float32)})[:-300], "no whole zip archive"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_files_that_are_no_such_weights_are_refused_in_one_line_naming_them(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, match = CONTENTS[case]
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(UserError, match=match) as refused:
        read_inception("weights.pth", checked=False)
    assert "\n" not in str(refused.value) and str(refused.value).startswith("weights.pth: ")
    assert not (tmp_path / "stolen").exists()


@pytest.mark.parametrize("path", ["nowhere.pth", "gs://bucket/weights.pth", "."])
def test_what_is_no_file_here_is_refused(path):
    with pytest.raises(UserError, match=r"no such file|copy the file here first"):
        read_inception(path)


def test_a_state_dict_may_be_ordered(state):
    variables_from(collections.OrderedDict(state))
