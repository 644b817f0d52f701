"""The networks: parity with the official DDPM++, embeddings, dropout by example, precision of the parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tdsm_jax.diffusion.process import EDM, make_denoiser
from tdsm_jax.networks import layers
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.networks.unet import UNet

TINY = UNet(num_classes=5, channels=16, multipliers=(1, 2), blocks=1, attention_resolutions=(8,), dropout_rate=0.0)


def inputs(batch=3, size=16, channels=3):
    x = jax.random.normal(jax.random.key(0), (batch, size, size, channels))
    return x, jnp.linspace(-1.5, 0.5, batch), jnp.arange(batch)


def random_params(network, *arguments):
    """Returns parameters of order 1 over the root of the fan-in: a fresh network is nearly the zero function."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *arguments)
    return jax.tree.map(
        lambda leaf: (rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float32), shapes
    )


def flax_path(name):
    """Turns `enc.8x8_block0.qkv.weight` into the path of the parameter in our tree, or None for a constant."""
    *module, kind = name.split(".")
    if kind == "resample_filter" or module == ["map_augment"]:
        return None
    if module[0] in ("enc", "dec"):
        place, *rest = module[1:]
        module = [f"{module[0]}_{place}", *rest]
        if place.endswith("_aux_norm"):
            module = ["out_norm"]
        elif place.endswith("_aux_conv"):
            module = ["out_conv"]
        elif rest and rest[0] in ("norm2", "qkv", "proj"):
            module = [module[0], "attention", *rest]
    if kind == "weight":
        kind = "scale" if "norm" in module[-1] else "kernel"
    return ("params", *module, kind)


def flax_array(array):
    """OIHW -> HWIO, [out,in] -> [in,out]."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


@pytest.fixture(scope="module")
def official(golden):
    """Returns the parameters of the official DDPM++ in our tree, the weight of its augmentation label, arrays."""
    arrays = golden("net_ddpmpp_edm")
    state = {name.removeprefix("state/model."): arrays[name] for name in arrays if name.startswith("state/model.")}
    flat = {flax_path(name): flax_array(array) for name, array in state.items()}
    flat.pop(None)
    return traverse_util.unflatten_dict(flat), state["map_augment.weight"], arrays


def test_the_official_parameters_fill_our_tree_exactly(official):
    ours = jax.eval_shape(TINY.init, jax.random.key(0), *inputs())
    assert jax.tree.map(np.shape, official[0]) == jax.tree.map(np.shape, ours)


@pytest.mark.parametrize("target", ["denoised", "denoised_null"])
def test_the_denoiser_matches_the_official_ddpmpp(official, target):
    """One example at a time: its augmentation label, which the official network adds, goes into a bias."""
    params, augment_weight, arrays = official
    x = arrays["x"].transpose(0, 2, 3, 1)
    label = arrays["y"] if target == "denoised" else np.full(3, 5)

    @jax.jit
    def denoise(bias, x, sigma, label):
        shifted = traverse_util.flatten_dict(params)
        shifted["params", "map_label", "bias"] += bias
        network = functools.partial(TINY.apply, traverse_util.unflatten_dict(shifted))
        return make_denoiser(EDM(), network)(x, sigma, label)

    with jax.default_matmul_precision("highest"):
        for b in range(3):
            bias = augment_weight @ arrays["augment_labels"][b]
            D = denoise(bias, x[b : b + 1], arrays["sigma"][b : b + 1], label[b : b + 1])
            np.testing.assert_allclose(D[0].transpose(2, 0, 1), arrays[target][b], atol=1e-4)


def test_the_output_has_the_shape_of_the_image_and_starts_near_zero():
    x, c_noise, label = inputs()
    params = jax.jit(TINY.init)(jax.random.key(1), x, c_noise, label)
    output = jax.jit(TINY.apply)(params, x, c_noise, label)
    assert output.shape == x.shape and output.dtype == jnp.float32
    assert np.abs(output).max() < 1e-3
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_label_null_label_and_noise_level_each_matter():
    x = jnp.repeat(inputs()[0][:1], 7, axis=0)
    c_noise, label = jnp.array([0.0] * 6 + [1.0]), jnp.array([0, 1, 2, 3, 4, 5, 0])
    outputs = jax.jit(TINY.apply)(random_params(TINY, x, c_noise, label), x, c_noise, label)
    for a in range(7):
        for b in range(a):
            assert np.abs(outputs[a] - outputs[b]).max() > 1e-3, (a, b)


def test_the_null_label_is_the_zero_row_and_others_have_unit_mean_square():
    rows = layers.label_one_hot(jnp.arange(6), 5)
    np.testing.assert_array_equal(rows[5], 0)
    np.testing.assert_allclose((rows[:5] ** 2).mean(axis=1), 1, rtol=1e-6)


SHALLOW = TINY.clone(channels=8, multipliers=(1,))
CLASSIFIER = Classifier(num_classes=5, widths=(8, 16), hidden=32, dropout_rate=0.0)


@pytest.fixture(params=["unet", "classifier"])
def network(request):
    """Returns a network, its arguments before the dropout keys, and parameters."""
    module, arguments = (SHALLOW, inputs(size=8)) if request.param == "unet" else (CLASSIFIER, inputs(size=8)[:2])
    return module, arguments, random_params(module, *arguments)


def test_dropout_depends_on_the_key_of_the_example_only(network):
    """Not on its place in the batch, nor on the size of the batch."""
    module, arguments, params = network
    apply = jax.jit(module.clone(dropout_rate=0.3).apply)
    keys = jax.random.split(jax.random.key(3), 3)

    def output(rows, key_rows):
        given = (a[np.array(rows)] for a in arguments)
        return jax.tree.leaves(apply(params, *given, dropout_keys=keys[np.array(key_rows)]))[0]

    whole = output([0, 1, 2], [0, 1, 2])
    np.testing.assert_allclose(output([2, 0, 1], [2, 0, 1]), whole[np.array([2, 0, 1])], atol=1e-5)
    np.testing.assert_allclose(output([1], [1]), whole[1:2], atol=1e-4)
    copies = output([0, 0, 0], [0, 1, 0])
    np.testing.assert_allclose(copies[0], copies[2], atol=1e-5)
    assert np.abs(copies[0] - copies[1]).max() > 1e-3  # each key has its own mask


def test_dropout_keeps_the_mean_and_separates_layers():
    keys = jax.random.split(jax.random.key(0), 4)
    x = jnp.ones((4, 100, 50))
    first, second = (layers.dropout(x, 0.25, keys, layer) for layer in (0, 1))
    assert float(first.mean()) == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(np.unique(first), [0, 1 / 0.75])
    assert float((first != second).mean()) == pytest.approx(2 * 0.25 * 0.75, abs=0.02)
    assert layers.dropout(x, 0.25, None, 0) is x and layers.dropout(x, 0.0, keys, 0) is x


def test_bfloat16_computes_close_by_and_keeps_parameters_and_outputs_float32(network):
    module, arguments, params = network
    half = module.clone(dtype=jnp.bfloat16)
    own = jax.eval_shape(half.init, jax.random.key(0), *arguments)
    assert {leaf.dtype for leaf in jax.tree.leaves(own)} == {jnp.dtype(jnp.float32)}
    outputs = [jax.tree.leaves(jax.jit(n.apply)(params, *arguments)) for n in (module, half)]
    for full, low in zip(*outputs, strict=True):
        assert low.dtype == full.dtype == jnp.float32
        error = np.abs(low - full).max() / np.abs(full).max()
        assert 0 < error < 0.1


def test_the_classifier_returns_logits_and_features_and_reads_the_noise_level():
    x, c_noise, _ = inputs()
    x, c_noise = jnp.stack([x[0]] * 2), c_noise[:2]
    logits, features = jax.jit(CLASSIFIER.apply)(random_params(CLASSIFIER, x, c_noise), x, c_noise)
    assert logits.shape == (2, 5) and features.shape == (2, 32)
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_the_positional_embedding_spans_frequencies_from_one_to_a_ten_thousandth_sines_first():
    embedding = layers.positional_embedding(jnp.array([2.0]), 8)
    angles = 2.0 * 10_000.0 ** -(np.arange(4) / 3)
    np.testing.assert_allclose(embedding[0], [*np.sin(angles), *np.cos(angles)], rtol=1e-5)


def test_resampling_repeats_and_averages():
    x = jnp.arange(8.0).reshape(1, 2, 4, 1)
    np.testing.assert_array_equal(layers.downsample(x)[0, :, :, 0], [[2.5, 4.5]])
    up = layers.upsample(x)
    assert up.shape == (1, 4, 8, 1)
    np.testing.assert_array_equal(layers.downsample(up), x)
    assert up[0, 1, 1, 0] == x[0, 0, 0, 0]
