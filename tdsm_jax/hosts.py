"""The hosts of a run: how they find one another, which of them writes, when all of them stop.

Every host runs the same command. Before JAX's own start, which ends in a stack trace where a host is missing, they
call the roll. Until `start` is called there is one host, which needs none of this.
"""

import os
import pathlib
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tdsm_jax.errors import Stopped, UserError
from tdsm_jax.roll_call import SAME_COMMAND, Place, RollCall

METADATA = (  # answers when the announcement changes, or after a minute
    "http://metadata.google.internal/computeMetadata/v1/instance/maintenance-event?wait_for_change=true&timeout_sec=60"
)
_EXPLANATION_SECONDS = 40  # within which a host that fell silent is noticed

_place = Place()
_stop_asked = threading.Event()
_polls = 0
_roll: RollCall | None = None


def count() -> int:
    """Returns the number of hosts, or rather of processes."""
    return _place.count


def is_writer() -> bool:
    """Returns whether this process writes the files of the run: one does, all read."""
    return _place.index == 0


def given_place(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Place | None:
    """Returns who this host is, as the command line says; None where it says nothing, half of it is a `UserError`."""
    given = coordinator, num_processes, process_id
    if given == (None, None, None):
        return None
    if None in given:
        raise UserError("give --coordinator=HOST:PORT, --num_processes=N and --process_id=I together, or none of them")
    return Place(*given)


def start(distributed: str, given: Place | None, timeout: float) -> None:
    """Finds the other hosts and starts JAX on all of them; call it before any JAX computation.

    `distributed` is "on", "off", or "auto": on where `given` says who this is, under Slurm with several tasks and
    on a TPU slice of several hosts (GKE). Where nothing is given, JAX finds out from the machine (Cloud TPU, GKE,
    Slurm, Open MPI). A host that is missing after `timeout` seconds, or no way to find out: `UserError`.
    """
    global _place, _roll
    if distributed == "off" or (distributed == "auto" and given is None and not _several_expected()):
        return
    place = given or _detected(timeout)
    if not 0 <= place.index < place.count:
        raise UserError(f"--process_id={place.index} must be at least 0 and below --num_processes={place.count}")
    if place.count == 1:
        return
    _roll = RollCall(place, timeout)
    _roll.watch()
    host, port = place.address
    # All are there: whatever takes longer than this is a fault of the network.
    jax.distributed.initialize(f"{host}:{port}", place.count, place.index, initialization_timeout=int(timeout) + 60)
    _place = place


def check_alone() -> None:
    """Raises `UserError` where JAX found other hosts that this program was not told of, as on a Cloud TPU pod."""
    if jax.process_count() != count():
        raise UserError(
            f"JAX sees {jax.process_count()} hosts: start the command with --distributed=on on each of them"
        )


def finish() -> None:
    """Tells the other hosts that this one has done its part, and is not lost when it ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # ending anyway: Python's own end would let it kill
    if _roll is not None:
        _roll.finish()


def leave(code: int, at_once: bool = False) -> None:
    """Ends this process with an exit code, having said why; the others, which may wait for it, notice at once.

    `at_once` waits for nothing that is under way, a compilation among it: the interpreter's ordinary end would take
    from under it what it works on.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if _roll is not None:
        _roll.fail(code)
    if at_once or _roll is not None:  # an ordinary exit waits for all hosts
        os._exit(code)
    sys.exit(code)


def await_explanation(error: Exception) -> None:
    """Waits until the loss of a host, which makes computations fail here, is noticed: then this process ends."""
    if _roll is not None and isinstance(error, jax.errors.JaxRuntimeError):
        time.sleep(_EXPLANATION_SECONDS)


def barrier(name: str) -> None:
    """Waits until every host is here."""
    if count() > 1:
        multihost_utils.sync_global_devices(name)


def check_equal(value: str, what: str) -> None:
    """Raises `UserError` on every host unless all hosts bring the same text."""
    if count() == 1:
        return
    own = np.frombuffer(value.encode().ljust(64)[:64], np.uint8)
    everyone = multihost_utils.process_allgather(own)
    different = [i for i in range(len(everyone)) if (everyone[i] != everyone[0]).any()]
    if different:
        raise UserError(f"process {different[0]} has another {what} than process 0; {SAME_COMMAND}")


def listen_for_stop() -> None:
    """Makes SIGTERM ask for a stop, which `stop_asked` then tells; among several hosts JAX listens already."""
    if count() == 1:
        signal.signal(signal.SIGTERM, lambda *_: _stop_asked.set())


def listen_for_maintenance(machine: str = "/sys/class/dmi/id/product_name", metadata: str = METADATA) -> None:
    """Sends this process a SIGTERM once Google Cloud announces that its machine will go; elsewhere does nothing."""
    path = pathlib.Path(machine)
    if not path.is_file() or "Google" not in path.read_text():
        return

    def listen() -> None:
        while True:
            request = urllib.request.Request(metadata, headers={"Metadata-Flavor": "Google"})
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    announced = answer.read().decode().strip()
            except OSError:
                announced = ""
            if announced.startswith("TERMINATE"):  # a machine that migrates goes on
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(1)

    threading.Thread(target=listen, daemon=True).start()


def stop_asked() -> bool:
    """Returns whether the run is to stop now: the same on all hosts, which must ask equally often.

    A SIGTERM to one of several hosts stops all of them at the first moment that none has passed yet.
    """
    global _polls
    if count() == 1:
        return _stop_asked.is_set()
    _polls += 1
    return multihost_utils.reached_preemption_sync_point(_polls)


def stop_if_asked() -> None:
    """Raises `Stopped` if the run is to stop now; a call of it is worth what there is to lose until the next one."""
    if stop_asked():
        raise Stopped


def _several_expected() -> bool:
    """Returns whether the environment speaks of several hosts: Slurm's, or that of a TPU slice on GKE."""
    tasks = os.environ.get("SLURM_NTASKS", "1")
    in_step = "SLURM_PROCID" in os.environ and tasks.isdigit() and int(tasks) > 1
    return in_step or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def _detected(timeout: float) -> Place:
    """Returns what JAX finds out of the machine; private there, since its own start is all that reads it."""
    from jax._src.clusters import ClusterEnv

    detect: Callable[..., Any] = ClusterEnv.auto_detect_unset_distributed_params
    try:
        coordinator, number, own, _ = detect(None, None, None, None, None, int(timeout))
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        raise UserError(f"--distributed: the machine does not say who the other hosts are ({error})") from None
    if None in (coordinator, number, own):
        raise UserError(
            "--distributed=on: the machine does not say who the other hosts are; "
            "give --coordinator=HOST:PORT --num_processes=N --process_id=I"
        )
    return Place(coordinator, number, own)
