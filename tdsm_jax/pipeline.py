"""The units of work of a run, in order, and the artifacts that make a finished one be skipped.

Each unit reads some sections of the config and the units it needs; their joint hash names its result. Under
`workdir/units/` a manifest says which hash a unit was begun with and whether it was finished.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from tdsm_jax import __version__, files, hosts, paths
from tdsm_jax import config as configuration
from tdsm_jax.errors import UserError, did_you_mean

STAGES = (
    "images", "labels", "noisy_classifier", "estimate", "classifier", "transition", "posterior",
    "refine", "score", "sample", "judge", "references", "measure", "fit", "report",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Unit:
    """One step of a run: "stage" or "stage/method".

    `reads` are the config keys and sections that change its result, `needs` the units it builds on, `makes`
    the files and folders under the workdir that it writes, `run` the work, `inputs` a hash of each
    file from elsewhere that it depends on, `scratch` what it writes to go on from and needs no more when it is done.
    """

    name: str
    reads: tuple[str, ...]
    needs: tuple[str, ...]
    makes: tuple[str, ...]
    run: Callable[[], None]
    inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scratch: tuple[str, ...] = ()

    @property
    def stage(self) -> str:
        return self.name.partition("/")[0]


@dataclasses.dataclass(frozen=True)
class Planned:
    """A unit with the hash of all that its result depends on, and what there is of it already."""

    unit: Unit
    values: dict[str, Any]  # flat config values read, and hashes of the units needed
    done: bool
    changed: tuple[str, ...]  # lines "key: before -> now" where the artifact is of another config
    damaged: tuple[str, ...]  # files that are not what the unit wrote

    @property
    def hash(self) -> str:
        return files.digest(self.values)


def plan(units: list[Unit], config: Any, workdir: pathlib.Path) -> list[Planned]:
    """Returns the units with what is there already, in order."""
    planned = []
    for unit, values in zip(units, values_of(units, config), strict=True):
        manifest = read_manifest(workdir, unit.name)
        changed = _differences(manifest["values"], values) if manifest else ()
        complete = manifest is not None and manifest["finished"] and all(paths.exists(workdir / m) for m in unit.makes)
        damaged = tuple(
            made
            for made, digest in (manifest["files"].items() if complete else ())
            if files.file_digest(workdir / made) != digest
        )
        planned.append(Planned(unit, values, complete and not changed, changed, damaged))
    return planned


def values_of(units: list[Unit], config: Any) -> list[dict[str, Any]]:
    """Returns what the result of each unit depends on: config values read, hashes of units needed and of files."""
    flat = configuration.flatten(config)
    hashes: dict[str, str] = {}
    found = []
    for unit in units:
        values = {
            key: value for key, value in flat.items() if any(key == r or key.startswith(f"{r}.") for r in unit.reads)
        }
        values |= {f"unit {name}": hashes[name] for name in unit.needs}
        values |= {f"file {path}": digest for path, digest in unit.inputs.items()}
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        hashes[unit.name] = files.digest(values)
        found.append(values)
    return found


def _differences(before: dict, now: dict) -> tuple[str, ...]:
    missing = "(not there)"
    return tuple(
        f"{key}: {before.get(key, missing)} -> {now.get(key, missing)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, missing) != now.get(key, missing)
    )


def select(planned: list[Planned], stages: tuple[str, ...]) -> list[Planned]:
    """Returns the units of the named stages that are not done; all stages when none is named.

    A stage that needs a unit which is neither done nor selected is a `UserError`.
    """
    for stage in stages:
        if stage not in STAGES:
            raise UserError(f"unknown stage {stage!r}{did_you_mean(stage, STAGES)}")
    todo = [p for p in planned if not p.done and (not stages or p.unit.stage in stages)]
    done = {p.unit.name for p in planned if p.done}
    for p in todo:
        for name in p.unit.needs:
            if name not in done:
                raise UserError(f"{p.unit.name} needs {name}, which is not there; add its stage to --stages")
        done.add(p.unit.name)
    return todo


def check_undamaged(planned: list[Planned], workdir: pathlib.Path) -> None:
    """Raises `UserError` where a finished unit's file is not what the unit wrote."""
    for p in planned:
        if p.damaged:
            raise UserError(
                f"{workdir / p.damaged[0]} was changed after {p.unit.name} wrote it; "
                "restore it, or delete it to have it made again"
            )


def check_unchanged(todo: list[Planned], workdir: pathlib.Path) -> None:
    """Raises `UserError` where work of another config, or of another program, stands in the way."""
    for p in todo:
        if not p.changed and read_manifest(workdir, p.unit.name) is None:
            for made in p.unit.makes:
                if paths.exists(workdir / made):
                    raise UserError(
                        f"{workdir / made} is not the work of this program; "
                        "use another --workdir, or --overwrite to replace it"
                    )
        of_other_units = all(line.startswith("unit ") for line in p.changed)
        if p.changed and not (p.unit.stage == "report" and of_other_units):  # a page is made again at no cost
            keys = [line for line in p.changed if not line.startswith("unit ")] or list(p.changed)
            more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
            raise UserError(
                f"{workdir} holds {p.unit.name} of another config ({keys[0]}{more}); "
                "use another --workdir, or --overwrite to make it again"
            )


def tidy(planned: list[Planned], workdir: pathlib.Path) -> None:
    """Removes what a killed process left behind: half-written files, and what finished units went on from."""
    files.sweep_partials(workdir)
    for p in planned if hosts.is_writer() else ():
        for left in p.unit.scratch if p.done else ():
            paths.remove(workdir / left)


def execute(todo: list[Planned], workdir: pathlib.Path) -> None:
    """Runs the units in order. A unit begun earlier with the same hash goes on where it stopped.

    All hosts run every unit; one writes, and none reads before it has. The page of an earlier state goes first: while
    there is one, the run is finished.
    """
    for p in todo if hosts.is_writer() else ():
        if p.unit.stage == "report":
            _forget(p.unit, workdir)
    for number, p in enumerate(todo, start=1):
        hosts.stop_if_asked()
        manifest = read_manifest(workdir, p.unit.name)
        resumed = manifest is not None and manifest["values"] == p.values
        hosts.barrier(f"{p.unit.name} planned")
        if not resumed and hosts.is_writer():
            _forget(p.unit, workdir)
        logging.info("[%d/%d] %s%s", number, len(todo), p.unit.name, ", going on" if resumed else "")
        write_manifest(workdir, p, finished=False, seconds=0.0, resumed=resumed)
        hosts.barrier(f"{p.unit.name} begun")
        start = time.perf_counter()
        p.unit.run()
        write_manifest(workdir, p, finished=True, seconds=time.perf_counter() - start, resumed=resumed)
        for left in p.unit.scratch if hosts.is_writer() else ():
            paths.remove(workdir / left)
        hosts.barrier(f"{p.unit.name} finished")


def _forget(unit: Unit, workdir: pathlib.Path) -> None:
    paths.remove(manifest_path(workdir, unit.name))  # before what it vouches for
    for made in (*unit.makes, *unit.scratch):
        paths.remove(workdir / made)


def manifest_path(workdir: pathlib.Path, name: str) -> pathlib.Path:
    return workdir / "units" / f"{name.replace('/', '-')}.json"


def read_manifest(workdir: pathlib.Path, name: str) -> dict[str, Any] | None:
    """Returns the manifest of a unit, None where it was never begun."""
    path = manifest_path(workdir, name)
    return files.read_json(path) if paths.exists(path) else None


def vouched(workdir: pathlib.Path, *names: str) -> dict[str, dict[str, Any]]:
    """Returns {unit: manifest} of the named units and of all that they were made of.

    {} where one of them is not there, not finished, or not the one that those after it were made of.
    """
    found: dict[str, dict[str, Any]] = {}
    wanted = [(name, "") for name in names]
    while wanted:
        name, expected = wanted.pop()
        manifest = found.get(name) or read_manifest(workdir, name)
        if manifest is None or not manifest["finished"]:
            return {}
        digest = files.digest(manifest["values"])
        if manifest["hash"] != digest or (expected and digest != expected):
            return {}
        if name not in found:
            found[name] = manifest
            needed = ((key.partition(" "), value) for key, value in manifest["values"].items())
            wanted += [(unit, value) for (kind, _, unit), value in needed if kind == "unit"]
    return found


def config_read(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns {dotted key: value} of all that units read of their config; where two read other values a `UserError`."""
    found: dict[str, Any] = {}
    readers: dict[str, str] = {}
    for unit, manifest in manifests.items():
        for key, value in manifest["values"].items():
            if " " in key:  # which names a unit or a file
                continue
            if found.setdefault(key, value) != value:
                raise UserError(
                    f"{readers[key]} and {unit} are of runs with other configs ({key}: {found[key]} and {value}); "
                    "make them again by one command"
                )
            readers.setdefault(key, unit)
    return dict(sorted(found.items()))


def write_manifest(workdir: pathlib.Path, p: Planned, *, finished: bool, seconds: float, resumed: bool) -> None:
    """Says that a unit was begun or finished; `seconds` counts the last, finishing process only."""
    files.write_json(
        manifest_path(workdir, p.unit.name),
        {
            "unit": p.unit.name,
            "hash": p.hash,
            "finished": finished,
            "seconds": round(seconds, 2),
            "resumed": resumed,
            "files": {
                made: files.file_digest(workdir / made)
                for made in p.unit.makes
                if finished and hosts.is_writer() and paths.is_file(workdir / made)
            },
            "versions": versions(),
            "backend": jax.default_backend(),
            "values": p.values,
        },
    )


def seconds(workdir: pathlib.Path) -> dict[str, float]:
    """Returns the seconds of each finished unit, in the order they finished."""
    manifests = (path for path in paths.children(workdir / "units") if path.suffix == ".json")
    found = [files.read_json(path) for path in sorted(manifests, key=paths.modified)]
    return {manifest["unit"]: manifest["seconds"] for manifest in found if manifest["finished"]}


def versions() -> dict[str, str]:
    """Returns the versions that results depend on."""
    import flax
    import numpy
    import optax

    return {m.__name__: m.__version__ for m in (jax, flax, optax, numpy)} | {"tdsm_jax": __version__}


def describe(planned: list[Planned], todo: list[Planned]) -> str:
    """Returns the plan as lines: what is done, what would run, and in which files the result stands."""
    names = {p.unit.name for p in todo}
    width = max([18, *(len(p.unit.name) for p in planned)])
    lines = []
    for p in planned:
        state = "done" if p.done else "run" if p.unit.name in names else "not asked for"
        changed = f"  (config changed: {p.changed[0]})" if p.changed else ""
        lines.append(f"  {p.unit.name:<{width}} {state:<14} {', '.join(p.unit.makes)}{changed}")
    return "\n".join(lines)
