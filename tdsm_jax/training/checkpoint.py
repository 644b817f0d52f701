"""Checkpoints that survive a killed process and notice damaged bytes.

Orbax stores the arrays; on its own it takes an empty step directory for a checkpoint, restores flipped bytes
and casts to another dtype without a word. A manifest beside each step says what must be there:

    directory/00001000/       the pytree, as Orbax writes it
    directory/00001000.json   shape, dtype and SHA-256 of every array, size and SHA-256 of every file; measure, notes

The manifest is written last and removed first, so a step with a manifest was once complete.
"""

import concurrent.futures
import contextlib
import hashlib
import logging as std_logging
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from tdsm_jax import files, hosts, paths
from tdsm_jax.errors import UserError

FORMAT = 2
_ADVICE = "use the configuration that wrote it or another directory"
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
        return _read_manifest(self._root, step)["notes"]

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
            paths.remove(_manifest_path(self._root, step))
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
                host = _read(self._root, step, like)
            except _Damaged as damage:
                logging.warning("checkpoint step %d in %s is damaged, not used: %s", step, self._root, damage)
                del self._good[step]
                self._damaged.add(step)
            else:
                hosts.check_equal(str(step), f"newest checkpoint in {self._root}")
                return step, jax.tree.map(_place, host, like)
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
        _write_manifest(self._root, step, host, about)
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


class _Damaged(Exception):
    """What is wrong with a step that was once complete."""


class _Spec(NamedTuple):
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def is_step(directory: paths.Path) -> bool:
    """Says whether a folder is that of a complete step."""
    found = _ENTRY.fullmatch(directory.name)
    return bool(found) and not found[2] and paths.is_file(manifest_of(directory))


def manifest_of(directory: paths.Path) -> paths.Path:
    """Returns the manifest of the step in a folder."""
    return directory.with_name(f"{directory.name}.json")


def verify(directory: paths.Path) -> None:
    """Raises `UserError` unless every file of a complete step is the one that its manifest speaks of."""
    try:
        for name, file in _read_manifest(directory.parent, int(directory.name))["files"].items():
            _require_same_file(directory / name, name, file)
    except _Damaged as damage:
        raise UserError(f"{directory} is damaged: {damage}") from None


def read_field(directory: paths.Path, field: str, like: Any) -> Any:
    """Returns one field of the state that a step's folder holds, as numpy, every byte checked; nothing else is read.

    `like` is a pytree with the structure, shapes and dtypes of that field. Damage, and other arrays, raise `UserError`.
    """
    _silence_orbax()
    try:
        return _read(directory.parent, int(directory.name), {field: like}, part=field)[field]
    except _Damaged as damage:
        raise UserError(f"{directory} is damaged: {damage}; take another step") from None


def _read(root: pathlib.Path, step: int, like: Any, part: str = "") -> Any:
    """Returns the arrays of a step as numpy, in the structure of `like`, every byte checked.

    `part` names the one field of the state that `like` has, where it has not all.
    """
    manifest = _read_manifest(root, step)
    directory = _step_path(root, step)
    named = {name.replace(f"['{part}']", f".{part}", 1): leaf for name, leaf in _named_leaves(like).items()}
    recorded = {n: array for n, array in manifest["arrays"].items() if n.startswith(f".{part}" if part else "")}
    _require_same_arrays(directory, recorded, named)
    # Files come first: Orbax answers a truncated one with a bare Exception, and some damage not at all.
    for name, file in manifest["files"].items():
        _require_same_file(directory / name, name, file)
    try:
        with _loading(partial=bool(part)):
            host = ocp.load(directory, jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like))
    except ValueError as error:
        # The arrays agree and the files are sound: only containers without arrays are left to differ.
        detail = " ".join(str(error).split())
        raise UserError(f"{directory}: another structure than here; {_ADVICE} ({detail})") from None
    for name, array in zip(named, jax.tree.leaves(host), strict=True):
        if _checksum(array) != recorded[name]["sha256"]:
            raise _Damaged(f"wrong checksum of array {name}")
    return host


def _loading(partial: bool) -> ocp.Context:
    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    return context


def _read_manifest(root: pathlib.Path, step: int) -> dict[str, Any]:
    path = _manifest_path(root, step)
    try:
        manifest = files.read_json(path)
    except UserError as error:
        raise _Damaged(str(error)) from None
    seal = manifest.pop("digest", None) if isinstance(manifest, dict) else None
    if seal != files.digest(manifest):
        raise _Damaged(f"{path.name} does not match its own digest")
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{path}: checkpoint format {manifest['format']}, this version reads {FORMAT}; "
            "use the version of tdsm_jax that wrote it"
        )
    return manifest


def _measure(root: pathlib.Path, step: int) -> float | None:
    """Returns the measure of a step, None also where its manifest is damaged, which restoring will tell."""
    try:
        return _read_manifest(root, step)["measure"]
    except (_Damaged, UserError):
        return None


def _write_manifest(root: pathlib.Path, step: int, host: Any, about: dict[str, Any]) -> None:
    directory = _step_path(root, step)
    manifest = {
        "format": FORMAT,
        "step": step,
        **about,
        "arrays": {
            name: {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": _checksum(array)}
            for name, array in _named_leaves(host).items()
        },
        "files": {
            name: {"bytes": paths.size(directory / name), "sha256": files.file_digest(directory / name)}
            for name in paths.walk(directory)
        },
    }
    files.write_json(_manifest_path(root, step), {**manifest, "digest": files.digest(manifest)})


def _require_same_arrays(directory: pathlib.Path, recorded: dict[str, Any], named: dict[str, Any]) -> None:
    saved = {name: _Spec(tuple(array["shape"]), array["dtype"]) for name, array in recorded.items()}
    wanted = {name: _Spec(tuple(leaf.shape), str(leaf.dtype)) for name, leaf in named.items()}
    different = sorted(name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name))
    if different:
        name = different[0]
        raise UserError(
            f"{directory}: {len(different)} arrays differ from this configuration's, first {name}: "
            f"{saved.get(name, 'absent')} in the checkpoint, {wanted.get(name, 'absent')} here; {_ADVICE}"
        )


def _require_same_file(path: pathlib.Path, name: str, recorded: dict[str, Any]) -> None:
    if not paths.is_file(path):
        raise _Damaged(f"missing file {name}")
    if (size := paths.size(path)) != recorded["bytes"]:
        raise _Damaged(f"{name} has {size} bytes instead of {recorded['bytes']}")
    if files.file_digest(path) != recorded["sha256"]:
        raise _Damaged(f"wrong checksum of file {name}")


def _place(host: np.ndarray, like: Any) -> jax.Array:
    sharding = getattr(like, "sharding", None)
    if sharding is None:
        return jnp.asarray(host)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _named_leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _checksum(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).hexdigest()


def _step_path(root: pathlib.Path, step: int) -> pathlib.Path:
    return root / f"{step:08d}"


def _manifest_path(root: pathlib.Path, step: int) -> pathlib.Path:
    return manifest_of(_step_path(root, step))


def _steps_on_disk(root: pathlib.Path) -> set[int]:
    return {int(match[1]) for path in paths.children(root) if (match := _ENTRY.fullmatch(path.name))}


def _steps_with_manifest(root: pathlib.Path) -> set[int]:
    return {step for step in _steps_on_disk(root) if paths.is_file(_manifest_path(root, step))}


def _remove(root: pathlib.Path, step: int) -> None:
    paths.remove(_manifest_path(root, step))
    with contextlib.suppress(
        OSError, UserError
    ):  # without its manifest it counts no more, and is swept at the next start
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
