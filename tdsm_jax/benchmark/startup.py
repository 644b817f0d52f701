"""How long it takes to start: --help, the imports of a run, and the first training step with compiled programs kept.

  python -m tdsm_jax.benchmark startup
  python -m tdsm_jax.benchmark startup --config=configs/cifar10.py:smoke --rounds=5 --json=startup.json

Every figure is a process of its own, from its start to its end or to the step. The first step of plain DSM is taken
once before, so that the programs which the compiler keeps for later processes stand in --out; where they did not
stand there already, that time is shown too.
"""

import argparse
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from tdsm_jax import config as configuration
from tdsm_jax import files, runtime
from tdsm_jax.benchmark.cells import carry_out, with_arguments
from tdsm_jax.benchmark.timing import described, environment, spread_of, summary
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation.table import grid


def main(arguments: argparse.Namespace) -> None:
    """Times the processes in turn, prints and writes the records; with --step takes the step and ends."""
    if arguments.step:
        first_step(arguments)
        return
    if arguments.rounds < 1:
        raise UserError(f"--rounds={arguments.rounds} must be at least 1")
    commands = {
        "--help": ["-m", "tdsm_jax.main", "--help"],
        "imports of a run": ["-c", "import tdsm_jax.plan, tdsm_jax.run"],
        "first training step": [
            "-m", "tdsm_jax.benchmark.startup", "--step", f"--out={arguments.out}", f"--config={arguments.config}",
        ],
    }  # fmt: skip
    known = (pathlib.Path(arguments.out) / "compiled").exists()
    first = seconds_of(commands["first training step"])
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(arguments.rounds):
        for name, command in commands.items():
            seconds[name].append(seconds_of(command))
    records = [{"what": name, "rounds": arguments.rounds} | summary(seconds[name], 1) for name in commands]
    if not known:
        records.append({"what": "first training step, nothing compiled yet", "rounds": 1} | summary([first], 1))
    about = environment()
    print(f"{described(about)}, {arguments.config}\n\n{table(records)}")
    if arguments.json:
        files.write_json(arguments.json, [record | about | {"config": arguments.config} for record in records])


def seconds_of(command: Sequence[str]) -> float:
    """Returns the seconds of a Python process."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode and "--help" not in command:  # which absl ends with 1
        raise UserError((done.stderr or done.stdout).strip().splitlines()[-1].removeprefix("error: "))
    return time.perf_counter() - start


def first_step(arguments: argparse.Namespace) -> None:
    """Does what a run does until its first step of plain DSM is taken."""
    out = pathlib.Path(arguments.out).absolute()
    runtime.configure(compilation_cache=str(out / "compiled"))
    config = configuration.load(with_arguments(arguments.config, "methods=dsm"))
    run = carry_out(config, out / "run", ("labels",))
    begin = run.score_step("dsm")
    jax.block_until_ready(begin.step(begin.state, begin.batch(0), begin.key))


def table(records: Sequence[dict[str, Any]]) -> str:
    """Returns the records as a Markdown table."""
    return grid(("", "ms, median (quartiles)"), [(record["what"], spread_of(record)) for record in records])


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--config", default="configs/digits.py", help="data and network (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind (%(default)s)")
    parser.add_argument("--out", default="runs/benchmark_startup", help="folder of the programs (%(default)s)")
    parser.add_argument("--step", action="store_true", help="take the first step in this process, time nothing")
    parser.add_argument("--json", help="where to write the records")
    run_command(parser, main)
