"""Who of several hosts is there at the start, and who still is: connections of their own between process 0 and all."""

import dataclasses
import os
import socket
import sys
import threading
import time

from tdsm_jax.errors import Unreachable, UserError

LOST = 3  # exit code of a host whose peer is gone
SAME_COMMAND = "start the same command on every host"
# A peer that ends with an error leaves the others so long to come to the same one, and to say it in their own words.
_OWN_WORDS_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class Place:
    """Who this process is: `index` of `count`, and where process 0 listens ("host:port")."""

    coordinator: str = ""
    count: int = 1
    index: int = 0

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 1024 < int(port) < 65536:
            wanted = "must be HOST:PORT of process 0, with a port above 1024"
            raise UserError(f"--coordinator={self.coordinator} {wanted}")
        return host.strip("[]"), int(port)

    @property
    def roll_port(self) -> int:
        """The port of the roll call, a thousand beside that of JAX's own service."""
        port = self.address[1]
        return port + 1000 if port < 60000 else port - 1000


class RollCall:
    """Connections between process 0 and all others.

    Raises `Unreachable` where somebody is missing after `timeout` seconds, `UserError` where two are the same.
    """

    def __init__(self, place: Place, timeout: float):
        self._place, self._timeout, self._finished = place, timeout, False
        self._ending = threading.Lock()  # held by the first of the threads that ends this process
        self._deadline = time.monotonic() + timeout
        self._connections: dict[int, socket.socket] = {}
        self._call() if place.index == 0 else self._answer()

    def _call(self) -> None:
        """Process 0: waits for all others, then tells them to go on, or who is missing."""
        try:
            server = socket.create_server(("", self._place.roll_port), backlog=self._place.count)
        except OSError as error:
            where = f"port {self._place.roll_port} on the first host"
            raise Unreachable(f"{where}: {error.strerror}; choose another --coordinator") from None
        with server:
            while missing := sorted(set(range(1, self._place.count)) - self._connections.keys()):
                server.settimeout(max(self._deadline - time.monotonic(), 0.001))
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    self._tell(f"missing {','.join(map(str, missing))}")
                    raise Unreachable(self._absent(missing)) from None
                self._admit(connection)
        self._tell("go")

    def _admit(self, connection: socket.socket) -> None:
        """Keeps the connection of a process that names itself, and closes a stranger's."""
        connection.settimeout(5.0)
        try:
            peer = int(_line(connection))
        except (ValueError, OSError):
            connection.close()
            return
        if peer in self._connections or not 0 < peer < self._place.count:
            self._connections[-1] = connection  # to be told, too
            self._tell(f"second {peer}")
            raise UserError(self._second(peer))
        self._connections[peer] = _kept_alive(connection)

    def _answer(self) -> None:
        """Another process: reaches process 0, and waits until it says that all are there."""
        where = self._place.address[0], self._place.roll_port
        while True:
            left = self._deadline - time.monotonic()
            if left <= 0:
                said = f"process 0 did not answer at {where[0]}:{where[1]} (--coordinator={self._place.coordinator})"
                raise Unreachable(f"{said} for {self._timeout:g} s; {SAME_COMMAND}")
            try:
                connection = socket.create_connection(where, timeout=min(left, 5.0))
                connection.sendall(f"{self._place.index}\n".encode())
                connection.settimeout(left + 5.0)
                if said := _line(connection):
                    break
            except OSError:
                pass
            time.sleep(min(0.5, left))
        if said.startswith("second "):
            raise UserError(self._second(int(said.removeprefix("second "))))
        if said != "go":
            raise Unreachable(self._absent([int(number) for number in said.removeprefix("missing ").split(",")]))
        self._connections[0] = _kept_alive(connection)

    def watch(self) -> None:
        """Ends this process, with a line that says why, as soon as a host is gone that has not finished."""
        for peer, connection in self._connections.items():
            connection.settimeout(None)
            threading.Thread(target=self._listen, args=(peer, connection), daemon=True).start()

    def finish(self) -> None:
        """Tells the others that this process is not lost when it ends."""
        self._finished = True
        self._tell("bye")

    def fail(self, code: int) -> None:
        """Tells the others that this process ends with an exit code, and has said why."""
        self._tell(f"failed {self._place.index} {code}")

    def _listen(self, peer: int, connection: socket.socket) -> None:
        try:
            said = _line(connection)
        except OSError:
            said = ""
        if said == "bye" or self._finished or not self._ending.acquire(blocking=False):
            return
        word, *numbers = said.split() or ["lost", str(peer)]
        self._tell(said or f"lost {peer}")
        of = f"process {numbers[0]} of {self._place.count}"
        if word == "failed":
            time.sleep(_OWN_WORDS_SECONDS)
            print(f"error: {of} ended with an error; its own output says which", file=sys.stderr, flush=True)
            os._exit(int(numbers[1]))
        again = "the same command on every host goes on from the last checkpoint"
        print(f"error: {of} is gone; {again}", file=sys.stderr, flush=True)
        os._exit(LOST)  # this process may wait in a computation that never ends

    def _tell(self, what: str) -> None:
        for connection in self._connections.values():
            try:
                connection.sendall(f"{what}\n".encode())
            except OSError:
                pass  # gone, which its own thread notices

    def _absent(self, missing: list[int]) -> str:
        which, verb = ("process", "has") if len(missing) == 1 else ("processes", "have")
        numbers = f"{which} {', '.join(map(str, missing))} of {self._place.count}"
        return f"{numbers} {verb} not started within {self._timeout:g} s; {SAME_COMMAND}"

    def _second(self, peer: int) -> str:
        return f"a second process {peer} of {self._place.count} has started; number them 0, 1, ..., one each"


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
