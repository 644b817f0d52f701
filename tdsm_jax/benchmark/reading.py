"""Images a second that batches are made at: from memory, decoded when asked for, and decoded ahead by grain.

  python -m tdsm_jax.benchmark reading
  python -m tdsm_jax.benchmark reading --images=2000 --side=256 --size=64 --batch=256

It writes JPEG pictures of --side x --side pixels into a temporary folder and reads them as data.name=folder does,
cropped and resized to --size. Batches are those of training, of uint8 images; the files are in the system's cache.
"""

import argparse
import itertools
import pathlib
import tempfile
import time
from collections.abc import Iterable

import numpy as np
from PIL import Image

from tdsm_jax.benchmark.timing import processor
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.data import stream
from tdsm_jax.data.batches import batch_indices
from tdsm_jax.data.sources import DataSpec, load

_CLASSES = 2


def write_pictures(folder: pathlib.Path, count: int, side: int) -> None:
    """Writes `count` JPEG files of smooth random pictures, which compress about as photographs do."""
    generator = np.random.default_rng(0)
    for index in range(count):
        name = folder / str(index % _CLASSES) / f"{index}.jpg"
        name.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (side // 8, side // 8, 3), np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(name, quality=90)


def images_a_second(batches: Iterable[np.ndarray], seconds: float, waiting: int = 1) -> float:
    """Returns how many images a second come out of an endless iterable, after the first `waiting` batches.

    They are as many as may have been made before the clock starts, which would count as made in no time.
    """
    batches = iter(batches)
    for _ in range(waiting):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += len(next(batches))
    return count / (time.perf_counter() - start)


def main(arguments: argparse.Namespace) -> None:
    """Prints the rates."""
    stream.check_installed()
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(pathlib.Path(folder), arguments.images, arguments.side)
        spec = {"name": "folder", "path": folder, "image_size": arguments.size}
        memory, streamed = (load(DataSpec(**spec, stream=on))[0].images for on in (False, True))

        def gathers(images: stream.Images, step: int) -> np.ndarray:
            return images[batch_indices(0, step, arguments.batch, len(images))]

        rates = {
            "in memory": images_a_second((gathers(memory, n) for n in itertools.count()), arguments.seconds),
            "when asked for": images_a_second((gathers(streamed, n) for n in itertools.count()), arguments.seconds),
        }
        with stream.ahead(lambda step: gathers(streamed, step), range(10**6)) as made:
            waiting = stream.AHEAD + stream.THREADS  # those that wait, and those that the threads are at
            rates["ahead, by grain"] = images_a_second(made, arguments.seconds, waiting)
    print(f"{arguments.side}x{arguments.side} JPEG to {arguments.size}x{arguments.size}, batches of {arguments.batch}")
    print(f"{stream.THREADS} threads, {processor()}")
    for name, rate in rates.items():
        print(f"{name:<16} {rate:12,.0f} images/s")


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--images", type=int, default=1000, help="how many pictures (%(default)s)")
    parser.add_argument("--side", type=int, default=256, help="their height and width in pixels (%(default)s)")
    parser.add_argument("--size", type=int, default=64, help="what they are resized to (%(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="images a batch (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each is measured (%(default)s)")
    run_command(parser, main)
