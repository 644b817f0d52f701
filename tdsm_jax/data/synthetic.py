"""Made-up images: noisy gratings, each class with an angle, a frequency and a colour of its own."""

import math

import numpy as np

# Other random draws may use the same seed; a stream of its own keeps these independent of them.
_STREAM = 3


def gratings(num_images: int, num_classes: int, size: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 [N, H, W, C] and labels int32 [N], the classes in turn; the same on every platform."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(0, spawn_key=(_STREAM,))))
    labels = np.arange(num_images, dtype=np.int32) % num_classes
    images = [_grating(y, num_classes, size, channels, generator) for y in labels.tolist()]
    return np.stack(images), labels


def _grating(y: int, num_classes: int, size: int, channels: int, generator: np.random.Generator) -> np.ndarray:
    """An image uint8 [H, W, C] of class y, at a random phase: arithmetic that every platform rounds alike."""
    angles = math.isqrt(num_classes - 1) + 1
    frequencies = -(-num_classes // angles)
    angle = math.pi * (y % angles) / angles
    cycles = 1 + (size / 4 - 1) * (y // angles) / frequencies  # an image; up to half the Nyquist frequency
    rows, columns = np.mgrid[:size, :size] / size
    position = cycles * (rows * math.sin(angle) + columns * math.cos(angle)) + generator.random()
    wave = np.abs(position % 1 - 0.5) * 4 - 1  # a triangle wave in [-1, 1]
    turns = [y / num_classes + c / channels for c in range(channels)]
    colour = np.array([math.cos(2 * math.pi * turn) for turn in turns])
    noise = generator.random((size, size, channels)) - 0.5
    return np.rint(127.5 + 50 * wave[..., None] + 50 * colour + 40 * noise).astype(np.uint8)
