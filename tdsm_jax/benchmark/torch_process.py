"""The process of PyTorch, seen from ours: `torch_baseline` started, asked and ended."""

import json
import os
import pathlib
import subprocess
from typing import Any, NamedTuple

import numpy as np

from tdsm_jax import files
from tdsm_jax.errors import UserError


def check_python(python: str, device: str) -> None:
    """Raises `UserError` unless this Python has PyTorch, and that has the device."""
    test = f"import numpy, torch; raise SystemExit(not ({device == 'cpu'} or torch.cuda.is_available()))"
    try:
        done = subprocess.run([python, "-c", test], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"--torch_python={python} does not run ({error.strerror}); name a Python") from None
    if "ModuleNotFoundError" in done.stderr:
        raise UserError(f"{python} has no PyTorch: pip install 'tdsm_jax[torch]', or name another by --torch_python")
    if done.returncode:
        raise UserError(f"PyTorch of {python} cannot use --device={device}; install a build that can")


class TorchProcess:
    """The process of PyTorch, which answers one request at a time and sleeps in between; a context manager."""

    def __init__(self, python: str, folder: pathlib.Path, threads: int):
        root = str(pathlib.Path(__file__).parents[2])
        found = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        # Without caches, so that the seconds of compilation mean the same in every run.
        changes = {"PYTHONPATH": found, "OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
        self._folder = folder
        self._process = subprocess.Popen(
            [python, "-m", "tdsm_jax.benchmark.torch_baseline", str(folder)],
            env=os.environ | changes,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "TorchProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, kind: str, **request: Any) -> Any:
        """Returns the answer to a request; a process that has ended raises `UserError`."""
        try:
            self._process.stdin.write(json.dumps({"kind": kind} | request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended before; no answer will come
        answer = self._process.stdout.readline()
        if not answer:
            raise UserError(f"PyTorch's process ended with code {self._process.wait()}; its error stands above")
        return json.loads(answer)

    def outputs(self) -> dict[str, np.ndarray]:
        """Returns the outputs that must equal ours."""
        self.ask("outputs")
        return files.read_arrays(self._folder / "torch_outputs.npz")


class Variant(NamedTuple):
    """PyTorch `eager` or with `compile`: units of a task, timed in its process."""

    process: TorchProcess
    name: str

    def warm(self, task: str) -> float:
        """Returns the seconds of the first unit, compilation included."""
        return self.process.ask("warm", task=task, variant=self.name)

    def time(self, task: str, units: int) -> list[float]:
        """Returns the seconds of some units of a task."""
        return self.process.ask("time", task=task, variant=self.name, units=units)
