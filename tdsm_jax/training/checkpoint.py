"""Checkpoints that survive a killed process and notice damaged bytes.

Orbax stores the arrays; on its own it takes an empty step directory for a checkpoint, restores flipped bytes
and casts to another dtype without a word. A manifest beside each step says what must be there:

    directory/00001000/       the pytree, as Orbax writes it
    directory/00001000.json   shape, dtype and SHA-256 of every array, size and SHA-256 of every file; measure, notes

The manifest is written last and removed first, so a step with a manifest was once complete.
"""

import concurrent.futures
import contextlib
import logging as std_logging
import pathlib
import re
from typing import Any

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from tdsm_jax import files, hosts, paths
from tdsm_jax.errors import UserError
from tdsm_jax.training import manifests, parallel
from tdsm_jax.training.manifests import Damaged, manifest_of

_ENTRY = re.compile(r"(\d{8}|[1-9]\d{8,})(\.json|\.orbax-checkpoint-tmp.*)?")


class Checkpoints:
    """The newest `keep` states of one run and the one of the lowest measure, each saved while training goes on.

    One run writes to a directory at a time: opening it removes what a killed run left unfinished. Every
    process of a multi-host run makes the same calls in the same order, on a directory they all see; each
    process holds the whole state (replicated arrays), and the first one writes it.

    Args:
      directory: where the steps live; created if missing.
      keep: how many of the newest complete steps to keep, at least 1.

    Raises:
      UserError: `keep` is below 1.
    """

    def __init__(self, directory: str | pathlib.Path, *, keep: int = 2):
        if keep < 1:
            raise UserError(f"cannot keep {keep} checkpoints; keep at least 1")
        self._root = paths.absolute(directory)
        self._keep = keep
        self._background = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._in_flight: tuple[int, float | None, concurrent.futures.Future] | None = None
        _silence_orbax()
        if hosts.is_writer():
            paths.make_folder(self._root)
            _remove_unfinished(self._root)
        hosts.barrier(f"open {self._root}")
        self._good = {step: _measure(self._root, step) for step in _steps_with_manifest(self._root)}
        self._damaged: set[int] = set()

    def latest_step(self) -> int | None:
        """Returns the newest complete step, None without one; a save in progress counts after `wait`."""
        return max(self._good, default=None)

    def best_step(self) -> int | None:
        """Returns the complete step of the lowest measure, None where none was measured."""
        return _best(self._good)

    def notes(self, step: int) -> dict[str, Any]:
        """Returns the notes that an undamaged step was saved with."""
        return manifests.read(_step_path(self._root, step))["notes"]

    def save(self, step: int, state: Any, *, measure: float | None = None, notes: dict[str, Any] | None = None) -> None:
        """Starts saving `state` as `step` and returns; the state may be donated right after.

        Waits first for the save before, whose failure, if any, is raised here. Saving a complete step again
        does nothing.

        Args:
          step: number of training steps done.
          state: pytree of arrays, replicated or on one device; no typed PRNG keys, nothing of size zero.
          measure: what the best step has the lowest of.
          notes: JSON values to find again with the step.
        """
        self.wait()
        if step in self._good:
            return
        # On CPU device_get gives views: without the copy, what follows could reach what is being written.
        host = jax.tree.map(lambda leaf: np.array(leaf, copy=True), jax.device_get(state))
        if hosts.is_writer():
            paths.remove(manifest_of(_step_path(self._root, step)))
        response = ocp.save_async(_step_path(self._root, step), host, overwrite=True)
        about = {"measure": measure, "notes": notes or {}}
        self._in_flight = step, measure, self._background.submit(self._finish, step, host, response, about)

    def wait(self) -> None:
        """Blocks until the save in progress, if any, is durable; raises what went wrong in it.

        Call it before the process ends: the interpreter does not wait for Orbax's threads.
        """
        if self._in_flight is None:
            return
        (step, measure, finished), self._in_flight = self._in_flight, None
        with paths.reaching(self._root):
            finished.result()
        hosts.barrier(f"checkpoint {step} complete")
        self._good = self._kept(self._good | {step: measure})
        self._damaged.clear()  # the save has pruned them

    def settle(self) -> None:
        """Blocks until this process has done its part of the save in progress, whatever became of it.

        Unlike `wait` it needs no other host: what a process does that ends with an error.
        """
        if self._in_flight is not None:
            concurrent.futures.wait([self._in_flight[2]])

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """Returns the newest undamaged step and its state; None when no step was ever completed.

        A damaged step is named in a warning with the reason, and the one before it is used.

        Args:
          like: pytree of arrays or `jax.ShapeDtypeStruct` with the structure, shapes, dtypes and shardings
            wanted; leaves without a sharding go to the default device. The numbers of devices and hosts may
            differ from the save's.

        Raises:
          UserError: every step is damaged, or a step holds other arrays than `like` (another configuration).
        """
        self.wait()
        for step in sorted(self._good, reverse=True):
            try:
                host = _read(_step_path(self._root, step), like)
            except Damaged as damage:
                logging.warning("checkpoint step %d in %s is damaged, not used: %s", step, self._root, damage)
                del self._good[step]
                self._damaged.add(step)
            else:
                hosts.check_equal(str(step), f"newest checkpoint in {self._root}")
                return step, jax.tree.map(_place_as, host, like)
        if self._damaged:
            raise UserError(
                f"{self._root}: every checkpoint is damaged (steps {sorted(self._damaged)}); "
                "put back a copy, or delete the directory to start again"
            )
        hosts.check_equal("none", f"newest checkpoint in {self._root}")
        return None

    def _finish(self, step: int, host: Any, response: Any, about: dict[str, Any]) -> None:
        response.result()
        if not hosts.is_writer():
            return
        manifests.write(_step_path(self._root, step), host, about)
        kept = self._kept(self._good | {step: about["measure"]})
        for old in _steps_on_disk(self._root) - kept.keys():
            _remove(self._root, old)

    def _kept(self, steps: dict[int, float | None]) -> dict[int, float | None]:
        """Returns those of the complete steps that stay: the newest and the best."""
        stay = {*sorted(steps)[-self._keep :], _best(steps)}
        return {step: measure for step, measure in steps.items() if step in stay}


def _best(measures: dict[int, float | None]) -> int | None:
    """Returns the step of the lowest measure, the newest of equals; None where none has one."""
    measured = [step for step, measure in measures.items() if measure is not None]
    return min(measured, key=lambda step: (measures[step], -step), default=None)


def is_step(directory: paths.Path) -> bool:
    """Says whether a folder is that of a complete step."""
    found = _ENTRY.fullmatch(directory.name)
    return bool(found) and not found[2] and paths.is_file(manifest_of(directory))


def read_field(directory: paths.Path, field: str, like: Any) -> Any:
    """Returns one field of the state that a step's folder holds, as numpy, every byte checked; nothing else is read.

    `like` is a pytree with the structure, shapes and dtypes of that field. Damage, and other arrays, raise `UserError`.
    """
    _silence_orbax()
    try:
        return _read(directory, {field: like}, part=field)[field]
    except Damaged as damage:
        raise UserError(f"{directory} is damaged: {damage}; take another step") from None


def _read(directory: paths.Path, like: Any, part: str = "") -> Any:
    """Returns the arrays of a step as numpy, in the structure of `like`, every byte checked.

    `part` names the one field of the state that `like` has, where it has not all.
    """
    manifest = manifests.read(directory)
    recorded = {
        name: array for name, array in manifest["arrays"].items() if name.startswith(f".{part}" if part else "")
    }
    named = {name.replace(f"['{part}']", f".{part}", 1): leaf for name, leaf in manifests.named_leaves(like).items()}
    manifests.check_shapes(directory, recorded, named)
    # Files come first: Orbax answers a truncated one with a bare Exception, and some damage not at all.
    manifests.check_files(directory, manifest["files"])
    try:
        with _loading(partial=bool(part)):
            host = ocp.load(directory, jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like))
    except ValueError as error:
        # The arrays agree and the files are sound: only containers without arrays are left to differ.
        detail = " ".join(str(error).split())
        raise UserError(f"{directory}: another structure than here; {manifests.ADVICE} ({detail})") from None
    manifests.check_content(recorded, dict(zip(named, jax.tree.leaves(host), strict=True)))
    return host


def _loading(partial: bool) -> ocp.Context:
    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    return context


def _measure(root: pathlib.Path, step: int) -> float | None:
    """Returns the measure of a step, None also where its manifest is damaged, which restoring will tell."""
    try:
        return manifests.read(_step_path(root, step))["measure"]
    except (Damaged, UserError):
        return None


def _place_as(host: np.ndarray, like: Any) -> jax.Array:
    return parallel.place(host, getattr(like, "sharding", None))


def _step_path(root: pathlib.Path, step: int) -> pathlib.Path:
    return root / f"{step:08d}"


def _steps_on_disk(root: pathlib.Path) -> set[int]:
    return {int(match[1]) for path in paths.children(root) if (match := _ENTRY.fullmatch(path.name))}


def _steps_with_manifest(root: pathlib.Path) -> set[int]:
    return {step for step in _steps_on_disk(root) if paths.is_file(manifest_of(_step_path(root, step)))}


def _remove(root: pathlib.Path, step: int) -> None:
    paths.remove(manifest_of(_step_path(root, step)))
    with contextlib.suppress(OSError, UserError):  # it counts no more, and is swept at the next start
        paths.remove(_step_path(root, step))


def _remove_unfinished(root: pathlib.Path) -> None:
    files.sweep_partials(root)
    complete = _steps_with_manifest(root)
    for path in paths.children(root):
        match = _ENTRY.fullmatch(path.name)
        if match and path.is_dir() and (match[2] or int(match[1]) not in complete):
            logging.warning("checkpoint %s was never finished (no manifest); removed", path)
            paths.remove(path)


def _silence_orbax() -> None:
    # Every save writes some forty INFO lines; a logger keeps one copy of a filter, however often it is added.
    logging.get_absl_logger().addFilter(_is_not_orbax_chatter)


def _is_not_orbax_chatter(record: std_logging.LogRecord) -> bool:
    return record.levelno > std_logging.INFO or "/orbax/" not in record.pathname
