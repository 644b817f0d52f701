"""The diffusion transformer: the published one to the last digit, and the contracts that every score network keeps."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from numpy_dit import Transformer, official_state, position_embedding
from tdsm_jax import checks, plan
from tdsm_jax.config import load_module
from tdsm_jax.diffusion.process import EDM, VE, VP
from tdsm_jax.errors import UserError
from tdsm_jax.interop.torch_params import network_from_official
from tdsm_jax.networks import dit
from tdsm_jax.networks.backbones import check_architecture
from tdsm_jax.networks.dit import CONDITIONINGS, SIZES, DiT
from tdsm_jax.run import Run
from tdsm_jax.score_network import check_start, score_network
from tdsm_jax.training import model_file
from tdsm_jax.training.model_file import Model
from tdsm_jax.validation import validate
from test_main import ROOT, call
from test_model_file import rewrite
from test_networks import random_params

TINY = DiT(num_classes=5, patch=2, width=16, depth=2, heads=2, dropout_rate=0.0, time_scale=dit.TIME_SCALE)
LOCAL = {"pattern": "neighbourhood", "window": 3}


def inputs(batch=3, size=8, channels=3):
    x = jax.random.normal(jax.random.key(0), (batch, size, size, channels))
    return x, jnp.linspace(-1.5, 0.5, batch), jnp.arange(batch)


@pytest.mark.parametrize(("size", "millions"), [("S/2", 33), ("B/2", 130), ("L/2", 458), ("XL/2", 675)])
def test_the_sizes_have_the_published_numbers_of_parameters(size, millions):
    """Of latents 32x32x4 and 1000 classes, table 4 and section 4; nothing is allocated."""
    shapes = model_file.variable_shapes(DiT(1000, *SIZES[size], 0.0), (32, 32, 4))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == pytest.approx(1e6 * millions, rel=0.01)


def test_every_size_says_its_patch():
    assert all(int(name.rpartition("/")[2]) == size.patch for name, size in SIZES.items())
    assert all(size.width % size.heads == 0 == size.width % 4 for size in SIZES.values())


@pytest.mark.parametrize("out_channels", [3, 6])
def test_the_network_of_official_weights_computes_what_the_official_one_does(out_channels):
    """Against NumPy in float64; of a network that predicts a variance, too, the first half of the channels."""
    state = official_state(1, out_channels=out_channels)
    network, params, image_shape = network_from_official(state, heads=4)
    assert image_shape == (8, 8, 3) and network.num_classes == 5 and network.time_scale == 1
    x, t, label = inputs()[0], np.array([0.0, 12.0, 999.0]), np.array([0, 4, 5])
    expected = Transformer(state, heads=4)(np.asarray(x).transpose(0, 3, 1, 2), t, label)[:, :3]
    with jax.default_matmul_precision("highest"):
        F = jax.jit(network.apply)(params, x, jnp.asarray(t), jnp.asarray(label))
    np.testing.assert_allclose(np.asarray(F).transpose(0, 3, 1, 2), expected, atol=1e-5)


def test_the_position_embedding_tells_rows_from_columns():
    np.testing.assert_allclose(dit.position_embedding((5, 5), 16)[None], position_embedding(5, 16), atol=1e-6)
    wide = dit.position_embedding((2, 3), 8).reshape(2, 3, 8)
    np.testing.assert_array_equal(wide[0, :, :4], wide[1, :, :4])  # the column alone
    np.testing.assert_array_equal(wide[:, 0, 4:], wide[:, 2, 4:])
    assert len(np.unique(wide.reshape(6, 8), axis=0)) == 6


@pytest.fixture(scope="module", params=CONDITIONINGS)
def conditioned(request):
    """A tiny network of each conditioning, with an augmentation label, its inputs and random parameters."""
    network = TINY.clone(conditioning=request.param, augment_dim=9)
    return network, random_params(network, *inputs())


def test_the_output_has_the_shape_of_the_image_and_starts_at_zero(conditioned):
    network, _ = conditioned
    params = jax.jit(network.init)(jax.random.key(1), *inputs())
    output = jax.jit(network.apply)(params, *inputs())
    assert output.dtype == jnp.float32 and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    np.testing.assert_array_equal(output, np.zeros((3, 8, 8, 3)))


def test_each_of_its_conditions_matters(conditioned):
    """Label, null label, noise level and each entry of the augmentation label, whose zeros mean none."""
    network, params = conditioned
    x = jnp.repeat(inputs()[0][:1], 16, axis=0)
    label = jnp.concatenate([jnp.arange(6), jnp.zeros(10, int)])
    c_noise = jnp.zeros(16).at[6].set(0.5)
    augment_label = jnp.concatenate([jnp.zeros((7, 9)), jnp.eye(9)])
    apply = jax.jit(network.apply)
    outputs = np.asarray(apply(params, x, c_noise, label, augment_label))
    for a in range(16):
        for b in range(a):
            assert np.abs(outputs[a] - outputs[b]).max() > 1e-3, (a, b)
    none = apply(params, x, c_noise, label)
    np.testing.assert_allclose(none[:7], outputs[:7], atol=1e-5)


def test_an_unconditional_network_has_no_table_of_labels(conditioned):
    network, _ = conditioned
    shapes = model_file.variable_shapes(network.clone(num_classes=0), (8, 8, 3))["params"]
    assert "y_embedder" not in shapes and "t_embedder_mlp_0" in shapes


@pytest.mark.parametrize("how", [{"remat": True, "attention": "xla"}, {"attention": "chunked"}])
def test_how_it_is_computed_does_not_change_the_gradient(how):
    arguments = inputs()
    params = random_params(TINY, *arguments)
    loss = lambda network: lambda params: (network.apply(params, *arguments) ** 2).mean()  # noqa: E731
    own, other = (jax.jit(jax.grad(loss(network)))(params) for network in (TINY, TINY.clone(**how)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), own, other)


def test_tokens_see_what_the_pattern_says():
    """The gradient of one output token with respect to the image is zero beyond what a block lets through."""
    x, c_noise, label = inputs(batch=1, size=12)
    seen = {}
    for pattern, window in (("full", 0), ("window", 5), ("neighbourhood", 3)):
        network = TINY.clone(depth=1, pattern=pattern, window=window)
        params = random_params(network, x, c_noise, label)
        middle = lambda x, n=network, p=params: n.apply(p, x, c_noise, label)[0, 6, 6].sum()  # noqa: E731
        touched = np.abs(jax.jit(jax.grad(middle))(x))[0].max(-1).reshape(6, 2, 6, 2).max((1, 3)) > 0
        seen[pattern] = touched
    assert seen["full"].all()
    row = np.zeros(36, bool)
    row[3 * 6 + 3 - 2 : 3 * 6 + 3 + 3] = True
    np.testing.assert_array_equal(seen["window"].ravel(), row)
    square = np.zeros((6, 6), bool)
    square[2:5, 2:5] = True
    np.testing.assert_array_equal(seen["neighbourhood"], square)


def test_a_neighbourhood_of_everything_is_full_attention():
    arguments = inputs()
    params = random_params(TINY, *arguments)
    full, local = (jax.jit(n.apply)(params, *arguments) for n in (TINY, TINY.clone(pattern="neighbourhood", window=4)))
    np.testing.assert_allclose(local, full, atol=1e-4)


def test_dropout_depends_on_the_key_of_the_example_only():
    network, arguments = TINY.clone(dropout_rate=0.3), inputs()
    params, keys = random_params(TINY, *arguments), jax.random.split(jax.random.key(3), 3)
    apply = jax.jit(network.apply)
    whole = apply(params, *arguments, dropout_keys=keys)
    turned = np.array([2, 0, 1])
    again = apply(params, *(a[turned] for a in arguments), dropout_keys=keys[turned])
    np.testing.assert_allclose(again, whole[turned], atol=1e-4)
    assert np.abs(whole - apply(params, *arguments)).max() > 1e-3


def test_bfloat16_computes_close_by_and_returns_float32():
    arguments = inputs()
    params = random_params(TINY, *arguments)
    full, low = (jax.jit(n.apply)(params, *arguments) for n in (TINY, TINY.clone(dtype=jnp.bfloat16)))
    assert low.dtype == jnp.float32 and 0 < np.abs(low - full).max() / np.abs(full).max() < 0.1


def described(**changes):
    config = load_module(ROOT / "configs/digits.py").get_config("network=dit")
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return config


@pytest.mark.parametrize(("process", "scale"), [(EDM(), 1000), (VE(), 1000), (VP(), 1)])
def test_the_noise_level_reaches_the_embedding_at_the_scale_of_time_steps(process, scale):
    network = score_network(described(), 10, 0, process)
    assert network.time_scale == scale
    told = network.time_scale * np.asarray(process.c_noise(jnp.asarray([process.sigma_min, 1.0, process.sigma_max])))
    assert 500 < np.abs(told).max() < 5000 and np.ptp(told) > 500


def test_a_size_gives_what_the_config_leaves_open():
    network = score_network(described(dit__size="S/4", dit__depth=3), 10, 0, EDM())
    assert (network.patch, network.width, network.depth, network.heads) == (4, 384, 3, 6)
    assert network.pattern == "full" and network.window == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dit__size": "XL"}, "config key dit.size: 'XL' is not a choice; did you mean 'XL/"),
        ({"dit__attention": "neighborhood"}, "did you mean 'neighbourhood'?"),
        ({"dit__conditioning": "adaln"}, "did you mean 'adaln_zero'?"),
        ({"dit__heads": 5}, "96 channels (width) must be a multiple of 4 and of the 5 heads"),
        ({"dit__width": 18, "dit__heads": 2}, "18 channels (width)"),
        ({"dit__window": 0}, "config key dit.window=0"),
        ({"dit__patch": -1}, "config key dit.patch=-1"),
        ({"dit__conditioning": "in_context", "dit__attention": "window"}, "in_context needs dit.attention=full"),
        ({"dit__attention": "window", "compute__attention": "cudnn"}, "there is one way: set auto"),
        ({"compute__attention": "chunks"}, "did you mean 'chunked'?"),
    ],
)
def test_bad_values_of_the_section_are_named(changes, said):
    with pytest.raises(UserError, match="config") as error:
        validate(described(**changes))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dit__attention": "neighbourhood", "dit__window": 9}, "a neighbourhood of 9 tokens; among 8x8 1 to 8 fit"),
        ({"dit__attention": "window", "dit__window": 17, "dit__patch": 2}, "17 tokens; among 4x4 1 to 16 fit"),
    ],
)
def test_a_window_larger_than_the_images_is_refused(changes, said):
    with pytest.raises(UserError, match="config section dit: its network has a ") as error:
        checks.check_dit(Run(FrozenConfigDict(described(**changes)), pathlib.Path()))
    assert said in str(error.value)


def test_patches_that_do_not_divide_the_images_are_refused_before_anything_is_built(tmp_path):
    config = "configs/digits.py:smoke,network=dit,methods=dsm"
    done = call(f"--workdir={tmp_path / 'new'}", "--config.dit.patch=3", config=config)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "config section dit: its network has patches of 3 pixels, which do not divide images of 8x8" in done.stderr
    assert not (tmp_path / "new").exists()


def made(network=TINY):
    params = jax.tree.map(np.asarray, random_params(network, *inputs()))
    return Model(network, params, EDM(), (8, 8, 3))


def test_a_model_survives_the_way_through_its_file(tmp_path):
    model = made(TINY.clone(**LOCAL, augment_dim=9, dtype=jnp.dtype(jnp.bfloat16)))
    model_file.write(tmp_path / "ema.npz", model)
    back = model_file.read(tmp_path / "ema.npz")
    assert back._replace(params=None) == model._replace(params=None)
    jax.tree.map(np.testing.assert_array_equal, back.params, model.params)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "unet"}, "unknown entries"),
        ({"patch": 0}, "patches of 0 pixels"),
        ({"patch": 3}, "patches of 3 pixels, which do not divide images of 8x8"),
        ({"width": 10**30}, "channels in 2 blocks"),
        ({"depth": 10**9}, "in 1000000000 blocks"),
        ({"width": 16.0}, "has width 16.0"),
        ({"heads": 3}, "not 3 equal heads"),
        ({"heads": 0}, "not 0 equal heads"),
        ({"conditioning": "film"}, "conditioning film"),
        ({"pattern": "\x1b[31m"}, r"pattern \x1b[31m"),
        ({"pattern": "window"}, "a window of 0 tokens; among 4x4 1 to 16 fit"),
        ({"pattern": "neighbourhood", "window": 5}, "1 to 4 fit"),
        ({"pattern": "window", "window": 3, "conditioning": "in_context"}, "conditions in context"),
        ({"time_scale": float("nan")}, "has time_scale nan"),
        ({"num_classes": 1 << 40}, "classes"),
        ({"width": 32}, "does not fit"),
    ],
)
def test_a_file_that_does_not_hold_together_is_refused(changes, said, tmp_path):
    model_file.write(tmp_path / "ema.npz", made())
    rewrite(tmp_path / "ema.npz", entries=changes)
    with pytest.raises(UserError, match="ema.npz") as error:
        model_file.read(tmp_path / "ema.npz")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_more_tokens_than_any_use_are_refused():
    with pytest.raises(UserError, match="its network has 4194304 tokens"):
        check_architecture(TINY, (4096, 4096, 3))


def test_training_starts_from_a_network_of_the_same_heads_only():
    check_start(TINY, TINY.clone(**LOCAL, dropout_rate=0.1), "ema.npz")
    with pytest.raises(UserError, match="ema.npz has heads 4, the config makes it 2"):
        check_start(TINY, TINY.clone(heads=4), "ema.npz")


def trained(folder, *keys, attention, methods, stages):
    """The variables that each method of a small run ends with."""
    config = f"configs/digits.py:smoke,network=dit,attention={attention},methods={methods}"
    short = ("--config.score.steps=2", "--config.logging.log_every=1", "--config.logging.save_every=2")
    done = call(f"--workdir={folder}", f"--stages={stages}", *short, *keys, config=config)
    assert done.returncode == 0, done.stderr[-3000:]
    return [model_file.read(folder / "score" / method / "ema.npz") for method in methods.split("+")]


def test_tdsm_trains_it_through_the_real_entry_point(tmp_path):
    stages, few = "labels,classifier,transition,score,sample", "--config.sampling.per_class=4"
    (model,) = trained(
        tmp_path, few, "--config.classifier.folds=1", attention="neighbourhood", methods="tdsm", stages=stages
    )
    assert isinstance(model.network, DiT) and model.network.pattern == "neighbourhood"
    assert np.load(tmp_path / "samples" / "tdsm.npz")["images"].shape == (40, 8, 8, 1)
    assert np.abs(model.params["params"]["final_layer"]["linear"]["kernel"]).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_every_method_trains_it(conditioning, tmp_path):
    methods = "dsm+tdsm+tdsm_threshold+tdsm_all+tdsm_sampled+s_weighted+posterior+relabel"
    keys = (f"--config.dit.conditioning={conditioning}", "--config.score.augment=0.1")
    stages = "labels,classifier,transition,score"
    for model in trained(tmp_path, *keys, attention="full", methods=methods, stages=stages):
        assert model.network.conditioning == conditioning and model.network.augment_dim == 9
        assert np.abs(model.params["params"]["final_layer"]["linear"]["kernel"]).max() > 0


@pytest.mark.parametrize("network", ["unet", "dit"])
def test_keys_of_the_transformer_are_none_of_a_unets(network):
    """What a U-Net learnt stays when they change."""
    config = load_module(ROOT / "configs/digits.py").get_config(f"network={network},methods=clean")
    units = plan.units(Run(FrozenConfigDict(config), pathlib.Path()))
    (reads,) = (unit.reads for unit in units if unit.name == "score/clean")
    assert ("dit" in reads) == (network == "dit")


@pytest.mark.parametrize(("config", "along", "row"), [("digits", 3, 9), ("cifar10", 7, 49), ("mnist", 7, 49)])
def test_config_arguments_choose_a_window_and_a_neighbourhood_of_as_many_tokens(config, along, row):
    get_config = load_module(ROOT / f"configs/{config}.py").get_config
    for attention, window in (("neighbourhood", along), ("window", row)):
        chosen = get_config(f"network=dit,attention={attention}")
        validate(chosen)
        assert (chosen.network.style, chosen.dit.attention, chosen.dit.window) == ("dit", attention, window)
    with pytest.raises(UserError, match="is one of transformers"):
        get_config("attention=neighbourhood")
