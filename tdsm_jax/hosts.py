"""The hosts of a run: how they find one another, which of them writes, when all of them stop.

Every host runs the same command. Before JAX's own start, which ends in a stack trace where a host is missing, they
call the roll over a connection to process 0; it stays open, so that all hear at once when one of them dies. Until
`start` is called there is one host, which needs none of this.
"""

import dataclasses
import os
import pathlib
import signal
import socket
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

LOST = 3  # exit code of a host whose peer is gone
SAME_COMMAND = "start the same command on every host"
METADATA = (  # answers when the announcement changes, or after a minute
    "http://metadata.google.internal/computeMetadata/v1/instance/maintenance-event?wait_for_change=true&timeout_sec=60"
)
_EXPLANATION_SECONDS = 40  # within which the kernel notices a host that fell silent, see _kept_alive


@dataclasses.dataclass(frozen=True)
class Place:
    """Who this process is: `index` of `count`, and where process 0 listens ("host:port")."""

    coordinator: str = ""
    count: int = 1
    index: int = 0


_place = Place()
_stop_asked = threading.Event()
_polls = 0
_roll: "RollCall | None" = None


def count() -> int:
    """Returns the number of hosts, or rather of processes."""
    return _place.count


def index() -> int:
    """Returns the number of this process."""
    return _place.index


def is_writer() -> bool:
    """Returns whether this process writes the files of the run: one does, all read."""
    return _place.index == 0


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
    host, port = _address(place.coordinator)
    # All are there: whatever takes longer than this is a fault of the network.
    jax.distributed.initialize(f"{host}:{port}", place.count, place.index, initialization_timeout=int(timeout) + 60)
    _place = place
    _roll.watch()


def finish() -> None:
    """Tells the other hosts that this one has done its part, and is not lost when it ends."""
    if _roll is not None:
        _roll.finish()


def leave(code: int) -> None:
    """Ends this process with an exit code; the others, which may wait for it, notice at once."""
    sys.stdout.flush()
    sys.stderr.flush()
    if count() > 1:
        os._exit(code)  # an ordinary exit waits for all hosts
    sys.exit(code)


def await_explanation() -> None:
    """Waits until the loss of a host, which makes computations fail here, is noticed: then this process ends."""
    if _roll is not None:
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
        raise UserError(f"{what} of process {different[0]} differs from that of process 0; {SAME_COMMAND}")


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
            if announced.startswith(("TERMINATE", "MIGRATE")):
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


class RollCall:
    """Connections between process 0 and all others: who is there at the start, and who is still there.

    Raises `UserError` where somebody is missing after `timeout` seconds.
    """

    def __init__(self, place: Place, timeout: float):
        self._place, self._finished = place, False
        self._connections: dict[int, socket.socket] = {}
        deadline = time.monotonic() + timeout
        self._call(deadline, timeout) if place.index == 0 else self._answer(deadline, timeout)

    def _call(self, deadline: float, timeout: float) -> None:
        """Process 0: waits for all others, then tells them to go on, or who is missing."""
        port = roll_port(self._place.coordinator)
        try:
            server = socket.create_server(("", port), backlog=self._place.count)
        except OSError as error:
            raise UserError(f"port {port} on the first host: {error.strerror}; choose another --coordinator") from None
        with server:
            while missing := sorted(set(range(1, self._place.count)) - self._connections.keys()):
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                try:
                    connection, _ = server.accept()
                    connection.settimeout(5.0)
                    self._admit(int(_line(connection)), connection)
                except TimeoutError:
                    if time.monotonic() < deadline:
                        continue
                    self._tell(f"missing {','.join(map(str, missing))}")
                    raise UserError(_absent(missing, self._place.count, timeout)) from None
                except ValueError:  # somebody else's connection
                    connection.close()
        self._tell("go")

    def _admit(self, peer: int, connection: socket.socket) -> None:
        if peer in self._connections or not 0 < peer < self._place.count:
            raise UserError(f"a second process {peer} of {self._place.count} has started; number them 0, 1, ...")
        self._connections[peer] = _kept_alive(connection)

    def _answer(self, deadline: float, timeout: float) -> None:
        """Another process: reaches process 0, and waits until it says that all are there."""
        host, _ = _address(self._place.coordinator)
        port = roll_port(self._place.coordinator)
        said = ""
        while not said:
            left = deadline - time.monotonic()
            if left <= 0:
                where = f"{host}:{port} (--coordinator={self._place.coordinator})"
                raise UserError(f"process 0 did not answer at {where} for {timeout:g} s; {SAME_COMMAND}")
            try:
                connection = socket.create_connection((host, port), timeout=min(left, 5.0))
                connection.sendall(f"{self._place.index}\n".encode())
                connection.settimeout(left + 5.0)
                said = _line(connection)
            except OSError:
                time.sleep(min(0.5, max(left, 0)))
        if said != "go":
            missing = [int(number) for number in said.removeprefix("missing ").split(",")]
            raise UserError(_absent(missing, self._place.count, timeout))
        self._connections[0] = _kept_alive(connection)

    def watch(self) -> None:
        """Ends this process, with a line that says why, as soon as a host is gone that has not finished."""
        for peer, connection in self._connections.items():
            connection.settimeout(None)
            threading.Thread(target=self._listen, args=(peer, connection), daemon=True).start()

    def finish(self) -> None:
        self._finished = True
        self._tell("bye")

    def _listen(self, peer: int, connection: socket.socket) -> None:
        try:
            said = _line(connection)
        except OSError:
            said = ""
        if said == "bye" or self._finished:
            return
        lost = int(said.removeprefix("lost ")) if said.startswith("lost ") else peer
        self._tell(f"lost {lost}")
        message = f"process {lost} of {self._place.count} is gone; the same command on every host goes on"
        print(f"error: {message} from the last checkpoint", file=sys.stderr, flush=True)
        os._exit(LOST)  # the others wait in a computation that never ends

    def _tell(self, what: str) -> None:
        for connection in self._connections.values():
            try:
                connection.sendall(f"{what}\n".encode())
            except OSError:
                pass  # gone, which its own thread notices


def roll_port(coordinator: str) -> int:
    """Returns the port of the roll call, a thousand beside that of JAX's own service."""
    port = _address(coordinator)[1]
    return port + 1000 if port < 60000 else port - 1000


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 1024 < int(port) < 65536:
        raise UserError(f"--coordinator={coordinator} must be HOST:PORT of process 0, with a port above 1024")
    return host.strip("[]"), int(port)


def _absent(missing: list[int], number: int, timeout: float) -> str:
    numbers = ", ".join(map(str, missing))
    which, verb = ("process", "has") if len(missing) == 1 else ("processes", "have")
    return f"{which} {numbers} of {number} {verb} not started within {timeout:g} s; {SAME_COMMAND}"


def _line(connection: socket.socket) -> str:
    """Returns what a peer says up to the end of the line, "" where it has closed the connection."""
    said = b""
    while not said.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte or len(said) > 10000:
            return ""
        said += byte
    return said.decode(errors="replace").strip()


def _kept_alive(connection: socket.socket) -> socket.socket:
    """Makes the kernel ask a silent peer for a sign of life: one whose machine is off is noticed in 30 seconds."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


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
