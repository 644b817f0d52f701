"""The page and the table of a sweep: curves of each metric, and the same images at every setting."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tdsm_jax.evaluation import charts, grids, page
from tdsm_jax.evaluation import report_sections as sections
from tdsm_jax.evaluation.report_words import METRICS, PLOTTED, is_number, metric_value
from tdsm_jax.evaluation.table import grid

Cells = Sequence[Mapping[str, Any]]  # each: solver, guidance, steps, evaluations, images_per_second, metrics
AXES = {"guidance": "guidance scale w", "steps": "solver steps (log scale)"}
_COLUMNS = 20  # images of a setting


def lines(cells: Cells, axis: str, at: Mapping[str, float]) -> dict[str, Cells]:
    """Returns, by solver, the cells along an axis of `AXES`, in its order: the other one is where `at` says."""
    (other,) = set(AXES) - {axis}
    along = sorted((cell for cell in cells if cell[other] == at[other]), key=lambda cell: cell[axis])
    solvers = dict.fromkeys(cell["solver"] for cell in along)
    found = {solver: [cell for cell in along if cell["solver"] == solver] for solver in solvers}
    return {solver: own for solver, own in found.items() if len(own) > 1}


def exact(guidance: float) -> str:
    """Returns a guidance scale with all its digits, 2.0 as "2"."""
    return repr(float(guidance)).removesuffix(".0")


def markdown(cells: Cells) -> str:
    """Returns the table of all cells, a row each."""
    return grid(*_table_of(cells)) + "\n"


def _table_of(cells: Cells) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """The headings and the rows; a dash where the process that finished a cell drew none of it."""
    measured = [key for key in PLOTTED if any(key in cell["metrics"] for cell in cells)]
    headings = ("solver", "w", "steps", "evaluations", "images/s", *(METRICS[key][0] for key in measured))
    rows = [
        (
            *(cell["solver"], exact(cell["guidance"]), str(cell["steps"]), f"{cell['evaluations']:.0f}"),
            "–" if cell["images_per_second"] is None else f"{cell['images_per_second']:.3g}",
            *(metric_value(key, cell["metrics"].get(key)) for key in measured),
        )
        for cell in cells
    ]
    return headings, rows


def render(
    title: str,
    cells: Cells,
    at: Mapping[str, float],
    images: Sequence[np.ndarray],
    real: Mapping[str, float],
    about: Mapping[str, Any],
) -> str:
    """Returns the whole page.

    `images`: of each cell the first ones, uint8 [n,H,W,C], the same seeds and classes in all. `real`: what the real
    test images score. `at`: the guidance of the curves against steps, and the steps of those against guidance.
    """
    lead = (
        "One model, sampled from the same seeds at every setting. A curve moves one setting and leaves the others: "
        f"w = {at['guidance']:g}, {at['steps']:g} steps."
    )
    parts = {f"Against {axis}": _curves(cells, axis, at, real) for axis in AXES}
    parts |= {
        "Images": _images(cells, at, images),
        "Numbers": page.table(*_table_of(cells)),
        "Setup": sections.setup({}, about),
    }
    return page.page(title, page.header(title, lead), {name: body for name, body in parts.items() if body})


def _curves(cells: Cells, axis: str, at: Mapping[str, float], real: Mapping[str, float]) -> str:
    drawn, along = [], lines(cells, axis, at)
    for key in PLOTTED:
        name, factor, _, meaning = METRICS[key]
        series = {
            solver: ([cell[axis] for cell in own], [factor * cell["metrics"][key] for cell in own])
            for solver, own in along.items()
            if all(key in cell["metrics"] for cell in own)
        }
        if series:
            floor = {"real test images": factor * real[key]} if is_number(real.get(key)) else {}
            chart = charts.line_chart(series, x_label=AXES[axis], y_label=name, log_x=axis == "steps", references=floor)
            drawn.append((f"{name.removesuffix(', %')}: {meaning}", chart))
    return sections.figures(drawn) if drawn else ""


def _images(cells: Cells, at: Mapping[str, float], images: Sequence[np.ndarray]) -> str:
    """A grid for each solver and axis: a row is a setting, a column a seed and its class."""
    of_cell = {
        (cell["solver"], cell["guidance"], cell["steps"]): made for cell, made in zip(cells, images, strict=True)
    }
    drawn = []
    for axis in AXES:
        for solver, own in lines(cells, axis, at).items():
            rows = np.stack([of_cell[cell["solver"], cell["guidance"], cell["steps"]][:_COLUMNS] for cell in own])
            shown, names = grids.Grid(solver, AXES[axis].partition(" (")[0], rows), [exact(cell[axis]) for cell in own]
            drawn.append(grids.figure(shown, names, "a setting a row", 32))
    words = "<p>A row is a setting, a column one seed and class: look down a column.</p>"
    return f'{words}<div class="grids">{"".join(drawn)}</div>' if drawn else ""
