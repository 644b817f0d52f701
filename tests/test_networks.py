"""The networks: resampling, embeddings, what conditions them, dropout by example, precision of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdsm_jax.networks import layers, unet
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.networks.unet import STYLES, UNet

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


@pytest.fixture(params=list(STYLES))
def styled(request):
    """Returns the tiny U-Net in every style, with an augmentation label."""
    return TINY.clone(style=request.param, augment_dim=9)


def test_the_output_has_the_shape_of_the_image_and_starts_near_zero(styled):
    x, c_noise, label = inputs()
    params = jax.jit(styled.init)(jax.random.key(1), x, c_noise, label)
    output = jax.jit(styled.apply)(params, x, c_noise, label)
    assert output.shape == x.shape and output.dtype == jnp.float32
    assert np.abs(output).max() < 1e-3
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_the_augmentation_label_matters_and_zeros_mean_none(styled):
    x, c_noise, label = inputs()
    params = random_params(styled, x, c_noise, label)
    apply = jax.jit(styled.apply)
    none = apply(params, x, c_noise, label)
    np.testing.assert_allclose(apply(params, x, c_noise, label, jnp.zeros((3, 9))), none, atol=1e-5)
    for entry in range(9):
        assert np.abs(apply(params, x, c_noise, label, jnp.eye(9)[None, entry].repeat(3, 0)) - none).max() > 1e-3


def test_an_unconditional_network_has_no_label_parameters(styled):
    x, c_noise, label = inputs()
    params = jax.eval_shape(styled.clone(num_classes=0).init, jax.random.key(0), x, c_noise, label)
    assert "map_label" not in params["params"] and "map_layer0" in params["params"]


def test_the_full_size_cifar10_network_has_the_published_number_of_parameters():
    """55.7 million: DDPM++ of Karras et al. 2022 with its augmentation label."""
    network = UNet(10, 128, (2, 2, 2), 4, (16,), 0.13, augment_dim=9)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs(size=32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == pytest.approx(55.7e6, rel=0.01)


def test_attention_splits_channels_into_heads_then_into_queries_keys_and_values():
    B, H, C, heads = 2, 4, 8, 2
    module = unet.SelfAttention(STYLES["adm"], heads, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (B, H, H, C))
    params = random_params(module, x)
    qkv, proj = params["params"]["qkv"], params["params"]["proj"]
    normed = np.asarray(x, np.float64).reshape(B, H * H, 2, C // 2)  # max(1, C // 4) groups
    normed = (normed - normed.mean((1, 3), keepdims=True)) / np.sqrt(normed.var((1, 3), keepdims=True) + 1e-5)
    norm = params["params"]["norm2"]
    normed = normed.reshape(B, H * H, C) * norm["scale"] + norm["bias"]
    mixed = np.zeros((B, H * H, C))
    projected = normed @ qkv["kernel"][0, 0] + qkv["bias"]
    for head in range(heads):
        own = projected[..., head * 12 : (head + 1) * 12]  # 4 channels of a head, each with its q, k and v
        q, k, v = own[..., 0::3], own[..., 1::3], own[..., 2::3]
        scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(C // heads))
        mixed[..., head * 4 : (head + 1) * 4] = scores / scores.sum(-1, keepdims=True) @ v
    expected = x + (mixed @ proj["kernel"][0, 0] + proj["bias"]).reshape(x.shape)
    np.testing.assert_allclose(jax.jit(module.apply)(params, x), expected, atol=1e-4)


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


def test_a_mask_is_drawn_once_for_all_that_reads_it():
    """Nothing else may take the draw into itself: XLA for TPUs would repeat it in every convolution behind it."""
    keys, x = jax.random.split(jax.random.key(0), 2), jnp.ones((2, 4, 4, 3))
    conv = layers.Conv(3)
    params = conv.init(jax.random.key(1), x)
    loss = lambda p, x: conv.apply(p, layers.dropout(x, 0.25, keys, 0)).sum()  # noqa: E731
    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).as_text()
    assert program.count("stablehlo.optimization_barrier") == 1
    assert "xi1>" in program.split("stablehlo.optimization_barrier")[1].splitlines()[0]  # the mask, a bit an entry


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


def filtered(x, kernel, stride, padding):
    """Correlates every channel of x [B,H,W,C] with a 2-D kernel, by definition."""
    x = np.pad(np.asarray(x), [(0, 0), padding, padding, (0, 0)])
    n = len(kernel)
    height, width = ((size - n) // stride + 1 for size in x.shape[1:3])
    out = np.zeros((len(x), height, width, x.shape[-1]))
    for i in range(height):
        for j in range(width):
            patch = x[:, i * stride : i * stride + n, j * stride : j * stride + n]
            out[:, i, j] = np.einsum("bhwc,hw->bc", patch, kernel)
    return out


def test_resampling_with_the_tent_filter():
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    kernel = np.outer(layers.TENT, layers.TENT) / 64
    np.testing.assert_allclose(layers.downsample(x, layers.TENT), filtered(x, kernel, 2, (1, 1)), atol=1e-6)
    spread = np.zeros((2, 12, 8, 3))
    spread[:, ::2, ::2] = 4 * x
    np.testing.assert_allclose(layers.upsample(x, layers.TENT), filtered(spread, kernel, 1, (2, 1)), atol=1e-6)


def test_the_fused_convolution_keeps_the_margin_that_its_filter_reads():
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 1)).astype(np.float32)
    conv = layers.Conv(1, down=True, fused=True, taps=layers.TENT)
    params = random_params(conv, x)
    wide = filtered(x, params["params"]["kernel"][:, :, 0, 0], 1, (2, 2))
    expected = filtered(wide, np.outer(layers.TENT, layers.TENT) / 64, 2, (0, 0)) + params["params"]["bias"]
    np.testing.assert_allclose(conv.apply(params, x), expected, atol=1e-5)


def test_adm_draws_weights_and_biases_as_pytorch_does():
    x, c_noise, label = inputs()
    drawn = TINY.clone(style="adm").init(jax.random.key(0), x, c_noise, label)["params"]["enc_16x16_block0"]["conv0"]
    bound = 1 / np.sqrt(9 * 16)
    for leaf in (drawn["kernel"], drawn["bias"]):
        assert np.abs(leaf).max() <= bound and np.abs(leaf).max() > 0.8 * bound


def test_attention_may_be_asked_for_by_name():
    x, c_noise, label = inputs()
    params = random_params(TINY, x, c_noise, label)
    expected = jax.jit(TINY.apply)(params, x, c_noise, label)
    for attention in ("xla", "chunked"):
        named = TINY.clone(attention=attention)
        np.testing.assert_allclose(jax.jit(named.apply)(params, x, c_noise, label), expected, rtol=1e-5, atol=1e-5)
