"""The cells of corrupted images as Markdown tables and as one page with charts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tdsm_jax.evaluation import charts, page
from tdsm_jax.evaluation import report_sections as sections
from tdsm_jax.evaluation.report_words import IMAGE_NOISE, METHODS, NOISE
from tdsm_jax.evaluation.svg import escape
from tdsm_jax.evaluation.table import grid, spread

COLUMNS = {  # column -> (heading, digits, what it is)
    "fd": ("FD", 2, "Frechet distance of the samples to the clean training images in the judge's features"),
    "label_fidelity": ("label fidelity", 3, "how often the judge sees the class asked for"),
    "cas": ("CAS", 3, "test accuracy of a classifier trained on the samples"),
    "cw_coverage": (
        "class-wise coverage",
        3,
        "share of the clean training images with a sample of their class among their nearest",
    ),
    "taken_for": (
        "off-topic share",
        3,
        "share of the samples whose nearest neighbour, in the judge's features, among the clean training images and as "
        "many corrupted ones that no model has seen, is a corrupted one",
    ),
    "resilience": (
        "R",
        3,
        "resilience factor: class-wise coverage over that of the same residual, method and seed trained on the images "
        "as they were; 1: all of the similarity to clean images survives",
    ),
}
LEAD = (
    "Denoisers trained on images some of which do not belong, by residuals on which these pull more or less; measured "
    "against clean images."
)
# Khrapov et al. 2024 compare models by the similarity of what they generate to clean images; their analysis code
# (github.com/kabachuha/SPHL-for-stable-diffusion, analyzer.ipynb) takes the difference of 1 - LPIPS between the model
# of corrupted and the model of clean images, of the same loss. The quotient, and coverage in place of a
# similarity of pairs, are ours: unpaired samples of small images have no LPIPS, and a share of what was there compares
# over losses.


def resilience(corrupted: Mapping[str, Any], clean: Mapping[str, Any]) -> float | None:
    """Returns R of a model's metrics and those of the one trained on clean images; None where that covers nothing."""
    return corrupted["cw_coverage"] / clean["cw_coverage"] if clean["cw_coverage"] else None


Group = tuple[tuple[str, float], str, str]  # labels, method, kind of corruption
Rows = dict[tuple[float, str], list[dict[str, Any]]]  # (rate, residual) -> columns of each seed, with "seed"


def groups(cells: Sequence[Mapping[str, Any]]) -> dict[Group, Rows]:
    """Returns the columns of every seed, by labels, method and kind, then rate and residual; rate 0 is in all kinds."""
    kinds = list(dict.fromkeys(cell["kind"] for cell in cells if cell["rate"])) or ["off_topic_photos"]
    place = {(*_place(cell), method): values for cell in cells for method, values in cell["methods"].items()}
    found: dict[Group, Rows] = {}
    for (kind, rate, labels, residual, seed, method), values in place.items():
        for shown in (kind,) if rate else kinds:
            clean = place.get(("none", 0.0, labels, residual, seed, method))
            row = values | {"taken_for": values["taken_for"][shown], "seed": seed}
            row["resilience"] = resilience(values, clean) if clean else None
            found.setdefault((labels, method, shown), {}).setdefault((rate, residual), []).append(row)
    return found


def _place(cell: Mapping[str, Any]) -> tuple:
    return cell["kind"], cell["rate"], tuple(cell["labels"]), cell["residual"], cell["seed"]


def tables(cells: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[list[str]]]]:
    """Yields the title and rows of each group: rate, residual, seeds and `COLUMNS`, mean ± sd (n - 1) over seeds."""
    for group, rows in groups(cells).items():
        lines = []
        for (rate, residual), seeds in sorted(rows.items(), key=lambda item: item[0][0]):
            shown = [_cell(seeds, column) for column in COLUMNS]
            lines.append([f"{rate:.0%}", residual, ", ".join(str(row["seed"]) for row in seeds), *shown])
        yield title(group), lines


def _cell(seeds: Sequence[Mapping[str, Any]], column: str) -> str:
    values = [row[column] for row in seeds if row[column] is not None]
    return spread(values, COLUMNS[column][1]) if values else ""


def title(group: Group) -> str:
    """Returns what a group is, in words."""
    (noise, rate), method, kind = group
    labels = f"{NOISE[noise]} label noise {rate:.0%}" if rate else "true labels"
    return f"{kind}, {labels}, {METHODS[method][0]}"


def headings() -> list[str]:
    return ["corrupted", "residual", "seeds", *(heading for heading, *_ in COLUMNS.values())]


def detectors(cells: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns [kind, false alarms, hits] of the detector of each kind, over the seeds: what its shares are worth."""
    lines = []
    for kind in IMAGE_NOISE:
        worth = {cell["seed"]: cell["detectors"][kind] for cell in cells if kind in cell["detectors"]}
        if worth and any(cell["kind"] == kind for cell in cells):
            lines.append([kind, *(spread([w[name] for w in worth.values()], 3) for name in ("false_alarms", "hits"))])
    return lines


DETECTOR = ("corruption", "real test images taken for corrupted", "corrupted test images found")


def markdown(cells: Sequence[Mapping[str, Any]]) -> str:
    """Returns all tables, and what their columns are."""
    parts = [f"### {name}\n\n{grid(headings(), lines)}" for name, lines in tables(cells)]
    parts.append("\n".join(f"- {heading}: {meaning}" for heading, _, meaning in COLUMNS.values()))
    return "\n\n".join([*parts, grid(DETECTOR, detectors(cells))])


def render(cells: Sequence[Mapping[str, Any]]) -> str:
    """Returns the whole page, which needs no other file."""
    parts = {escape(name): _charts(group) + page.table(headings(), lines) for (name, lines), group in _with_rows(cells)}
    words = "".join(f"<li><b>{escape(heading)}</b>: {escape(meaning)}</li>" for heading, _, meaning in COLUMNS.values())
    parts["Columns"] = f"<ul>{words}</ul>{page.table(DETECTOR, detectors(cells))}"
    seeds = sorted({cell["seed"] for cell in cells})
    head = f"Corrupted images, seeds {', '.join(map(str, seeds))}"
    return page.page(head, page.header(head, LEAD), parts)


def _with_rows(cells: Sequence[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, list[list[str]]], Rows]]:
    return zip(tables(cells), groups(cells).values(), strict=True)


def _charts(rows: Rows) -> str:
    """Means over seeds against the rate, a line for each residual."""
    drawn = []
    for column in ("fd", "taken_for", "label_fidelity", "resilience"):
        series: dict[str, tuple[list[float], list[float]]] = {}
        for residual in dict.fromkeys(residual for _, residual in rows):
            at = sorted(rate for rate, other in rows if other == residual)
            values = [[row[column] for row in rows[rate, residual] if row[column] is not None] for rate in at]
            known = [(100 * rate, float(np.mean(v))) for rate, v in zip(at, values, strict=True) if v]
            series[residual] = [x for x, _ in known], [y for _, y in known]
        heading = COLUMNS[column][0]
        drawn.append((heading, charts.line_chart(series, x_label="corrupted images, %", y_label=heading)))
    return sections.figures(drawn)
