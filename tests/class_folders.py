"""Class folders of small pictures, for tests of one's own images."""

import numpy as np
from PIL import Image


def picture(seed, size=(20, 16), mode="RGB"):
    """A picture of random pixels, `size` as (width, height)."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def class_folders(root, classes=("ant", "bee"), count=6, size=(20, 16)):
    """Writes `count` pictures a class, as PNG; returns the path as text."""
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(100 * k + i, size).save(root / name / f"{i}.png")
    return str(root)
