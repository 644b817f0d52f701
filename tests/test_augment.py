"""The EDM augmentation: exact where it can be, true to its label, and distributed as published."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tdsm_jax.data.augment import LABEL_SIZE, SYM6, Parameters, affine_of, augment, draw, flip, label_of, light, warp
from tdsm_jax.errors import UserError

SIZE, BATCH = 32, 96
WIDE = 64  # leaves a blob room between the mirrors
FORMATS = [(32, 3), (28, 1), (8, 3)]  # pixels a side, channels
warp_jit = jax.jit(warp)
augment_jit = jax.jit(augment)


def drawn(**values):
    """Returns parameters of which only `values` were drawn."""
    nothing = Parameters(False, False, 0.0, 0.0, 0.0, 0.0, (0.0, 0.0))
    given = {name: value if "flip" in name else jnp.float32(value) for name, value in values.items()}
    return Parameters(*(jnp.asarray(value) for value in nothing))._replace(**given)


def noise_images(batch, size=SIZE, channels=3):
    return jax.random.uniform(jax.random.key(7), (batch, size, size, channels), minval=-1, maxval=1)


def keys_of(batch, seed=0):
    return jax.vmap(lambda n: jax.random.fold_in(jax.random.key(seed), n))(jnp.arange(batch))


def mirrored(index, size):
    """Returns where an index lands between mirrors through the centres of the border pixels."""
    return np.abs((np.asarray(index) + size - 1) % (2 * size - 2) - (size - 1))


def shifted(image, right, down):
    """Shifts [H,W,C] by whole pixels."""
    H, W, _ = image.shape
    return image[mirrored(np.arange(H) - down, H)][:, mirrored(np.arange(W) - right, W)]


def blob(x, y, sd_x=2.0, sd_y=2.0):
    """Returns a Gaussian blob [H,H,1] at (x, y) pixels from the centre."""
    at = np.arange(WIDE) - (WIDE - 1) / 2
    return jnp.asarray(
        np.exp(-((at[None, :] - x) ** 2) / (2 * sd_x**2) - (at[:, None] - y) ** 2 / (2 * sd_y**2))[..., None],
        jnp.float32,
    )


def moments(image):
    """Returns mean (x, y) from the centre and covariance [2,2] of the mass of an image [H,H,1], in pixels."""
    mass = np.asarray(image, np.float64)  # undershoot makes some of it negative
    mass /= mass.sum()
    at = np.arange(len(mass)) - (len(mass) - 1) / 2
    points = np.stack(np.meshgrid(at, at), axis=-1)
    mean = (mass * points).sum(axis=(0, 1))
    return mean, np.einsum("hwi,hwj->ij", mass * (points - mean), points - mean)


# The filter


def orthonormal_filters(moments):
    """Yields every real filter with so many vanishing moments (Daubechies 1992): one choice of roots each."""
    half_band = [math.comb(moments - 1 + k, k) for k in reversed(range(moments))]
    pairs = [np.roots([1, 4 * y - 2, 1]) for y in np.roots(half_band) if y.imag >= 0]  # z, 1/z
    for chosen in itertools.product((0, 1), repeat=len(pairs)):
        roots = [-1] * moments
        for pair, which in zip(pairs, chosen, strict=True):
            root = pair[np.argsort(abs(pair))[which]]
            roots += [root.real] if abs(root.imag) < 1e-12 else [root, root.conj()]
        h = np.poly(roots).real
        yield h * np.sqrt(2) / h.sum()


def phase_error(h):
    """Returns how far a filter is from linear phase."""
    angle = np.linspace(0.01, 0.9 * np.pi, 200)
    response = np.exp(-1j * np.outer(angle, np.arange(len(h)))) @ h
    phase = np.unwrap(np.angle(response))
    return abs(response) @ abs(phase - angle * (angle @ phase) / (angle @ angle))


def test_the_filter_is_the_least_asymmetric_with_six_vanishing_moments():
    taps = np.arange(12)
    assert SYM6.shape == (12,) and SYM6.sum() == pytest.approx(np.sqrt(2), abs=1e-12)
    for shift in range(6):
        assert SYM6[2 * shift :] @ SYM6[: 12 - 2 * shift] == pytest.approx(float(shift == 0), abs=1e-12)
    for order in range(6):
        assert (-1.0) ** taps * (taps - 5.5) ** order @ SYM6 == pytest.approx(0, abs=1e-9)
    filters = list(orthonormal_filters(6))
    assert len(filters) == 8 and min(abs(h - SYM6).max() for h in filters) < 1e-9
    assert phase_error(SYM6) == pytest.approx(min(map(phase_error, filters)))


# Exact cases


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (28, 1), (8, 3), (7, 1), (2, 1)])
@pytest.mark.parametrize(("right", "down"), [(0, 0), (3, -2), (-41, 67)])
def test_quarter_turns_with_shifts_by_whole_pixels_are_exact_to_rounding(size, channels, right, down):
    """Down-sampling inverts up-sampling; what remains is the float32 rounding of coordinates up to 70 pixels."""
    image = noise_images(1, size, channels)[0]
    for quarters in (0, 1, 2, -1):
        rotation = quarters * np.pi / 2
        shift = np.array([right, down]) / (0.125 * size)
        result = warp_jit(image, affine_of(drawn(rotation=rotation, shift=shift), size))
        expected = shifted(np.rot90(np.asarray(image), quarters), right, down)
        np.testing.assert_allclose(result, expected, atol=1e-5 if right == down == 0 else 3e-5)


@pytest.mark.parametrize(("x_flip", "y_flip"), list(itertools.product((False, True), repeat=2)))
def test_flips_are_exact(x_flip, y_flip):
    image = noise_images(1)[0]
    expected = np.asarray(image)[:: -1 if y_flip else 1, :: -1 if x_flip else 1]
    np.testing.assert_array_equal(flip(image, drawn(x_flip=x_flip, y_flip=y_flip)), expected)


@pytest.mark.parametrize(("size", "channels"), FORMATS)
def test_without_probability_only_fair_x_flips_remain(size, channels):
    x0 = noise_images(BATCH, size, channels)
    images, label = augment_jit(keys_of(BATCH), x0, 0.0)
    assert images.shape == x0.shape and images.dtype == jnp.float32
    assert label.shape == (BATCH, 9) and label.dtype == jnp.float32
    np.testing.assert_array_equal(label[:, 1:], 0)
    flipped = np.asarray(label[:, 0]) == 1
    assert 0.3 < flipped.mean() < 0.7
    np.testing.assert_array_equal(images, np.where(flipped[:, None, None, None], x0[:, :, ::-1], x0))


def test_images_that_are_only_flipped_are_not_resampled():
    x0 = np.asarray(noise_images(BATCH))
    images, label = (np.asarray(a) for a in augment_jit(keys_of(BATCH), x0, 0.12))
    only_flips = (label[:, 2:] == 0).all(axis=1)
    assert 0.4 < only_flips.mean() < 0.8 and label[only_flips, 1].any()
    for image, result, (x_flip, y_flip, *_) in zip(x0[only_flips], images[only_flips], label[only_flips], strict=True):
        np.testing.assert_array_equal(result, image[:: -1 if y_flip else 1, :: -1 if x_flip else 1])
    assert (images[~only_flips] != x0[~only_flips]).any(axis=(1, 2, 3)).all()


# Geometry: x right, y down, angles counter-clockwise as seen


@pytest.mark.parametrize(
    ("values", "start", "end"),
    [
        ({"shift": (0.5, -1.0)}, (0, 0), (4, -8)),  # .125 * 64 w pixels, right and up
        ({"rotation": np.pi / 2}, (6, 0), (0, -6)),  # from the right to the top
        ({"rotation": np.pi / 6}, (6, 0), (3 * np.sqrt(3), -3)),
        ({"scale": 1.5}, (4, -2), (4 * 2**0.3, -2 * 2**0.3)),
        ({"stretch": -2.0}, (4, -2), (4 * 2**-0.4, -2 * 2**0.4)),
        ({"stretch": 2.0, "axis": np.pi / 4}, (3, -3), (3 * 2**0.4, -3 * 2**0.4)),  # up and to the right
        ({"stretch": 2.0, "axis": np.pi / 4}, (3, 3), (3 * 2**-0.4, 3 * 2**-0.4)),
    ],
)
def test_a_blob_goes_where_the_parameters_say(values, start, end):
    image = warp_jit(blob(*start), affine_of(drawn(**values), WIDE))
    np.testing.assert_allclose(moments(image)[0], end, atol=1e-3)


@pytest.mark.parametrize("rotation", [-2.9, -1.2, 0.0, 0.4, 2.0])
@pytest.mark.parametrize(("scale", "stretch", "axis"), [(0.0, 1.5, 0.0), (1.0, 0.0, 0.0), (-0.9, -1.2, 2.2)])
def test_a_blob_is_deformed_by_the_map(rotation, scale, stretch, axis):
    matrix = affine_of(drawn(rotation=rotation, scale=scale, stretch=stretch, axis=axis), WIDE)
    linear = np.asarray(matrix, np.float64)[:2, :2]
    mean, covariance = moments(warp_jit(blob(1.5, -2.0, 2.5, 1.5), matrix))
    np.testing.assert_allclose(mean, linear @ [1.5, -2.0], atol=3e-3)
    # Interpolation between fine samples, 1/2 pixel apart, blurs by a variance of 1/24 before the map.
    expected = linear @ np.diag([2.5**2 + 1 / 24, 1.5**2 + 1 / 24]) @ linear.T
    np.testing.assert_allclose(covariance, expected, atol=0.01)


def test_linear_images_come_out_of_any_map_exactly():
    """Fine samples half a tap off their place would shift the whole image by as much."""
    at = np.arange(WIDE) - (WIDE - 1) / 2
    x, y = np.meshgrid(at, at)
    ramp = jnp.asarray((0.02 * x - 0.01 * y)[..., None], jnp.float32)
    inner = slice(24, 40)  # the mirrors at the border bend the ramp
    for rotation in (0.3, 1.2, 2.5, -0.7):
        matrix = affine_of(drawn(rotation=rotation, scale=0.7, stretch=0.5, axis=1.0, shift=(0.3, 0.1)), WIDE)
        source = np.einsum("ij,jkl->ikl", np.linalg.inv(np.asarray(matrix)), np.stack([x, y, np.ones_like(x)]))
        expected = 0.02 * source[0] - 0.01 * source[1]
        np.testing.assert_allclose(warp_jit(ramp, matrix)[inner, inner, 0], expected[inner, inner], atol=1e-5)


def test_the_map_scales_then_turns_then_stretches_then_shifts():
    values = {"scale": 0.8, "rotation": 1.1, "stretch": -1.3, "axis": 0.4, "shift": (0.7, -0.2)}
    S, R, A, T = (
        np.asarray(affine_of(drawn(**{name: values[name] for name in names}), WIDE))
        for names in (("scale",), ("rotation",), ("stretch", "axis"), ("shift",))
    )
    np.testing.assert_allclose(affine_of(drawn(**values), WIDE), T @ A @ R @ S, atol=1e-6)
    np.testing.assert_array_equal(affine_of(drawn(), WIDE), np.eye(3))


def test_one_composed_map_equals_two_in_turn():
    image = blob(2.0, -3.0, 2.5, 2.0)
    first = affine_of(drawn(rotation=0.5, scale=-0.5, shift=(0.3, 0.2)), WIDE)
    second = affine_of(drawn(rotation=-1.9, stretch=0.8, axis=0.6, shift=(-0.4, 0.1)), WIDE)
    in_turn = warp_jit(warp_jit(image, first), second)
    np.testing.assert_allclose(in_turn, warp_jit(image, second @ first), atol=0.015)


@pytest.mark.parametrize(("size", "channels"), FORMATS)
def test_constant_images_stay_constant_and_others_bounded(size, channels):
    colour = jnp.linspace(-1, 1, channels)
    images, _ = augment_jit(keys_of(BATCH), jnp.broadcast_to(colour, (BATCH, size, size, channels)), 1.0)
    np.testing.assert_allclose(images, jnp.broadcast_to(colour, images.shape), atol=1e-5)
    checkers = jnp.sign(noise_images(BATCH, size, channels))  # the worst case of overshoot
    images, _ = augment_jit(keys_of(BATCH), checkers, 1.0)
    assert jnp.isfinite(images).all() and jnp.abs(images).max() < 2.5


# The label


def test_label_entries_in_order():
    p = drawn(x_flip=True, y_flip=True, scale=0.3, rotation=2.0, stretch=-1.5, axis=-0.8, shift=(0.25, -2.0))
    expected = [1, 1, 0.3, np.cos(2) - 1, np.sin(2), -1.5 * np.cos(0.8), 1.5 * np.sin(0.8), 0.25, -2]
    np.testing.assert_allclose(label_of(p), expected, rtol=1e-6)
    np.testing.assert_array_equal(label_of(drawn()), np.zeros(LABEL_SIZE))


@pytest.fixture(scope="module")
def many():
    """Returns parameters and labels of 20000 draws at probability .12."""
    parameters = jax.jit(jax.vmap(lambda key: draw(key, 0.12)))(keys_of(20_000, seed=3))
    return jax.tree.map(np.asarray, parameters), np.asarray(jax.jit(jax.vmap(label_of))(parameters))


def assert_share(happened, expected):
    assert np.mean(happened) == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / len(happened)))


def test_every_transform_comes_with_its_probability(many):
    _, label = many
    present = [
        label[:, 0] != 0, label[:, 1] != 0, label[:, 2] != 0,
        (label[:, 3:5] != 0).any(axis=1), (label[:, 5:7] != 0).any(axis=1), (label[:, 7:] != 0).any(axis=1),
    ]  # fmt: skip
    for happened, expected in zip(present, (0.5, 0.06, 0.12, 0.12, 0.12, 0.12), strict=True):
        assert_share(happened, expected)
    assert set(np.unique(label[:, :2])) == {0.0, 1.0}
    # The entries of one transform come together, and the transforms independently of each other.
    assert ((label[:, 7] != 0) == (label[:, 8] != 0)).all()
    correlation = np.corrcoef(present)
    np.testing.assert_allclose(correlation, np.eye(6), atol=4 / math.sqrt(len(label)))


def test_every_entry_has_its_distribution(many):
    parameters, label = many
    angle = stats.uniform(-np.pi, 2 * np.pi).cdf
    turns, stretches = label[:, 4] != 0, parameters.stretch != 0
    on_axis = stretches & (label[:, 6] == 0)
    samples = {
        "scale": (label[label[:, 2] != 0, 2], "norm"),
        "rotation": (np.arctan2(label[turns, 4], label[turns, 3] + 1), angle),
        "stretch": (parameters.stretch[stretches], "norm"),
        "stretch along x": (label[on_axis, 5], "norm"),
        "axis": (parameters.axis[stretches & ~on_axis], angle),
        "shift x": (label[label[:, 7] != 0, 7], "norm"),
        "shift y": (label[label[:, 7] != 0, 8], "norm"),
    }
    for name, (values, distribution) in samples.items():
        assert len(values) > 1000, name
        assert stats.kstest(values, distribution).pvalue > 1e-3, name
    assert_share(on_axis[stretches], 0.5)
    np.testing.assert_array_equal(label[~stretches, 5:7], 0)
    assert abs(np.corrcoef(label[label[:, 7] != 0, 7:].T)[0, 1]) < 4 / math.sqrt(1000)


# Inside a training step


def test_an_example_does_not_depend_on_the_rest_of_its_batch():
    x0, keys = noise_images(BATCH), keys_of(BATCH)
    images, label = augment_jit(keys, x0, 0.5)
    order = np.random.default_rng(0).permutation(BATCH)
    permuted, permuted_label = augment_jit(keys[order], x0[order], 0.5)
    np.testing.assert_array_equal(permuted_label, label[order])
    np.testing.assert_allclose(permuted, images[order], atol=1e-5)


def test_an_image_is_flipped_and_then_mapped_also_outside_a_batch():
    x0, keys = noise_images(BATCH), keys_of(BATCH)
    images, label = augment_jit(keys, x0, 1.0)
    for i in range(12):
        p = draw(keys[i], 1.0)
        np.testing.assert_allclose(label[i], label_of(p), rtol=1e-6)  # two programs may round differently
        np.testing.assert_allclose(images[i], warp_jit(flip(x0[i], p), affine_of(p, SIZE)), atol=2e-4)


def test_one_program_serves_all_keys_and_probabilities():
    traces = []

    @jax.jit
    def counted(keys, x0, probability):
        traces.append(x0.shape)
        return augment(keys, x0, probability)

    x0 = noise_images(4, size=8)
    results = [counted(keys_of(4, seed), x0, p)[0] for seed, p in ((0, 0.12), (1, 0.12), (1, 0.9))]
    assert len(traces) == 1
    assert (results[0] != results[1]).any() and (results[1] != results[2]).any()


@pytest.mark.parametrize("shape", [(2, 8, 9, 3), (2, 1, 1, 3)])
def test_images_that_cannot_be_turned_are_refused(shape):
    with pytest.raises(UserError, match="square images .* got"):
        augment(keys_of(2), jnp.zeros(shape), 0.12)


# Light augmentation


def test_light_augmentation_of_no_strength_changes_nothing():
    x0 = noise_images(3, 8, 1)
    still, labels = light(keys_of(3), x0, 0.0, 0.0, 0.0)
    np.testing.assert_allclose(still, x0, atol=1e-6)
    assert not labels.any()


def test_light_augmentation_draws_normals_of_the_strengths_asked_for():
    images, labels = light(keys_of(2000), jnp.zeros((2000, 8, 8, 1)), 0.05, 0.1, 0.15)
    assert images.shape == (2000, 8, 8, 1) and not labels[:, :2].any() and not labels[:, 5:7].any()
    columns = {"scale": (labels[:, 2] * 0.2, 0.15), "turn": (jnp.arcsin(labels[:, 4]), 0.1)}
    columns |= {"right": (labels[:, 7] * 0.125, 0.05), "down": (labels[:, 8] * 0.125, 0.05)}
    for name, (values, std) in columns.items():
        assert stats.kstest(np.asarray(values), "norm", args=(0, std)).pvalue > 1e-3, name


def test_light_augmentation_moves_the_image_as_its_label_says():
    image = blob(0, 0)[None]
    moved, label = light(keys_of(1, seed=3), image, 0.05, 0.0, 0.0)
    mean, covariance = moments(moved[0])
    np.testing.assert_allclose(mean, np.asarray(label[0, 7:]) * 0.125 * WIDE, atol=0.05)
    np.testing.assert_allclose(covariance, moments(image[0])[1], atol=0.2)


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
def test_light_augmentation_refuses_strengths_that_are_none(strength):
    with pytest.raises(UserError, match="finite numbers from 0"):
        light(keys_of(1), noise_images(1, 8, 1), 0.05, strength, 0.1)
