"""A run of a config from Python: what the command line does once it has read its flags, and what notebooks call.

  from tdsm_jax import config, job
  done = job.run(config.load("configs/digits.py:noise=sym,rate=0.4"), "runs/digits")
  done.samples("tdsm").images

The same call goes on where an interrupted one stopped, and returns at once where everything is there.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import FrozenConfigDict

from tdsm_jax import checks, paths, pipeline, plan, runtime
from tdsm_jax.errors import UserError
from tdsm_jax.pipeline import Planned
from tdsm_jax.run import Run
from tdsm_jax.validation import validate


class Job(NamedTuple):
    """A run, its units in order, and those of them that are to be done."""

    run: Run
    planned: list[Planned]
    todo: list[Planned]

    @property
    def description(self) -> str:
        """The plan in words: every unit, and whether it is there."""
        return pipeline.describe(self.planned, self.todo)


def run(config: Any, workdir: str | os.PathLike, stages: Sequence[str] = (), overwrite: bool = False) -> Run:
    """Carries out a config in `workdir`, or some stages of it, in this process; returns the run, for its artifacts.

    What is wrong with the config, the data or the workdir raises `UserError` before anything is built.
    """
    job = prepare(config, workdir, stages)
    execute(job, overwrite)
    return job.run


def prepare(config: Any, workdir: str | os.PathLike, stages: Sequence[str] = ()) -> Job:
    """Returns what is to be done for a config in `workdir`; nothing is written."""
    validate(config)
    workdir = paths.absolute(workdir)
    if paths.is_file(workdir):
        raise UserError(f"workdir {workdir} is a file; give a folder")
    runtime.configure(compilation_cache=runtime.cache_folder(workdir))
    return planned_job(Run(FrozenConfigDict(config), workdir), stages)


def planned_job(run: Run, stages: Sequence[str] = ()) -> Job:
    """Returns what is to be done for a run, whose config has been validated; checks that it goes with its data."""
    planned = pipeline.plan(plan.units(run), run.config, run.workdir)
    todo = pipeline.select(planned, tuple(stages))
    if any(p.unit.name != "sample/init" for p in todo):  # which needs no data
        checks.check(run)
    return Job(run, planned, todo)


def execute(job: Job, overwrite: bool = False) -> None:
    """Does what is to be done; work of another config stands in the way, a `UserError`, unless `overwrite` is set."""
    pipeline.check_undamaged(job.planned, job.run.workdir)
    if not overwrite:
        pipeline.check_unchanged(job.todo, job.run.workdir)
    pipeline.tidy(job.planned, job.run.workdir)
    pipeline.execute(job.todo, job.run.workdir)
