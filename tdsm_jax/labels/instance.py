"""Instance-dependent label noise: which label an image gets depends on the image, not on its class alone.

No matrix S explains such labels; the class average of `expected_matrix` is the best single one.
"""

import math

import numpy as np
from scipy.special import ndtr, ndtri

from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import check_labels, check_model, check_range, corrupt_each, uniforms

RATE_SPREAD = 0.1  # standard deviation of the rates q_n before truncation
# Logits are SHARPNESS x W / sqrt(D), with a spread of SHARPNESS times the root mean square of x for any image size.
# The likeliest wrong class then takes .71 of the flips for the 8x8 digits and .53 for synthetic 32x32x3 images with
# the 1/f spectrum and contrast of photographs; at 1 it takes .32 and .21 (1/9 is uniform). Without the division by
# sqrt(D) one class takes nearly all.
SHARPNESS = 4.0
# Streams of their own keep rates and projections independent of each other and of the draw of the labels.
_RATE_STREAM = 5
_PROJECTION_STREAM = 6


def instance_dependent(
    images: np.ndarray, labels: np.ndarray, num_classes: int, rate: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns noisy labels y_tilde int32 [N] and the distributions p float64 [N, K] that they were drawn from.

    Example n flips with probability q_n ~ Normal(rate, 0.1) truncated to [0, 1], to class j != y with the
    probability softmax_j(SHARPNESS x_n W_y / sqrt(D)), W_y [D, K] standard normal: p[n, y] = 1 - q_n. The
    truncation pulls the mean of q_n away from rates near 0 and 1 (to .08 and .92 at the ends).
    x_n [D] is the flattened image, uint8 pixels brought to [-1, 1] and floats taken as they are. Example n depends
    on its image, label and index only.
    Raises `UserError` for images [N, ...] of another number or kind, labels outside [0, K), bad rates and seeds.
    Source: Xia et al., NeurIPS 2020, "Part-dependent label noise", algorithm 2, which leaves the scale of x open.
    """
    p = instance_rows(images, labels, num_classes, rate, seed)
    return corrupt_each(p, seed), p


def instance_rows(images: np.ndarray, labels: np.ndarray, num_classes: int, rate: float, seed: int) -> np.ndarray:
    """Returns only the p [N, K] of `instance_dependent`."""
    check_model(num_classes, rate)
    labels = check_labels("labels", labels)
    check_range("labels", labels, num_classes)
    images = _check_images(images, len(labels))
    q = _flip_rates(rate, len(labels), seed)
    p = np.empty((len(labels), num_classes))
    for y in range(num_classes):
        members = np.flatnonzero(labels == y)
        x = _flattened(images[members])
        logits = SHARPNESS / math.sqrt(x.shape[1]) * (x @ _projection(y, x.shape[1], num_classes, seed))
        logits[:, y] = -np.inf
        flips = np.exp(logits - logits.max(axis=1, keepdims=True))
        p[members] = q[members, None] * flips / flips.sum(axis=1, keepdims=True)
        p[members, y] = 1 - q[members]
    return p


def _flip_rates(rate: float, count: int, seed: int) -> np.ndarray:
    """q_n [N]: the normal law of `rate` and `RATE_SPREAD`, truncated to [0, 1], by its inverse CDF."""
    low, high = ndtr(-rate / RATE_SPREAD), ndtr((1 - rate) / RATE_SPREAD)
    quantile = low + (high - low) * uniforms(seed, count, (_RATE_STREAM,))
    return np.clip(rate + RATE_SPREAD * ndtri(quantile), 0, 1)


def _projection(y: int, size: int, num_classes: int, seed: int) -> np.ndarray:
    """W_y [D, K], by the inverse CDF: the normal draws of NumPy may change with its version."""
    uniform = uniforms(seed, size * num_classes, (_PROJECTION_STREAM, y))
    return ndtri(np.maximum(uniform, 2.0**-54)).reshape(size, num_classes)  # ndtri(0) is -inf


def _check_images(images: np.ndarray, count: int) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim < 2 or len(images) != count or images.size == 0:
        raise UserError(f"instance-dependent noise needs one image a label: {count} labels, images {images.shape}")
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise UserError(f"images must be uint8 in 0..255 or floats, got {images.dtype}")
    if not np.isfinite(images).all():
        raise UserError("the images hold values that are not finite numbers")
    return images


def _flattened(images: np.ndarray) -> np.ndarray:
    x = images.reshape(len(images), math.prod(images.shape[1:])).astype(np.float64)
    return x / 127.5 - 1 if images.dtype == np.uint8 else x


def expected_matrix(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns float64 S [K, K], the mean of the distributions p [N, K] over each class of the labels [N].

    A class without examples keeps its labels. Entries are multiples of 1e-6, but for the diagonal, which makes the
    rows sum to 1: the last bits of an exponential depend on the platform, those of a label file must not.
    """
    S = np.eye(p.shape[1])
    for y in np.unique(labels):
        S[y] = np.round(p[labels == y].mean(axis=0), 6)
        S[y, y] = 0
        S[y, y] = max(0.0, 1 - math.fsum(S[y]))
    return S
