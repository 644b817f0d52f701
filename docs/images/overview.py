"""Draws overview.png, README's first picture, from a finished run of configs/digits.py.

  python -m tdsm_jax.main --config=configs/digits.py --workdir=runs/digits
  python docs/images/overview.py runs/digits

One row a class: training images by their given label, then samples of each method by the class asked for. Framed are
training images whose label is wrong, and samples in which the run's judge sees another class.
"""

import pathlib
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tdsm_jax.command import new_parser, run_command
from tdsm_jax.judge_stages import look
from tdsm_jax.run import Run

ROOT = pathlib.Path(__file__).parents[2]
COLUMNS, CELL, GAP, TOP, LEFT = 9, 34, 4, 62, 26  # pixels but for the first
FRAME = (230, 97, 0)
PANELS = (
    ("given", "training images, by given label", "40% of the labels are wrong"),
    ("dsm", "DSM: ordinary training", "samples, by the class asked for"),
    ("tdsm", "TDSM: the same wrong labels", "samples, by the class asked for"),
)


def main(arguments):
    sys.path.insert(0, str(ROOT / "configs"))
    import digits  # the config, of which the run in the workdir was made

    run = Run(digits.get_config(), pathlib.Path(arguments.workdir))
    width = LEFT + COLUMNS * (CELL + GAP)
    picture = Image.new("RGB", (len(PANELS) * (width + 24), TOP + 10 * (CELL + GAP) + 26), "white")
    draw = ImageDraw.Draw(picture)
    for number, (name, title, below) in enumerate(PANELS):
        images, labels, wrong = panel(run, name)
        left = number * (width + 24)
        draw.text((left + LEFT, 8), title, "black", ImageFont.load_default(19))
        share = "" if name == "given" else f": {np.mean(~wrong):.0%} right"
        draw.text((left + LEFT, 34), below + share, (90, 90, 90), ImageFont.load_default(15))
        for y in range(run.num_classes):
            top = TOP + y * (CELL + GAP)
            draw.text((left + 6, top + 7), str(y), (90, 90, 90), ImageFont.load_default(16))
            for column, index in enumerate(np.flatnonzero(labels == y)[:COLUMNS]):
                at = (left + LEFT + column * (CELL + GAP), top)
                small = Image.fromarray(images[index, ..., 0]).resize((CELL, CELL), Image.Resampling.NEAREST)
                picture.paste(small.convert("RGB"), at)
                if wrong[index]:
                    box = (at[0] - 2, at[1] - 2, at[0] + CELL + 1, at[1] + CELL + 1)
                    draw.rectangle(box, outline=FRAME, width=3)
    words = "framed: the label is wrong (left); a classifier of clean images sees another class (middle, right)"
    draw.text((LEFT, picture.height - 24), words, FRAME, ImageFont.load_default(15))
    picture.save(pathlib.Path(__file__).with_name("overview.png"), optimize=True)


def panel(run, name):
    """Returns images uint8 [N,8,8,1], the labels [N] of their rows, and which are wrong, bool [N]."""
    if name == "given":
        return run.train_set.images, run.y_tilde, run.y_tilde != run.train_set.labels
    made = run.samples(name)
    seen, _ = look(run, made.images)
    return made.images, made.labels, seen != made.labels


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("workdir", help="the folder of a finished run of configs/digits.py")
    run_command(parser, main)
