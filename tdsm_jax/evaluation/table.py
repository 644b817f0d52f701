"""One Markdown table of several runs of one config with different seeds: mean and spread of each metric.

python -m tdsm_jax.evaluation.table runs/seed0 runs/seed1 runs/seed2
"""

import pathlib
import sys

import numpy as np

from tdsm_jax import files
from tdsm_jax.errors import UserError

COLUMNS = {  # metric -> (heading, digits)
    "label_fidelity": ("label fidelity", 3),
    "cas": ("CAS", 3),
    "cw_fd": ("class-wise FD", 2),
    "cw_density": ("class-wise density", 2),
    "cw_coverage": ("class-wise coverage", 2),
}


def markdown(runs: list[dict]) -> str:
    """Returns the table of metrics.json contents: mean +- standard deviation (n - 1) over the runs.

    Only methods that every run has are listed; recovery is computed per run, then averaged.
    """
    methods = [m for m in runs[0]["methods"] if all(m in run["methods"] for run in runs)]
    lines = ["| | " + " | ".join(heading for heading, _ in COLUMNS.values()) + " | recovery of label fidelity |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for name in [*methods, "real"]:
        rows = [run["real"] if name == "real" else run["methods"][name] for run in runs]
        cells = [spread([row[metric] for row in rows], digits) for metric, (_, digits) in COLUMNS.items()]
        recovered = [row.get("recovery", {}).get("label_fidelity") for row in rows]
        cells.append("" if None in recovered else spread(recovered, 3))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    """Returns mean and standard deviation (n - 1) as text."""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def main(folders: list[str]) -> None:
    """Prints the table of the workdirs named on the command line."""
    if not folders:
        raise UserError("name the workdirs of finished runs: python -m tdsm_jax.evaluation.table runs/seed0 ...")
    print(markdown([files.read_json(pathlib.Path(folder) / "metrics.json") for folder in folders]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
