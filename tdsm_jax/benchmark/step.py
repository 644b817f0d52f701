"""What a training step of each mixture costs beside plain DSM, on a finished run's own labels and classifiers.

  python -m tdsm_jax.benchmark.step --config=configs/digits.py --workdir=runs/digits

All rules are compiled first, then timed in turn, step by step, in one process, so that whatever else the machine
does falls on all of them. Each step waits for its result. Prints medians, quartiles and ratios of medians to DSM;
--json=PATH writes the records.
"""

import pathlib
import sys
import time

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import FrozenConfigDict, config_flags

from tdsm_jax import files, pipeline, runtime
from tdsm_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config of the finished run.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of the finished run (its labels and classifiers).")
_ROUNDS = flags.DEFINE_integer("rounds", 30, "Timed steps of each rule.", lower_bound=3)
_JSON = flags.DEFINE_string("json", None, "Where to write the records.")

RULES = ("own", "floor", "threshold", "all")


def main(_: list[str]) -> None:
    """Compiles one step for each rule, times them interleaved, prints the table."""
    logging.set_verbosity(logging.WARNING)
    if _CONFIG.value is None or not _WORKDIR.value:
        raise UserError("give --config=configs/digits.py and --workdir=FOLDER of a finished run; --help shows examples")
    if not (pathlib.Path(_WORKDIR.value) / "weight_table.npz").is_file():
        raise UserError(f"--workdir={_WORKDIR.value} holds no finished classifiers; run tdsm_jax.main there first")
    runtime.configure()
    from tdsm_jax.run import Run

    config = _CONFIG.value
    steps = {}
    for rule in RULES:
        method = "dsm" if rule == "own" else "tdsm"
        if rule != "own":
            config.mixture.rule = rule
        run = Run(FrozenConfigDict(config), pathlib.Path(_WORKDIR.value).absolute())
        steps[rule] = TimedStep(*run.score_step(method))
    for _ in range(_ROUNDS.value):
        for step in steps.values():
            step.take()
    records = [step.record(rule, steps["own"], config.score.batch_size) for rule, step in steps.items()]
    print(f"{jax.devices()[0].device_kind} x {jax.device_count()}, {pipeline.versions()}")
    print(
        f"{'rule':<10} {'ms/step':>8} {'quartiles':>15} {'ratio':>6} {'images/s':>9} {'compile s':>9} {'capacity':>8}"
    )
    for r in records:
        quartiles = f"{r['quartile_1']:.1f}..{r['quartile_3']:.1f}"
        print(
            f"{r['rule']:<10} {r['milliseconds']:>8.1f} {quartiles:>15} {r['ratio']:>6.2f} "
            f"{r['images_per_second']:>9.0f} {r['compile_seconds']:>9.1f} {r['capacity'] or '-':>8}"
        )
    if _JSON.value:
        files.write_json(_JSON.value, records)


class TimedStep:
    """A training step with its state and the seconds its calls took."""

    def __init__(self, step, state, batches, key, objective):
        self._step, self._state, self._batches, self._key = step, state, batches, key
        self.capacity = objective.capacity
        self.seconds: list[float] = []
        self.take()  # compiles
        self.compile_seconds = self.seconds.pop()
        self.take()  # warms up
        self.seconds.clear()

    def take(self) -> None:
        """Takes one step and waits for it."""
        start = time.perf_counter()
        self._state, _ = self._step(self._state, self._batches(len(self.seconds)), self._key)
        jax.block_until_ready(self._state)
        self.seconds.append(time.perf_counter() - start)

    def record(self, rule: str, dsm: "TimedStep", batch_size: int) -> dict:
        """Returns the figures of this rule, with the ratio of medians to DSM."""
        low, median, high = np.percentile(self.seconds, [25, 50, 75])
        return {
            "rule": "dsm" if rule == "own" else rule,
            "milliseconds": 1e3 * median,
            "quartile_1": 1e3 * low,
            "quartile_3": 1e3 * high,
            "ratio": median / float(np.median(dsm.seconds)),
            "images_per_second": batch_size / median,
            "compile_seconds": self.compile_seconds,
            "capacity": self.capacity,
        }


if __name__ == "__main__":
    try:
        app.run(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
