"""The benchmark of robust losses as tables and as one page: accuracy against the rate of label noise."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tdsm_jax.evaluation import charts, page
from tdsm_jax.evaluation import report_sections as sections
from tdsm_jax.evaluation.report_words import NOISE
from tdsm_jax.evaluation.svg import escape
from tdsm_jax.evaluation.table import grid, spread

# network -> "kind:rate" -> loss -> measure -> values of the seeds
Results = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]]

MEASURES = {  # measure -> (heading, what it is)
    "last": ("Test accuracy, last step", "after all steps"),
    "best": (
        "Test accuracy, best validation step",
        "of the step whose accuracy on held-out noisy labels was highest; no clean label chose it",
    ),
    "reproduced": (
        "Training labels reproduced, last step",
        "share of the noisy training labels that the network gives back: low is underfitting, above the share of right "
        "labels is memorising wrong ones",
    ),
}
_CHARTED = 5  # losses in a chart beside the first one: more lines could not be told apart


def tables(results: Results) -> Iterator[tuple[str, str, list[str], list[list[str]]]]:
    """Yields (network, measure, noises, rows) with rows [loss, cell, ...]: mean ± sd (n - 1) over seeds, in percent.

    The highest mean accuracy of a column, as printed, is in bold.
    """
    for network, noises in results.items():
        losses = list(next(iter(noises.values())))
        for measure in MEASURES:
            columns = [_column([noises[noise][loss][measure] for loss in losses], measure) for noise in noises]
            yield (
                network,
                measure,
                list(noises),
                [[loss, *cells] for loss, *cells in zip(losses, *columns, strict=True)],
            )


def _column(values: list[Sequence[float]], measure: str) -> list[str]:
    means = [f"{100 * np.mean(v):.1f}" for v in values]
    best = None if measure == "reproduced" else max(means, key=float)
    cells = [spread([100 * value for value in v], 1) for v in values]
    return [f"**{cell}**" if mean == best else cell for cell, mean in zip(cells, means, strict=True)]


def markdown(results: Results) -> str:
    """Returns every table of the results."""
    parts = []
    for network, measure, noises, rows in tables(results):
        title, meaning = MEASURES[measure]
        heading = f"### {network}: {title.lower()}, %\n\n{meaning[0].upper()}{meaning[1:]}."
        parts.append(f"{heading}\n\n{grid(('', *noises), rows)}")
    return "\n\n".join(parts) + "\n"


def render(
    title: str,
    results: Results,
    seconds: Mapping[str, float],
    environment: Mapping[str, Any],
    config: Mapping[str, Any],
) -> str:
    """Returns the whole page."""
    lead = (
        "Classifiers of clean images, trained on wrong labels with losses that differ in how much they believe them. "
        "Tested on true labels."
    )
    parts = {network: _charts(results[network]) + _tables({network: results[network]}) for network in results}
    parts |= {"Time": sections.time(seconds, None), "Setup": sections.setup(environment, config)}
    return page.page(title, page.header(title, lead), parts)


def _charts(noises: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> str:
    """Mean accuracy against rate of one network: a chart for each measure, kind of noise and group of losses."""
    first, *others = next(iter(noises.values()))
    groups = [others[start : start + _CHARTED] for start in range(0, len(others), _CHARTED)] or [[]]
    kinds = dict.fromkeys(noise.partition(":")[0] for noise in noises)
    drawn = []
    for measure in ("last", "best"):
        for kind in kinds:
            points = {noise: float(noise.partition(":")[2]) for noise in noises if noise.startswith(f"{kind}:")}
            of_kind = sorted(points, key=points.get)
            for group in groups:
                series = {
                    loss: (
                        [100 * points[noise] for noise in of_kind],
                        [100 * np.mean(noises[noise][loss][measure]) for noise in of_kind],
                    )
                    for loss in (first, *group)
                }
                chart = charts.line_chart(series, x_label="wrong labels, %", y_label="accuracy, %", y_takes_in=(0, 100))
                drawn.append((f"{MEASURES[measure][0]}: {NOISE[kind]} label noise", chart))
    return sections.figures(drawn)


def _tables(results: Results) -> str:
    drawn = []
    for _, measure, noises, rows in tables(results):
        title, meaning = MEASURES[measure]
        drawn.append(
            f"<h3>{title}, %</h3><p>{meaning[0].upper()}{meaning[1:]}.</p>{page.table(['Loss', *noises], rows, _cell)}"
        )
    return "".join(drawn)


def _cell(text: str) -> str:
    plain = text.strip("*")
    return escape(plain) if plain == text else f"<b>{escape(plain)}</b>"
