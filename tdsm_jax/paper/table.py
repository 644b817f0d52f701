"""What is finished of the paper's cells, as one Markdown table beside the published values.

A run counts for what the manifests of its units say it did: their config is held against the cell's recipe.
"""

import functools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tdsm_jax import config as configuration
from tdsm_jax import files, paths
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation.report_words import flat
from tdsm_jax.evaluation.table import grid, spread
from tdsm_jax.paper.cells import CELLS, FOLLOW_UPS, METHODS, METRICS, PUBLISHED, Cell, Published, sources

RECIPES = pathlib.Path(__file__).parents[2] / "configs" / "paper.py"
_MADE_UP = "synthetic"  # the source of a smoke run's images
# What differs between runs of one recipe: the seed, where the data lie, how many samples are made or shown at a time.
_FREE = re.compile(r"seed|data\..*|label_noise\.(path|column|order_path)|sampling\.(batch_size|grid_rows|grid_columns)")
_FILES = ("data.", "label_noise.", "transition.path")  # keys that name what every run reads


class Finished(NamedTuple):
    """A finished run of a cell: its seed and config hash, what it did otherwise than the recipe, what was measured."""

    cell: Cell
    seed: int
    config_hash: str
    made_up: bool
    differs: tuple[str, ...]  # lines "key: recipe -> run"
    metrics: Mapping[str, Any]  # of the cell's method, flat


def collect(folder: str, smoke: bool) -> str:
    """Returns the table of all cells with what is finished under `folder`; runs on made-up images only on request."""
    if not paths.exists(paths.path_of(folder)):
        raise UserError(f"--collect={folder}: no such folder")
    found = [finished(cell, run) for cell, run in runs(paths.path_of(folder))]
    shown = [one for one in found if one is not None and (smoke or not one.made_up)]
    hidden = sum(one is not None and one.made_up for one in found) if not smoke else 0
    return markdown(shown, hidden)


def runs(folder: paths.Path) -> Iterator[tuple[Cell, paths.Path]]:
    """Yields the workdirs under a folder with their cells: CELL, CELL-seed1, CELL/seed1."""
    for path in paths.children(folder):
        cell = CELLS.get(re.sub(r"-seed\d+$", "", path.name))
        if cell is not None:
            yield cell, path
            yield from ((cell, child) for child in paths.children(path) if re.fullmatch(r"seed\d+", child.name))


def finished(cell: Cell, workdir: paths.Path) -> Finished | None:
    """Returns what a workdir holds of a cell, None where the run is not finished or trained another method."""
    page = workdir / "units" / "report.json"
    if not (paths.exists(page) and files.read_json(page)["finished"] and paths.exists(workdir / "metrics.json")):
        return None
    metrics, recorded = files.read_json(workdir / "metrics.json"), recorded_config(workdir)
    if cell.trained not in metrics["methods"]:
        return None
    made_up = recorded["data.name"] == _MADE_UP
    values = flat(metrics["methods"][cell.trained])
    return Finished(cell, recorded["seed"], metrics["config_hash"], made_up, differences(cell, recorded), values)


def recorded_config(workdir: paths.Path) -> dict[str, Any]:
    """Returns {dotted key: value} of all that the finished units of a run read."""
    manifests = [files.read_json(path) for path in paths.children(workdir / "units") if path.suffix == ".json"]
    config, given = {}, set()
    for manifest in manifests:
        values = manifest["values"]
        config |= {key: value for key, value in values.items() if " " not in key}
        if manifest["unit"].startswith(("score/", "classifier")):
            given |= {key.removeprefix("file ") for key in values if key.startswith("file ")}
    # A file that training read beside data and labels is a model or samples that it started from.
    known = tuple(value for key, value in config.items() if value and key.startswith(_FILES) and type(value) is str)
    return config | {f"file {path}": "started from" for path in given if not path.startswith(known)}


def differences(cell: Cell, recorded: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what a recorded config does otherwise than the cell's recipe."""
    recipe = recipe_of(cell)
    return tuple(
        f"{key}: {recipe.get(key, 'not there')} -> {value}"
        for key, value in sorted(recorded.items())
        if not _FREE.fullmatch(key) and recipe.get(key) != value
    )


@functools.cache
def recipe_of(cell: Cell) -> dict[str, Any]:
    """Returns {dotted key: JSON value} of a cell's recipe."""
    config = configuration.load_module(RECIPES).get_config(f"cell={cell.name}")
    return configuration.flatten(configuration.resolved(config))


def markdown(found: Sequence[Finished], hidden: int = 0) -> str:
    """Returns the table: a row a cell, more where its runs are not one recipe's; mean and spread over seeds.

    What differs from the recipes is listed below, as are the sources; `hidden` runs on made-up images are counted.
    """
    rows, notes = [], []
    for cell in CELLS.values():
        groups = sorted({(one.made_up, one.differs) for one in found if one.cell == cell})
        for made_up, differs in groups or [(False, ())]:
            of_group = [one for one in found if (one.cell, one.made_up, one.differs) == (cell, made_up, differs)]
            mark = "smoke: made-up images" if made_up else ""
            if differs and not made_up:
                notes.append(f"[{len(notes) + 1}] {cell.name}: {'; '.join(differs)}")
                mark = f"not the recipe [{len(notes)}]"
            rows.append(row(cell, of_group, mark))
        setting = cell.name.removesuffix(f"-{cell.method}") if cell.method != "clean" else cell.name
        last = cell.method in ("clean", "floor")
        if last and setting in FOLLOW_UPS:
            values = FOLLOW_UPS[setting]
            names = ", ".join(sorted({one.source.upper() for one in values.values()}))
            rows.append([f"({setting})", f"{names}, not built here", "", "", *numbers([], values)])
    headings = ["cell", "method", "seed: config", "mark"]
    for name, metric in METRICS.items():
        headings += [metric.heading, "published"] if _is_published(name) else [metric.heading]
    said = [f"Left out: {hidden} on made-up images (--smoke shows them)."] if hidden else []
    return "\n\n".join(
        [grid(headings, rows), *said, *(["\n".join(notes)] if notes else []), f"Published:\n{sources()}"]
    )


def row(cell: Cell, of_group: Sequence[Finished], mark: str) -> list[str]:
    """Returns the row of the runs of one config."""
    ordered = sorted(of_group, key=lambda one: one.seed)
    seeds = ", ".join(f"{one.seed}: {one.config_hash[:8]}" for one in ordered)
    return [cell.name, METHODS[cell.method].words, seeds, mark, *numbers(ordered, PUBLISHED.get(cell.name, {}))]


def numbers(of_group: Sequence[Finished], published: Mapping[str, Published]) -> list[str]:
    """Returns the cells of all metrics, "" where one was not measured in every run or is not published."""
    texts = []
    for name, metric in METRICS.items():
        values = [one.metrics[metric.key] for one in of_group if metric.key in one.metrics]
        whole = values and len(values) == len(of_group)
        texts.append(spread([metric.factor * value for value in values], metric.digits) if whole else "")
        if _is_published(name):
            texts.append(f"{published[name].value} ({published[name].source})" if name in published else "")
    return texts


def _is_published(name: str) -> bool:
    return any(name in values for values in (*PUBLISHED.values(), *FOLLOW_UPS.values()))
