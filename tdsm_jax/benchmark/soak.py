"""Kills a run again and again, at any moment, and looks whether it ends as if nothing had happened.

  python -m tdsm_jax.benchmark soak --out=runs/soak
  python -m tdsm_jax.benchmark soak --out=runs/soak --cycles=20 --processes=2 --seed=1

A run of --config is started, killed in a unit of work drawn at random or while it starts, started again by the same
command, and so on until it is finished; then the next one begins. Half of the signals are SIGKILL, half SIGTERM; of
several processes (hosts of this one machine) one or all are hit. After every kill all files that are not being written
must be whole. A finished run must hold the files of a run that nobody disturbed, with the same content: models,
samples, metrics and logs bit for bit, the rest of the JSON but for times. Stop it whenever you like: the same command
goes on. The number of cores that a process may use must stay the same: sums of floating-point numbers depend on it.
"""

import argparse
import collections
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import PIL.Image

from tdsm_jax import files, pipeline
from tdsm_jax.benchmark.timing import described, environment
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.errors import Unreachable, UserError
from tdsm_jax.evaluation.table import grid
from tdsm_jax.roll_call import LOST
from tdsm_jax.training import checkpoint
from tdsm_jax.training.manifests import verify

EARLY = 0.1  # share of the kills that hit processes which start
START_SECONDS = 8  # within which those fall
START_TIMEOUT = 30  # after which a process gives up another one that was killed so
AHEAD = 3  # units between the one a cycle finds and the one it is killed in, at most
PATIENCE = 600  # seconds that a unit of the config may take on a busy machine
VARYING = ("seconds", "resumed", "date", "command", "files")  # keys that tell of the running, or of files that do
SIGNALS = (signal.SIGKILL, signal.SIGTERM)


def main(arguments: argparse.Namespace) -> None:
    """Does the cycles that are not done, then prints and writes the report."""
    out = pathlib.Path(arguments.out).absolute()
    counts = [int(n) for n in arguments.processes.split(",") if n.isdigit() and int(n)]
    if len(counts) != len(arguments.processes.split(",")) or arguments.cycles < 1:
        raise UserError("--processes must be whole numbers of at least 1, joined by commas, --cycles at least 1")
    out.mkdir(parents=True, exist_ok=True)
    for number in counts:
        undisturbed(arguments.config, out, number)
    journal = out / "cycles.jsonl"
    done = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    with journal.open("a") as file:
        for record in cycles(arguments, out, counts, done):
            print(summary_line(record), file=sys.stderr, flush=True)
            file.write(json.dumps(record) + "\n")
            file.flush()
            done.append(record)
    report = f"{described(environment())}, {arguments.config}\n\n{table(done)}"
    files.write_text(out / "report.md", report)
    print(report)
    if any(record["problems"] for record in done):
        raise UserError(f"a disturbed run did not end as an undisturbed one; see {journal}")


def undisturbed(config: str, out: pathlib.Path, number: int) -> pathlib.Path:
    """Returns the workdir of a run that nobody disturbs, made once."""
    workdir = out / f"undisturbed{number}"
    if not (workdir / "report.html").exists():
        codes = [process.wait() for process in start(config, workdir, number)]
        if any(codes):
            raise UserError(f"the undisturbed run ended with {codes}; see {log_of(workdir, 0)}")
    return workdir


def cycles(
    arguments: argparse.Namespace, out: pathlib.Path, counts: Sequence[int], done: Sequence[dict]
) -> Iterator[dict[str, Any]]:
    """Yields the record of each kill and of each end of a run, until there are enough kills."""
    kills = sum(was_killed(record) for record in done)
    first = max((record["run"] for record in done), default=-1)
    for number in itertools.count(max(first, 0)):
        if kills >= arguments.cycles:
            return
        workdir, processes = out / f"run{number}", counts[number % len(counts)]
        if any(record["run"] == number and record["finished"] for record in done):
            continue
        while True:
            rng = random.Random(f"{arguments.seed}/{number}/{kills}")
            record = {"run": number, "processes": processes} | cycle(arguments.config, workdir, processes, rng)
            if record["finished"]:
                reference = out / f"undisturbed{processes}"
                record["problems"] = [*record["problems"], *differences(reference, workdir)]
                if not record["problems"]:
                    shutil.rmtree(workdir)
            kills += was_killed(record)
            yield record
            if record["finished"]:
                break
            if record["signal"] == "none":
                raise UserError(f"{workdir} ended by itself with {record['codes']}; see {log_of(workdir, 0)}")


def was_killed(record: dict[str, Any]) -> bool:
    return not record["finished"] and record["signal"] != "none"


def cycle(config: str, workdir: pathlib.Path, number: int, rng: random.Random) -> dict[str, Any]:
    """Starts a run, kills it in a unit drawn at random, and returns what happened; it may finish before."""
    sent, everyone, early = rng.choice(SIGNALS), rng.random() < 0.5, rng.random() < EARLY
    goal = len(finished_units(workdir)) + rng.randrange(AHEAD + 1)
    within, since = rng.random(), time.time()
    processes = start(config, workdir, number)
    if early:
        time.sleep(within * START_SECONDS)
    elif begun := wait_until_begun(workdir, goal, processes, since):
        # A moment of the unit, as long as the undisturbed run took for it.
        time.sleep(within * pipeline.seconds(workdir.parent / f"undisturbed{number}")[begun])
    hit = processes if everyone else [rng.choice(processes)]
    running, before = [process for process in hit if process.poll() is None], names(workdir)
    for process in running:
        process.send_signal(sent)
    codes = ends(processes)
    finished = (workdir / "report.html").exists() and codes == [0] * number and last_unit(workdir) == "report"
    right = {0} if finished or sent == signal.SIGTERM else {-signal.SIGKILL}
    if number > 1 and (early or sent == signal.SIGKILL):
        right |= {LOST, -signal.SIGABRT}  # JAX aborts where the first process is gone, if it is faster than we are
    if early:  # before anything listens; the others give up, or go on to lose it
        right |= {-signal.SIGTERM, Unreachable.exit_code}
    problems = [f"exit codes {codes} after {sent.name}"] if not right.issuperset(codes) else []
    if running and sent == signal.SIGTERM and not early and len(names(workdir) - before) > 1:
        problems.append(f"SIGTERM before {', '.join(sorted(names(workdir) - before))} was not heard")
    problems += [f"{path.relative_to(workdir)} is not whole" for path in broken_files(workdir)]
    where = "start" if early else last_unit(workdir)
    return {
        "signal": sent.name if running else "none", "hit": len(running), "unit": where, "codes": codes,
        "finished": finished, "problems": problems,
    }  # fmt: skip


def start(config: str, workdir: pathlib.Path, number: int) -> list[subprocess.Popen]:
    """Starts the processes of a run; each says what it has to say in a file beside the workdir."""
    command = [sys.executable, "-m", "tdsm_jax.main", f"--config={config}", f"--workdir={workdir}"]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled")}
    coordinator = f"--coordinator=localhost:{free_port()}"
    started = []
    for i in range(number):
        place = [coordinator, f"--num_processes={number}", f"--process_id={i}", f"--start_timeout={START_TIMEOUT}"]
        shared = place if number > 1 else []
        with log_of(workdir, i).open("a") as log:
            started.append(subprocess.Popen([*command, *shared], env=os.environ | cache, stdout=log, stderr=log))
    return started


def ends(processes: Sequence[subprocess.Popen]) -> list[int | str]:
    """Waits for the processes and returns their exit codes; one that does not end is killed, and its code "hangs"."""
    codes: list[int | str] = []
    for process in processes:
        try:
            codes.append(process.wait(timeout=PATIENCE))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            codes.append("hangs")
    return codes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def log_of(workdir: pathlib.Path, process: int) -> pathlib.Path:
    return workdir.with_name(f"{workdir.name}.log{process}")


def manifests(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the manifests of the units begun so far, the latest last, each with when it was "written"."""
    found = sorted((path.stat().st_mtime, path) for path in (workdir / "units").glob("*.json"))
    return [files.read_json(path) | {"written": written} for written, path in found]


def finished_units(workdir: pathlib.Path) -> list[str]:
    return [manifest["unit"] for manifest in manifests(workdir) if manifest["finished"]]


def names(workdir: pathlib.Path) -> set[str]:
    return {manifest["unit"] for manifest in manifests(workdir)}


def last_unit(workdir: pathlib.Path) -> str:
    return next((manifest["unit"] for manifest in reversed(manifests(workdir))), "")


def wait_until_begun(workdir: pathlib.Path, goal: int, processes: Sequence[subprocess.Popen], since: float) -> str:
    """Waits until `goal` units are finished and another is begun, at a time later than `since`.

    Returns its name, "" where the run ended first.
    """
    end = time.monotonic() + PATIENCE
    while all(process.poll() is None for process in processes):
        found = manifests(workdir)
        if sum(manifest["finished"] for manifest in found) >= goal and found and not found[-1]["finished"]:
            if found[-1]["written"] > since:  # by these processes, not by those killed before
                return found[-1]["unit"]
        if time.monotonic() > end:
            raise UserError(f"{workdir} does not get on; see {log_of(workdir, 0)}")
        time.sleep(0.02)
    return ""


def broken_files(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files (JSON, arrays, pictures, steps with a manifest) neither whole nor marked as being written."""
    broken = []
    for path in sorted(workdir.rglob("*")):
        if path.name.endswith(".partial") or any("orbax-checkpoint-tmp" in part for part in path.parts):
            continue
        try:
            if checkpoint.is_step(path):
                verify(path)
            elif path.suffix == ".json":
                files.read_json(path)
            elif path.suffix == ".npz":
                files.read_arrays(path)
            elif path.suffix == ".png":
                with PIL.Image.open(path) as picture:
                    picture.verify()
        except (UserError, OSError, SyntaxError):  # the last is how Pillow calls a broken PNG
            broken.append(path)
    return broken


def differences(reference: pathlib.Path, workdir: pathlib.Path) -> list[str]:
    """Returns what a finished run has otherwise than the undisturbed one."""
    names = [{str(p.relative_to(w)) for p in w.rglob("*") if p.is_file()} for w in (reference, workdir)]
    kept = [{name for name in some if "/checkpoints/" not in name and "tensorboard" not in name} for some in names]
    found = [f"{name} is missing" for name in sorted(kept[0] - kept[1])]
    found += [f"{name} is left over" for name in sorted(kept[1] - kept[0])]
    steps = [{name for name in some if "/checkpoints/" in name and name.endswith(".json")} for some in names]
    found += [f"checkpoint {name} on one side only" for name in sorted(_newest(steps[0]) ^ _newest(steps[1]))]
    found += [f"{name} is left over" for name in sorted(names[1]) if "orbax-checkpoint-tmp" in name]
    for name in sorted(kept[0] & kept[1]):
        if content(reference / name) != content(workdir / name):
            found.append(f"{name} differs")
    return found


def _newest(steps: set[str]) -> set[str]:
    """Returns the newest checkpoint of each folder; a stop out of turn leaves others before it."""
    return set({name.rpartition("/")[0]: name for name in sorted(steps)}.values())


def content(path: pathlib.Path) -> Any:
    """Returns what two runs must agree on of a file: its bytes, or its JSON but for times; nothing of the page."""
    if path.suffix == ".html":  # shows times, and otherwise the metrics
        return None
    return without_times(files.read_json(path)) if path.suffix == ".json" else path.read_bytes()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(entry) for key, entry in value.items() if key not in VARYING}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def summary_line(record: dict[str, Any]) -> str:
    ended = "finished" if record["finished"] else f"{record['signal']} to {record['hit']} in {record['unit']}"
    said = "; ".join(record["problems"])
    return f"run {record['run']}, {record['processes']} processes: {ended}{': ' if said else ''}{said}"


def table(records: Sequence[dict[str, Any]]) -> str:
    """Returns the report: what was killed where, and what came of it."""
    kills = [record for record in records if was_killed(record)]
    ends = [record for record in records if record["finished"]]
    kinds = sorted({(record["processes"], record["signal"]) for record in kills})
    at: collections.Counter = collections.Counter()
    for record in kills:
        at[record["unit"].partition("/")[0], record["processes"], record["signal"]] += 1
    stages = dict.fromkeys(record["unit"].partition("/")[0] for record in kills)
    rows = [[stage, *(at[stage, *kind] or "" for kind in kinds)] for stage in stages]
    rows.append(["all", *(sum(at[stage, *kind] for stage in stages) for kind in kinds)])
    heads = ("killed in", *(f"{number} process{'es' if number > 1 else ''}, {sent}" for number, sent in kinds))
    problems = [problem for record in records for problem in record["problems"]]
    broken = sum("whole" in problem or "left over" in problem for problem in problems)
    said = f"{len(kills)} kills, {len(ends)} runs finished; {len(problems)} problems, "
    said += f"{broken} of them orphaned or half-written files."
    return "\n\n".join([said, grid(heads, rows), *(f"- {problem}" for problem in problems)])


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--out", required=True, help="folder of the runs, of cycles.jsonl and report.md")
    parser.add_argument("--config", default="configs/digits.py:smoke,methods=dsm+tdsm", help="(%(default)s)")
    parser.add_argument("--cycles", type=int, default=200, help="kills in all (%(default)s)")
    parser.add_argument("--processes", default="1,1,1,2", help="of the runs, in turn (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (%(default)s)")
    run_command(parser, main)
