"""The official classifiers' networks, their training with batch norm, and what else `fit` can do for them."""

import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tdsm_jax.diffusion.process import EDM
from tdsm_jax.errors import UserError
from tdsm_jax.networks.classifier import Classifier
from tdsm_jax.networks.mnist_cnn import MnistCNN
from tdsm_jax.networks.resnet import AXIS, ResNet
from tdsm_jax.training import classifier as classifiers
from tdsm_jax.training import loop, parallel
from tdsm_jax.training.classifier import FitSettings, Labelled
from tdsm_jax.training.state import Optimisation, initial_state, stream_key, trained, update

RESNET = ResNet(num_classes=3, blocks=(1, 1), channels=4, embedding_channels=8)
CNN = MnistCNN(num_classes=3, channels=(4, 8), embedding_channels=8)
OURS = Classifier(num_classes=3, widths=(8,), hidden=16, dropout_rate=0.0)
FAST = Optimisation(
    batch_size=32,
    learning_rate=1e-2,
    ramp_images=64,
    ema_half_life=200,
    ema_ramp=0.1,
    weight_decay=0.0,
    clip_norm=0.0,
)


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def inputs(batch=6, size=8):
    return jax.random.normal(jax.random.key(1), (batch, size, size, 1)), jnp.linspace(-1, 1, batch)


def random_variables(network, x, c_noise):
    """Returns normals over the root of the fan-in, running variances of order 1: compiles no initialisers."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return (rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(network.init, jax.random.key(0), x, c_noise))


# -- networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [RESNET, CNN, OURS], ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_classifiers_share_their_call(network, dtype):
    network = network.clone(dtype=dtype)
    x, c_noise = inputs()
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, c_noise)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    variables = random_variables(network, x, c_noise)
    apply = jax.jit(functools.partial(network.apply, dropout_keys=None, train=False))
    logits, features = apply(variables, x, c_noise)
    assert logits.shape == (6, 3) and features.ndim == 2 and len(features) == 6
    assert logits.dtype == features.dtype == jnp.float32
    other, _ = apply(variables, x, c_noise + 1)
    assert np.abs(other - logits).max() > 1e-4  # the noise level is read


def test_a_resnet_has_the_same_variables_for_every_image_size():
    shapes = [jax.eval_shape(RESNET.init, jax.random.key(0), *inputs(size=size)) for size in (8, 16)]
    assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])


def test_training_normalises_by_the_batch_and_keeps_running_statistics():
    x, c_noise = inputs()
    variables = random_variables(RESNET, x, c_noise)
    apply = functools.partial(RESNET.apply, train=True, mutable=["batch_stats"])
    step = jax.jit(jax.vmap(apply, in_axes=(None, 0, 0), axis_name=AXIS))  # one shard: the axis must exist
    (logits, _), changed = step(variables, x[None], c_noise[None])
    kernel = variables["params"]["conv1"]["kernel"]
    dimensions = ("NHWC", "HWIO", "NHWC")
    h = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)
    running = changed["batch_stats"]["bn1"]
    before = variables["batch_stats"]["bn1"]
    np.testing.assert_allclose(running["mean"][0], 0.9 * before["mean"] + 0.1 * h.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(running["var"][0], 0.9 * before["var"] + 0.1 * h.var((0, 1, 2)), rtol=1e-5)
    # Evaluation with this batch's own statistics as the running ones gives the same logits.
    own = jax.tree.map(lambda new, old: (new[0] - 0.9 * old) / 0.1, changed, {"batch_stats": variables["batch_stats"]})
    np.testing.assert_allclose(jax.jit(RESNET.apply)(variables | own, x, c_noise)[0], logits[0], atol=1e-4)


# -- what an update moves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_only_the_collection_params_is_trained(nested):
    decayed = dataclasses.replace(FAST, weight_decay=0.1, clip_norm=1.0)
    weights = {"w": jnp.array([1.0, -2.0])}
    others = {"batch_stats": {"bn": {"mean": jnp.ones(2)}}, "constants": {"freqs": jnp.full(3, 7.0)}}

    def wrap(variables):
        return {"network": variables, "head": jnp.ones(2)} if nested else variables

    alone, beside = wrap({"params": weights}), wrap({"params": weights} | others)
    states = [initial_state(params, decayed) for params in (alone, beside)]
    for _ in range(3):
        states = [update(s, jax.tree.map(lambda leaf: leaf * 50, s.params), decayed) for s in states]
    for tree in ("params", "ema_params"):
        without, with_others = (getattr(state, tree) for state in states)
        if nested:
            np.testing.assert_array_equal(without["head"], with_others["head"])
            without, with_others = without["network"], with_others["network"]
        assert_trees_equal(with_others, without | others)
    assert np.all(np.abs(jax.tree.leaves(states[0].params)[0] - jax.tree.leaves(alone)[0]) > 0)


def test_trees_without_collections_are_trained_whole():
    for tree in ({"w": jnp.ones(2), "b": {"c": jnp.ones(1)}}, [jnp.ones(3)], {"params": {"w": jnp.ones(2)}}):
        assert_trees_equal(trained(tree), tree)


# -- learning rate ------------------------------------------------------------------------------------------


def test_the_learning_rate_decays_and_returns():
    """Adam's step for a constant gradient is the learning rate itself."""
    decays = {"ramp_images": 0, "decay_images": (64, 96, 160), "decay_factors": (0.1, 0.01, 1.0)}
    optimisation = dataclasses.replace(FAST, **decays)
    state, steps = initial_state({"w": jnp.zeros(1)}, optimisation), []
    for _ in range(7):
        new = update(state, {"w": jnp.ones(1)}, optimisation)
        steps.append(float(state.params["w"][0] - new.params["w"][0]))
        state = new
    np.testing.assert_allclose(np.array(steps) / 1e-2, [1, 1, 0.1, 0.01, 0.01, 1, 1], rtol=1e-3)


@pytest.mark.parametrize(
    ("decays", "message"),
    [
        ({"decay_images": (8,), "decay_factors": ()}, "equal length"),
        ({"decay_images": (8, 8), "decay_factors": (0.1, 0.1)}, "rise strictly"),
    ],
)
def test_decays_that_do_not_pair_up_are_refused(decays, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(FAST, **decays)


# -- fit ----------------------------------------------------------------------------------------------------


@functools.cache
def bars():
    """Three kinds of 8x8 images: a bright row, a bright column, neither."""
    rng = np.random.default_rng(0)
    labels = np.arange(192, dtype=np.int32) % 3
    images = rng.integers(0, 60, (192, 8, 8, 1)).astype(np.uint8)
    for image, y, place in zip(images, labels, rng.integers(0, 8, 192), strict=True):
        if y == 0:
            image[place] = 255
        elif y == 1:
            image[:, place] = 255
    return images, labels


def fit(network=RESNET, *, steps=6, S=None, images=None, optimisation=FAST, directory=None, process=None, **changed):
    settings = FitSettings(network, optimisation, loop.Schedule(steps, steps, steps), process, **changed)
    return classifiers.fit(
        Labelled(bars()[0] if images is None else images, bars()[1]),
        stream_key(0, "fit"),
        label="fit",
        settings=settings,
        S=np.eye(3) if S is None else S,
        mesh=parallel.data_mesh(),
        seed=0,
        directory=directory,
    )


@pytest.mark.parametrize("network", [RESNET, CNN], ids=lambda n: type(n).__name__)
def test_fit_learns(network):
    images, labels = bars()
    fitted = fit(network, steps=60)
    x = jnp.asarray(images / 127.5 - 1, jnp.float32)
    logits, _ = classifiers.classify(functools.partial(network.apply, fitted.params), None, x, jnp.zeros(len(x)))
    assert np.mean(np.asarray(logits).argmax(1) == labels) > 0.9


def first_states(settings, steps, mesh=None):
    """Returns the training states after each of the first steps of `fit`, on one batch."""
    images, labels = bars()
    variables = random_variables(settings.network, jnp.zeros((1, *images.shape[1:])), jnp.zeros(1))
    params = {"network": variables, "transition": jnp.zeros((3, 3))}
    params = jax.tree.map(jnp.asarray, params)
    start = initial_state(params, settings.optimisation)
    state = classifiers.FitState(start, jax.tree.map(jnp.copy, params), jnp.float32(jnp.inf))
    mesh = mesh or parallel.data_mesh()
    step = parallel.data_parallel(classifiers.make_fit_step(settings), mesh, {})
    x0 = (images[:32] / 127.5 - 1).astype(np.float32)
    batch = parallel.split({"x0": x0, "label": labels[:32], "position": np.arange(32)}, mesh)
    state, key = parallel.replicate((state, stream_key(0, "step")), mesh)
    trains = []
    for _ in range(steps):
        state, _ = step(state, batch, key)
        trains.append(jax.device_get(state.train))
    return trains


def test_running_statistics_move_and_are_copied_into_the_average():
    decayed = dataclasses.replace(FAST, weight_decay=0.5)
    first, second = first_states(FitSettings(RESNET, decayed, loop.Schedule(1, 1, 1), EDM()), 2)
    for train in (first, second):
        assert_trees_equal(train.params["network"]["batch_stats"], train.ema_params["network"]["batch_stats"])
    means = [train.params["network"]["batch_stats"]["bn1"]["mean"] for train in (first, second)]
    assert np.all(means[0] != 0) and np.all(means[0] != means[1])
    kernel, average = (tree["network"]["params"]["conv1"]["kernel"] for tree in (second.params, second.ema_params))
    assert np.any(kernel != average)


def test_the_transition_head_freezes_with_its_average():
    settings = FitSettings(OURS, FAST, loop.Schedule(1, 1, 1), None, freeze_transition_images=64)
    trains = first_states(settings, 4)
    head = [train.params["transition"] for train in trains]
    assert np.any(head[0] != head[1])
    assert_trees_equal(head[1], head[2])
    assert_trees_equal(head[1], head[3])
    assert_trees_equal(trains[2].ema_params["transition"], head[1])
    kernels = [train.params["network"]["params"]["logits"]["kernel"] for train in trains]
    assert np.all(kernels[2] != kernels[3])  # the network goes on
    assert np.all(trains[1].ema_params["transition"][~np.eye(3, dtype=bool)] != head[1][~np.eye(3, dtype=bool)])


def test_the_transition_head_never_freezes_unasked():
    trains = first_states(FitSettings(OURS, FAST, loop.Schedule(1, 1, 1), None), 4)
    head = [train.params["transition"] for train in trains]
    assert all(np.any(a != b) for a, b in zip(head, head[1:], strict=False))


def test_files_change_nothing_and_statistics_survive_them(tmp_path):
    straight, stored = fit(), fit(directory=tmp_path / "run")
    assert_trees_equal(straight.params, stored.params)
    classifiers.write_fitted(tmp_path / "f.npz", stored)
    assert_trees_equal(classifiers.read_fitted(tmp_path / "f.npz").params, straight.params)
    assert set(straight.params) == {"params", "batch_stats"}


def test_augmented_images_are_fitted_instead():
    grey = fit(OURS, images=np.full_like(bars()[0], 255), process=EDM())
    augmented = fit(OURS, process=EDM(), augment=lambda keys, x0: (jnp.ones_like(x0), keys))
    assert_trees_equal(grey.params, augmented.params)
    plain, identity = fit(OURS, process=EDM()), fit(OURS, process=EDM(), augment=lambda keys, x0: (x0, None))
    assert_trees_equal(plain.params, identity.params)  # the other random draws are the same
    assert np.any(plain.params["params"]["logits"]["kernel"] != grey.params["params"]["logits"]["kernel"])


def test_augmentation_has_a_key_for_each_example():
    seen = []

    def record(keys, x0):
        jax.debug.callback(lambda data: seen.append(np.asarray(data)), jax.random.key_data(keys))
        return x0, None

    fit(OURS, steps=2, process=EDM(), augment=record)
    jax.effects_barrier()
    rows = np.concatenate(seen)
    assert len(np.unique(rows, axis=0)) == 2 * FAST.batch_size


# -- devices ------------------------------------------------------------------------------------------------

EIGHT_DEVICES = """
import os, sys
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
sys.path.insert(0, sys.argv[2])
from tdsm_jax import runtime
runtime.configure(sys.argv[1])
import jax, numpy as np
import test_classifiers as t
from tdsm_jax.training import parallel

ends = []
for count in (1, 8):
    settings = t.FitSettings(t.RESNET, t.FAST, t.loop.Schedule(1, 1, 1), t.EDM())
    ends.append(t.first_states(settings, 3, parallel.data_mesh(jax.devices()[:count]))[-1])
one, eight = ends
# Adam divides by the root of the second moment: where that is tiny, rounding shows.
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one.ema_params, eight.ema_params)
print("same")
"""


def test_eight_devices_give_the_statistics_of_one(pytestconfig):
    cache, tests = str(pytestconfig.rootpath / ".cache" / "jax"), str(pytestconfig.rootpath / "tests")
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES, cache, tests], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.strip() == "same", done.stderr[-3000:]
