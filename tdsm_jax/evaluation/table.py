"""One Markdown table of several runs of one config with different seeds: mean and spread of each metric.

python -m tdsm_jax.evaluation.table runs/seed0 runs/seed1 runs/seed2
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tdsm_jax import files, paths
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation.report_words import EXTRACTORS, JUDGES, METRICS, flat

COLUMNS = {  # metric -> (heading, digits)
    "label_fidelity": ("label fidelity", 3),
    "cas": ("CAS", 3),
    "cw_fd": ("class-wise FD", 2),
    "cw_density": ("class-wise density", 2),
    "cw_coverage": ("class-wise coverage", 2),
}
_MORE = (*(f"{key}_{judge}" for judge in JUDGES for key in ("label_fidelity", "cas")), *(f"{e}_" for e in EXTRACTORS))
HEADINGS = (*(heading for heading, _ in COLUMNS.values()), "recovery of label fidelity")


def markdown(runs: list[dict]) -> str:
    """Returns the table of metrics.json contents: mean +- standard deviation (n - 1) over the runs.

    Only methods that every run has are listed; recovery is computed per run, then averaged.
    """
    methods = [m for m in runs[0]["methods"] if all(m in run["methods"] for run in runs)]
    found = {name: [flat(run["methods"][name]) for run in runs] for name in methods}
    found["real"] = [flat(run["real"]) for run in runs]
    columns = COLUMNS | _more(found[methods[0]] if methods else found["real"])
    lines = []
    for name, rows in found.items():
        recovered = [row.get("recovery", {}).get("label_fidelity") for row in rows]
        lines.append([name, *cells(rows, columns), "" if None in recovered else spread(recovered, 3)])
    return grid(("", *(heading for heading, _ in columns.values()), HEADINGS[-1]), lines)


def _more(rows: Sequence[dict]) -> dict[str, tuple[str, int]]:
    """The columns of larger judges and of feature extractors, where every run has them."""
    fit = [key for key in METRICS if key.startswith(_MORE) and not key.endswith("worst_class")]
    return {
        key: (METRICS[key][0].removesuffix(", %"), 3 if METRICS[key][1] == 100 else 2)
        for key in fit
        if all(key in row for row in rows)
    }


def cells(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, int]] = COLUMNS) -> list[str]:
    """Returns mean and spread over runs of each column, "" where one lacks it; a row holds the metrics of one run."""
    return [
        spread([row[metric] for row in rows], digits) if all(metric in row for row in rows) else ""
        for metric, (_, digits) in columns.items()
    ]


def grid(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table: its headings, and its rows of as many cells each."""
    lines = [[str(cell) for cell in row] for row in (headings, *rows)]
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---" * len(headings) + "|", *body])


def spread(values: list[float], digits: int) -> str:
    """Returns mean and standard deviation (n - 1) as text."""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def main(folders: list[str]) -> None:
    """Prints the table of the workdirs named on the command line."""
    if not folders:
        raise UserError("name the workdirs of finished runs: python -m tdsm_jax.evaluation.table runs/seed0 ...")
    print(markdown([files.read_json(paths.path_of(folder) / "metrics.json") for folder in folders]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
