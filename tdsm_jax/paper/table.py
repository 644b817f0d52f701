"""What is finished of the paper's cells, as one Markdown table beside the published values.

A run counts for what the manifests of its units say it did, from the report's back to the labels': their config is
held against the cell's recipe.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tdsm_jax import config as configuration
from tdsm_jax import files, paths, pipeline
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation.report_words import flat
from tdsm_jax.evaluation.table import grid, spread
from tdsm_jax.paper.cells import CELLS, FOLLOW_UPS, METHODS, METRICS, PUBLISHED, Cell, Published, sources

_MADE_UP = "synthetic"  # the source of a smoke run's images
# What differs between runs of one recipe: the seed, where the data lie, how many samples are made or shown at a time.
_FREE = re.compile(
    r"seed|data\.(path|test_path|labels_path|stream|on_corrupt|split_seed)|label_noise\.(path|column|order_path)"
    r"|sampling\.(batch_size|grid_rows|grid_columns)"
)
_FILES = (  # keys that name the files which every run reads
    "data.path", "data.test_path", "data.labels_path", "label_noise.path", "label_noise.order_path", "transition.path"
)  # fmt: skip
_CLOTHING = (
    "clothing1m-*: FID and the other distances are to the clean training and validation images, whose labels are true, "
    "not to the million."
)
_MOST_OFF = 0.02  # how far the rate of labels from a file may be from the cell's: a draw of 10000 labels is within it
_MOST_OFF_ENTRY = 0.1  # the same of one entry of their matrix: 500 images of a class are within it


class Finished(NamedTuple):
    """A finished run of a cell: its seed and config hash, what it did otherwise than the recipe, what was measured."""

    cell: Cell
    seed: int
    config_hash: str
    made_up: bool
    differs: tuple[str, ...]  # lines "key: recipe -> run"
    metrics: Mapping[str, Any]  # of the cell's method, flat
    workdir: str
    real: Mapping[str, Any]  # the same of the real test images
    counts: Mapping[str, int]  # of metrics.json


def collect(folder: str, smoke: bool) -> str:
    """Returns the table of all cells with what is finished under `folder`; runs on made-up images only on request."""
    if not paths.exists(paths.path_of(folder)):
        raise UserError(f"--collect={folder}: no such folder")
    found = [finished(cell, run) for cell, run in runs(paths.path_of(folder))]
    shown = [one for one in found if one is not None and (smoke or not one.made_up)]
    _check_seeds(shown)
    hidden = sum(one is not None and one.made_up for one in found) if not smoke else 0
    return markdown(shown, hidden)


def _check_seeds(found: Sequence[Finished]) -> None:
    """Raises `UserError` where two runs of a cell have one seed: their spread would be none of seeds."""
    seen: dict[Any, str] = {}
    for one in found:
        other = seen.setdefault((one.cell, one.made_up, one.differs, one.seed), one.workdir)
        if other != one.workdir:
            raise UserError(f"{other} and {one.workdir} are both {one.cell.name} of seed {one.seed}; move one away")


def runs(folder: paths.Path) -> Iterator[tuple[Cell, paths.Path]]:
    """Yields the workdirs under a folder with their cells: CELL, CELL-seed1, CELL/seed1."""
    for path in paths.children(folder):
        cell = CELLS.get(re.sub(r"-seed\d+$", "", path.name))
        if cell is not None:
            yield cell, path
            yield from ((cell, child) for child in paths.children(path) if re.fullmatch(r"seed\d+", child.name))


def finished(cell: Cell, workdir: paths.Path) -> Finished | None:
    """Returns what a workdir holds of a cell, None where the run is not finished or trained another method."""
    manifests, page = pipeline.vouched(workdir, "report"), workdir / "metrics.json"
    if not manifests or not paths.exists(page):
        return None
    if files.file_digest(page) != manifests["report"]["files"].get("metrics.json"):
        return None
    metrics, recorded = files.read_json(page), recorded_config(manifests)
    if cell.trained not in metrics["methods"]:
        return None
    made_up = recorded["data.name"] == _MADE_UP
    values = flat(metrics["methods"][cell.trained])
    differs = (*differences(cell, recorded), *other_labels(recorded, workdir))
    return Finished(
        cell,
        recorded["seed"],
        metrics["config_hash"],
        made_up,
        differs,
        values,
        str(workdir),
        flat(metrics["real"]),
        metrics["counts"],
    )


def recorded_config(manifests: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {dotted key: value} of all that the units of a run read."""
    config = pipeline.config_read(manifests)
    given: set[str] = set()
    for name, manifest in manifests.items():
        values = manifest["values"]
        if name.startswith(("score/", "classifier")):
            given |= {key.removeprefix("file ") for key in values if key.startswith("file ")}
    # A file that training read beside data and labels is a model or samples that it started from.
    return config | {f"file {path}": "started from" for path in given if not _is_data(path, config)}


def _is_data(path: str, config: Mapping[str, Any]) -> bool:
    """Whether a file that a unit read is one of the data or labels that the config names."""
    if path in {config.get(key) for key in _FILES}:
        return True
    folder = config.get("data.path", "")
    if config.get("data.name") == "clothing1m":  # whose lists and labels lie in it
        return paths.path_of(folder) in paths.path_of(path).parents
    return not folder and path == config.get("data.name")  # prepared, where TensorFlow Datasets has it by default


def differences(cell: Cell, recorded: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what a recorded config does otherwise than the cell's recipe."""
    recipe = recipe_of(cell)
    archive = recorded["data.name"] == "archive" and recipe["data.name"] != "clothing1m"
    found = [
        f"{key}: {recipe.get(key, 'not there')} -> {value}"
        for key, value in sorted(recorded.items())
        if not _FREE.fullmatch(key) and recipe.get(key) != value and not (archive and key == "data.name")
    ]
    if archive and not recorded["data.test_path"]:  # then some of the training images are held back
        found.append("data.test_path: given -> ''")
    return tuple(found)


def other_labels(recorded: Mapping[str, Any], workdir: paths.Path) -> tuple[str, ...]:
    """Returns how labels from a file differ from those that the cell's label noise would give."""
    path = recorded["label_noise.path"]
    if not path:
        return ()
    if not paths.exists(workdir / "labels.json"):
        return (f"label_noise.path: {path}, of which there is no labels.json",)
    drawn = files.read_json(workdir / "labels.json")
    if None in drawn["realised_matrix"]:
        return (f"label_noise.path: {path}, which lacks a class",)
    S, realised = (np.array(drawn[name]) for name in ("S", "realised_matrix"))
    if recorded["label_noise.kind"] == "clean":  # S is only what such labels are taken for
        S = np.eye(len(S))
    rate, of_file = (1 - np.diag(matrix).mean() for matrix in (S, realised))
    if abs(rate - of_file) > _MOST_OFF:
        return (f"label_noise.path: {rate:.0%} wrong -> {of_file:.0%} wrong",)
    if np.abs(S - realised).max() > _MOST_OFF_ENTRY:
        return (f"label_noise.path: the matrix of {recorded['label_noise.kind']} -> another",)
    return ()


@functools.cache
def recipe_of(cell: Cell) -> dict[str, Any]:
    """Returns {dotted key: JSON value} of a cell's recipe."""
    config = configuration.load(f"paper:cell={cell.name}")
    return configuration.flatten(configuration.resolved(config))


def markdown(found: Sequence[Finished], hidden: int = 0) -> str:
    """Returns the table: a row a cell, more where its runs are not one recipe's; mean and spread over seeds.

    What differs from the recipes is listed below, as are the sources; `hidden` runs on made-up images are counted.
    """
    rows: list[Sequence[str]] = []
    notes: list[str] = []
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
        if last:
            rows += real_rows(
                setting, [one for one in found if one.cell.name.startswith(f"{setting}-") or one.cell == cell]
            )
        if last and setting in FOLLOW_UPS:
            values = FOLLOW_UPS[setting]
            names = ", ".join(sorted({one.source.upper() for one in values.values()}))
            rows.append([f"({setting})", f"{names}, not built here", "", "", *numbers([], values)])
    headings = ["cell", "method", "seed: config", "mark"]
    for name, metric in METRICS.items():
        headings += [metric.heading, "published"] if _is_published(name) else [metric.heading]
    notes += [_CLOTHING] if any(one.cell.config == "clothing1m.py" for one in found) else []
    said = [f"Left out: {hidden} on made-up images (--smoke shows them)."] if hidden else []
    return "\n\n".join(
        [grid(headings, rows), *said, *(["\n".join(notes)] if notes else []), f"Published:\n{sources()}"]
    )


def real_rows(setting: str, of_setting: Sequence[Finished]) -> list[list[str]]:
    """Returns what the real test images of a setting score in the place of samples: the floor of its distances.

    Of the runs that are the recipe, and of those on made-up images; runs of one seed have the same.
    """
    rows = []
    for made_up in (False, True):
        chosen = [one for one in of_setting if one.made_up == made_up and (made_up or not one.differs)]
        if chosen:
            by_seed = {one.seed: one._replace(metrics=one.real) for one in chosen}
            counts = chosen[0].counts
            words = f"real test images: {counts['test']}, where cells have {counts['samples']} samples"
            mark = "smoke: made-up images" if made_up else ""
            rows.append([f"({setting})", words, "", mark, *numbers(list(by_seed.values()), {})])
    return rows


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
