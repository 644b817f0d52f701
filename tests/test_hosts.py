"""Several devices and several hosts: the same numbers, all stop together, a lost one is noticed, any number goes on."""

import http.server
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tdsm_jax import files, hosts, roll_call
from tdsm_jax.errors import Unreachable, UserError
from test_main import ROOT, command, environment

SMOKE = "configs/digits.py:smoke,methods=tdsm"
CHEAP = "configs/digits.py:smoke,methods=dsm"
TO_SAMPLES = "--stages=labels,score,sample"
LONG = "--config.score.steps=2000"  # more than a test waits for
TOLERANCE = {"rtol": 2e-3, "atol": 2e-5}  # of parameters after twenty steps of Adam, whose sums are ordered otherwise


def devices(count):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
    return environment() | {"XLA_FLAGS": flags}


def launch(log, *arguments, config, count):
    return subprocess.Popen(
        command(*arguments, config=config),
        cwd=ROOT,
        env=devices(count),
        stdout=subprocess.DEVNULL,
        stderr=log.open("w"),
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def as_hosts(folder, number, *arguments, config, count, port=None):
    """Starts the hosts of one run; their standard errors stand in folder/hostI."""
    folder.mkdir(exist_ok=True)
    shared = (f"--coordinator=localhost:{port or free_port()}", f"--num_processes={number}", *arguments)
    return [
        launch(folder / f"host{i}", f"--process_id={i}", *shared, config=config, count=count) for i in range(number)
    ]


def finish(processes, folder=None, codes=(0, 0)):
    found = tuple(process.wait(timeout=300) for process in processes)
    logs = [(folder / f"host{i}").read_text()[-3000:] for i in range(len(processes))] if folder else []
    assert found == codes[: len(found)], (found, *logs)


def wait_for(path, processes, seconds=200):
    end = time.monotonic() + seconds
    while not path.exists():
        assert all(process.poll() is None for process in processes), "a process ended early"
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.02)


def parameters(workdir, method):
    with np.load(workdir / "score" / method / "ema.npz") as stored:
        return {name: stored[name] for name in stored.files if name != "description"}


def assert_same_run(a, b, method):
    one, other = parameters(a, method), parameters(b, method)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], err_msg=name, **TOLERANCE)
    images = [np.load(w / "samples" / f"{method}.npz")["images"].astype(int) for w in (a, b)]
    difference = np.abs(images[0] - images[1])
    assert difference.mean() < 0.2 and difference.max() <= 8, (difference.mean(), difference.max())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run that all others must equal: one device of one host, every stage."""
    folder = tmp_path_factory.mktemp("alone")
    finish([launch(folder / "host0", f"--workdir={folder / 'run'}", config=SMOKE, count=1)], folder)
    return folder / "run"


@pytest.fixture(scope="module")
def cheap(tmp_path_factory):
    """The same with plain DSM, as far as its samples."""
    folder = tmp_path_factory.mktemp("cheap")
    finish([launch(folder / "host0", f"--workdir={folder / 'run'}", TO_SAMPLES, config=CHEAP, count=1)], folder)
    return folder / "run"


def test_two_hosts_of_four_devices_do_what_one_device_does(alone, tmp_path):
    workdir = tmp_path / "run"
    finish(as_hosts(tmp_path / "logs", 2, f"--workdir={workdir}", config=SMOKE, count=4), tmp_path / "logs")
    assert_same_run(workdir, alone, "tdsm")
    one, other = (files.read_arrays(w / "weight_table.npz") for w in (alone, workdir))
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-3)
    one, other = (files.read_json(w / "transition.json")["classifier"] for w in (alone, workdir))
    for name in one:  # of every image, seen by the classifiers that never trained on it
        np.testing.assert_allclose(one[name], other[name], rtol=0.02, atol=2e-3, err_msg=name)
    one, other = (files.read_json(w / "metrics.json")["methods"]["tdsm"] for w in (alone, workdir))
    for name in ("label_fidelity", "cas"):
        assert abs(one[name] - other[name]) < 0.05, name
    assert (
        (workdir / "report.html").exists()
        and not list(workdir.rglob("*.partial"))
        and not list(workdir.rglob("*.parts"))
    )
    assert {path.name for path in workdir.iterdir()} == {path.name for path in alone.iterdir()}


@pytest.mark.parametrize(("backend", "count"), [("pmap", 8), ("shard_map", 2)])
def test_any_number_of_devices_does_what_one_does(cheap, tmp_path, backend, count):
    arguments = (f"--workdir={tmp_path / 'run'}", TO_SAMPLES, f"--config.parallel.backend={backend}")
    finish([launch(tmp_path / "host0", *arguments, config=CHEAP, count=count)], tmp_path)
    assert_same_run(tmp_path / "run", cheap, "dsm")


@pytest.mark.slow  # pmap on eight devices and shard_map on two hosts are not
def test_pmap_on_two_hosts_does_what_one_device_does(cheap, tmp_path):
    arguments = (f"--workdir={tmp_path / 'run'}", TO_SAMPLES, "--config.parallel.backend=pmap")
    finish(as_hosts(tmp_path / "logs", 2, *arguments, config=CHEAP, count=2), tmp_path / "logs")
    assert_same_run(tmp_path / "run", cheap, "dsm")


def test_a_run_stopped_on_eight_devices_goes_on_on_four(cheap, tmp_path):
    workdir = tmp_path / "run"
    first = launch(tmp_path / "host0", f"--workdir={workdir}", TO_SAMPLES, config=CHEAP, count=8)
    wait_for(workdir / "units" / "score-dsm.json", [first])
    first.send_signal(signal.SIGTERM)
    finish([first], tmp_path)
    said = (tmp_path / "host0").read_text()
    assert "stopped as asked; the same command goes on from here" in said and "Traceback" not in said
    assert not (workdir / "samples" / "dsm.npz").exists()
    assert list((workdir / "score" / "dsm" / "checkpoints").glob("*.json"))
    finish([launch(tmp_path / "host0", f"--workdir={workdir}", TO_SAMPLES, config=CHEAP, count=4)], tmp_path)
    assert_same_run(workdir, cheap, "dsm")


def test_a_lost_host_is_noticed_and_the_pair_goes_on(cheap, tmp_path):
    workdir, logs = tmp_path / "run", tmp_path / "logs"
    arguments = (f"--workdir={workdir}", TO_SAMPLES)
    pair = as_hosts(logs, 2, *arguments, LONG, config=CHEAP, count=1)
    wait_for(workdir / "score" / "dsm" / "checkpoints" / "00000010.json", pair)
    pair[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    finish(pair, logs, (roll_call.LOST, -signal.SIGKILL))
    assert time.monotonic() - began < 30
    said = (logs / "host0").read_text()
    assert "error: process 1 of 2 is gone; the same command on every host goes on" in said
    pair = as_hosts(logs, 2, *arguments, LONG, config=CHEAP, count=1)
    wait_for(workdir / "score" / "dsm" / "checkpoints" / "00000020.json", pair)
    pair[1].send_signal(signal.SIGTERM)  # to one of them
    finish(pair, logs)
    for i in range(2):
        assert "stopped as asked" in (logs / f"host{i}").read_text()


def test_a_missing_host_is_named(tmp_path):
    arguments = (f"--workdir={tmp_path / 'run'}", "--start_timeout=4")
    both = as_hosts(tmp_path / "logs", 3, *arguments, config=CHEAP, count=1)
    both.pop(1).kill()
    finish(both, codes=(Unreachable.exit_code,) * 2)
    for i in (0, 2):
        last = (tmp_path / "logs" / f"host{i}").read_text().strip().splitlines()[-1]
        assert last == "error: process 1 of 3 has not started within 4 s; start the same command on every host"
    assert not (tmp_path / "run" / "units").exists()


def test_hosts_with_other_configs_are_refused(tmp_path):
    port, logs = free_port(), tmp_path / "logs"
    logs.mkdir()
    place = (f"--workdir={tmp_path / 'run'}", f"--coordinator=localhost:{port}", "--num_processes=2")
    pair = [
        launch(logs / f"host{i}", *place, f"--process_id={i}", f"--config.seed={i}", config=CHEAP, count=1)
        for i in range(2)
    ]
    finish(pair, logs, (2, 2))
    for i in range(2):
        said = (logs / f"host{i}").read_text()
        assert "error: process 1 has another config than process 0; start the same command on every host" in said
    assert not (tmp_path / "run" / "units").exists()


def test_hosts_with_other_stages_are_refused(tmp_path):
    """What they would do differs, and the first barrier would wait for ever."""
    port, logs = free_port(), tmp_path / "logs"
    logs.mkdir()
    place = (f"--workdir={tmp_path / 'run'}", f"--coordinator=localhost:{port}", "--num_processes=2")
    pair = [
        launch(logs / f"host{i}", *place, f"--process_id={i}", f"--stages={stage}", config=CHEAP, count=1)
        for i, stage in enumerate(("labels", "judge"))
    ]
    finish(pair, logs, (2, 2))
    said = (logs / "host1").read_text()
    assert "error: process 1 has another view of the workdir, data or --stages than process 0" in said


ENDS = """
import sys, time
from tdsm_jax import roll_call
index, port = int(sys.argv[1]), sys.argv[2]
roll = roll_call.RollCall(roll_call.Place(f"localhost:{port}", 3, index), 30)
roll.watch()
if index == 1:
    roll.fail(2)
    sys.exit(2)
time.sleep(60)
"""


def test_all_hosts_end_with_the_code_of_the_one_that_failed():
    port = str(free_port())
    started = [
        subprocess.Popen([sys.executable, "-c", ENDS, str(i), port], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for i in range(3)
    ]
    said = [process.communicate(timeout=60)[1] for process in started]
    assert [process.returncode for process in started] == [2, 2, 2]
    for i in (0, 2):
        assert said[i] == "error: process 1 of 3 ended with an error; its own output says which\n"


def test_a_failure_heard_of_twice_is_said_once(monkeypatch, capsys):
    """Process 0 tells all others of it, and they tell it back."""
    ended = []
    monkeypatch.setattr(roll_call.os, "_exit", ended.append)
    monkeypatch.setattr(roll_call, "_OWN_WORDS_SECONDS", 0)
    monkeypatch.setattr(roll_call.RollCall, "_call", lambda self: None)
    roll = roll_call.RollCall(roll_call.Place("localhost:2000", 3, 0), timeout=1)
    for peer in (1, 2):
        here, there = socket.socketpair()
        with here, there:
            there.sendall(b"failed 1 7\n")
            roll._listen(peer, here)
    assert capsys.readouterr().err.count("process 1 of 3 ended with an error") == 1 and ended[0] == 7


def test_sigterm_means_nothing_once_the_work_is_done():
    program = "import os, signal; from tdsm_jax import hosts; hosts.finish(); os.kill(os.getpid(), signal.SIGTERM)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_hosts_that_jax_alone_knows_of_are_an_error(monkeypatch):
    hosts.check_alone()
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 4)
    with pytest.raises(UserError, match="JAX sees 4 hosts: start the command with --distributed=on"):
        hosts.check_alone()


def test_a_silent_coordinator_is_named():
    place = roll_call.Place(f"localhost:{free_port()}", 2, 1)
    with pytest.raises(UserError, match=r"process 0 did not answer at localhost:\d+ .* for 1 s; start the same"):
        roll_call.RollCall(place, timeout=1)


def roll(number, port, timeout=20, own=None):
    """Calls the roll of some processes, all in this one; returns what each ends with."""
    ends = {}

    def call(i):
        try:
            ends[i] = roll_call.RollCall(roll_call.Place(f"localhost:{port}", number, i), timeout)
        except UserError as error:
            ends[i] = str(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in (own or range(number))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def test_the_roll_is_called_until_all_are_there():
    ends = roll(4, free_port())
    assert all(isinstance(end, roll_call.RollCall) for end in ends.values())


def test_strangers_at_the_port_do_no_harm():
    port, ends = free_port(), {}
    waiting = threading.Thread(target=lambda: ends.update(roll(2, port, own=[0])))
    waiting.start()
    address = ("localhost", roll_call.Place(f"localhost:{port}").roll_port)
    end = time.monotonic() + 10
    while True:
        try:
            with socket.create_connection(address, timeout=5) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\n")
            with socket.create_connection(address, timeout=5) as stranger:  # and one that hangs up rudely
                stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            break
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)
    ends |= roll(2, port, own=[1])
    waiting.join()
    assert all(isinstance(end, roll_call.RollCall) for end in ends.values()), ends


def test_two_processes_of_one_number_are_told_so():
    port, said = free_port(), []
    first = threading.Thread(target=lambda: said.extend(roll(3, port, own=[0]).values()))
    first.start()
    twins = [threading.Thread(target=lambda: said.extend(roll(3, port, own=[1]).values())) for _ in range(2)]
    for twin in twins:
        twin.start()
    for thread in (first, *twins):
        thread.join()
    assert said == ["a second process 1 of 3 has started; number them 0, 1, ..., one each"] * 3


@pytest.mark.parametrize("coordinator", ["localhost", "localhost:port", "localhost:80", ":1234"])
def test_a_coordinator_is_host_and_port(coordinator):
    with pytest.raises(UserError, match="must be HOST:PORT of process 0"):
        roll_call.Place(coordinator).address  # noqa: B018  raises


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--num_processes=2",), "give --coordinator=HOST:PORT, --num_processes=N and --process_id=I together"),
        (("--coordinator=localhost:9999", "--num_processes=2", "--process_id=2"), "--process_id=2 must be at least 0"),
        (("--distributed=on",), "the machine does not say who the other hosts are"),
    ],
)
def test_a_wrong_place_ends_in_one_line(tmp_path, arguments, said):
    done = subprocess.run(
        command(f"--workdir={tmp_path / 'run'}", *arguments, config=CHEAP),
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_slurm_says_who_is_who(tmp_path):
    """Through the variables that srun sets; JAX reads them."""
    program = "from tdsm_jax import hosts; hosts.start('auto', None, 30); print(int(hosts.is_writer()), hosts.count())"
    slurm = {"SLURM_JOB_ID": "17", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
    slurm |= {"SLURM_STEP_NUM_NODES": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT, env=environment() | slurm | {"SLURM_PROCID": str(i)}, stdout=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    assert [process.communicate(timeout=60)[0].split() for process in started] == [["1", "2"], ["0", "2"]]


def test_an_announced_maintenance_stops_the_run(tmp_path, monkeypatch):
    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"TERMINATE_ON_HOST_MAINTENANCE")

        def log_message(self, *_):
            pass

    machine, asked = tmp_path / "product_name", threading.Event()
    monkeypatch.setattr(os, "kill", lambda pid, number: (pid, number) == (os.getpid(), signal.SIGTERM) and asked.set())
    with http.server.HTTPServer(("localhost", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://localhost:{server.server_port}/"
        machine.write_text("Something Else\n")
        hosts.listen_for_maintenance(str(machine), url)
        hosts.listen_for_maintenance(str(tmp_path / "absent"), url)
        assert not asked.wait(0.3)
        machine.write_text("Google Compute Engine\n")
        hosts.listen_for_maintenance(str(machine), url)
        assert asked.wait(10)
        server.shutdown()
