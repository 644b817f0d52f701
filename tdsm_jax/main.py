"""Trains, samples, evaluates and reports conditional diffusion models on noisy labels.

  python -m tdsm_jax.main --config=configs/digits.py --workdir=runs/digits          (a quarter of an hour on two cores)
  python -m tdsm_jax.main --config=configs/digits.py:smoke --workdir=runs/smoke     (the whole path in 90 seconds)
  python -m tdsm_jax.main --config=configs/digits.py:noise=asym,rate=0.3,seed=1 --workdir=runs/asym
  python -m tdsm_jax.main --stages=sample --config.init_from=MODEL/ema.npz --workdir=runs/samples

The same command goes on where it stopped. Results stand in WORKDIR/report.html and WORKDIR/metrics.json. Every device
of the machine is used. On several hosts start the same command on each, with a workdir that all of them see; launch/
has scripts for TPU pods, Slurm and Kubernetes. SIGTERM saves and stops.
"""

import json
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import FrozenConfigDict, config_flags

from tdsm_jax import config as configuration
from tdsm_jax import files, hosts, manual, paths, pipeline, runtime
from tdsm_jax.command import carry_out
from tdsm_jax.errors import UserError
from tdsm_jax.validation import validate

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config and its arguments: configs/digits.py:noise=sym,rate=0.4; --list shows all.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run's artifacts, or gs://BUCKET/NAME; the same resumes it."
)
_STAGES = flags.DEFINE_list("stages", [], f"Do only these: {', '.join(pipeline.STAGES)}.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the resolved config and the plan, do nothing.")
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "on", "off"],
    "Run with other hosts. auto: under Slurm with several tasks, on GKE's TPU slices, or with the three flags below.",
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where the machine does not say it.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many hosts there are.", 1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "The number of this host, from 0.", 0)
_START_TIMEOUT = flags.DEFINE_integer("start_timeout", 300, "Seconds to wait for the other hosts.", 1)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Make again what the workdir holds of another config.")

_GROUPS: dict[str, dict[str, flags.FlagHolder | str]] = {
    "What is done": {
        "--config=FILE:ARGUMENTS": _CONFIG,
        "--config.KEY=VALUE": "Any key of configs/base.py: --config.score.steps=2000.",
        "--workdir=FOLDER": _WORKDIR,
        "--stages=NAME,NAME": _STAGES,
        "--dry_run": _DRY_RUN,
        "--overwrite": _OVERWRITE,
    },
    "Several hosts": {
        "--distributed=CHOICE": _DISTRIBUTED,
        "--coordinator=HOST:PORT": _COORDINATOR,
        "--num_processes=NUMBER": _NUM_PROCESSES,
        "--process_id=NUMBER": _PROCESS_ID,
        "--start_timeout=SECONDS": _START_TIMEOUT,
    },
    "Further pages": {
        "--list": "The configs, and the arguments of each.",
        "--commands": "The other commands: measuring images, preparing data, converting models, benchmarks.",
        "--helpfull": "Every flag, those of the libraries too.",
        "--version": "The version.",
    },
}


def main(argv: list[str]) -> None:
    """Plans the run and carries it out."""
    if argv[1:]:
        raise UserError(
            f"{argv[1]!r} is no flag; flags are written --name=value, lists without spaces; --help shows them"
        )
    if _CONFIG.value is None or not _WORKDIR.value:
        raise UserError("give --config=configs/digits.py and --workdir=FOLDER; --help shows examples")
    validate(_CONFIG.value)
    config = FrozenConfigDict(_CONFIG.value)
    workdir = paths.absolute(_WORKDIR.value)
    if paths.is_file(workdir):
        raise UserError(f"--workdir={workdir} is a file; give a folder")
    runtime.configure(compilation_cache=runtime.cache_folder(workdir))
    place = hosts.given_place(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    hosts.start(_DISTRIBUTED.value, place, _START_TIMEOUT.value)
    hosts.check_alone()
    hosts.check_equal(files.digest(configuration.resolved(config)), "config")
    hosts.listen_for_stop()
    hosts.listen_for_maintenance()
    # Imported here: these are slow, and neither --help nor the refusal of a bad config needs them.
    from tdsm_jax import job
    from tdsm_jax.run import Run

    planned_job = job.planned_job(Run(config, workdir), _STAGES.value)
    planned, todo = planned_job.planned, planned_job.todo
    if _DRY_RUN.value:
        print(json.dumps(configuration.resolved(config), indent=2))
        print(planned_job.description)
        hosts.finish()
        return
    agreed = [[p.unit.name, p.hash, p.done] for p in planned], [p.unit.name for p in todo]
    hosts.check_equal(files.digest(agreed), "view of the workdir, data or --stages")  # from here on files change
    job.execute(planned_job, _OVERWRITE.value)
    made = [workdir / path for p in todo for path in p.unit.makes if paths.is_file(workdir / path)]
    hosts.finish()
    logging.info("made %s", ", ".join(str(path) for path in made[-2:]) or "nothing: everything is there already")


def help_page() -> str:
    """Returns what --help shows."""
    return manual.page(__doc__, _GROUPS)


_PAGES = {
    "help": help_page,
    "h": help_page,
    "list": manual.configs,
    "commands": manual.commands,
    "version": manual.version,
}


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; what is wrong with it ends in a `UserError`. A page that is asked for ends it."""
    for argument in argv[1:]:
        if argument.startswith("-") and (name := argument.lstrip("-")) in _PAGES:
            print(_PAGES[name]())
            sys.exit(0)
    given = [argument.lstrip("-").partition("=") for argument in argv[1:] if argument.startswith("-")]
    specification = next((value for name, _, value in given if name == "config"), "")
    if "--config" in argv[:-1]:  # the value as an argument of its own
        specification = argv[argv.index("--config") + 1]
    keys = [name.removeprefix("config.") for name, _, _ in given if name.startswith("config.")]
    if specification:
        configuration.check_overrides(specification, keys)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(str(error).partition("\n")[0]) from None


def complete(argv: list[str]) -> list[str]:
    """Names the config file in full, and adds the one that sampling a given model needs where there is none."""
    argv = [located(argument, before) for before, argument in zip(["", *argv], argv, strict=False)]
    names = {argument.lstrip("-").partition("=")[0] for argument in argv[1:] if argument.startswith("-")}
    if "config" in names or "config.init_from" not in names:
        return argv
    base = configuration.CONFIGS / "base.py"
    model = next((a.partition("=")[2] for a in argv if a.lstrip("-").startswith("config.init_from=")), "")
    default = [] if "workdir" in names else [f"--workdir=runs/samples-of-{name_of(pathlib.PurePath(model))}"]
    return [argv[0], f"--config={base}", "--config.methods=('init',)", *default, *argv[1:]]


def located(argument: str, before: str) -> str:
    """Returns an argument of the command line, the config in it by the path of its file; `before` stands before it."""
    name, given, specification = argument.partition("=")
    if name in ("--config", "-config") and given:
        prefix = f"{name}="
    elif before in ("--config", "-config"):
        prefix, specification = "", argument
    else:
        return argument
    path, arguments = configuration.locate(specification)
    return f"{prefix}{path}{':' if arguments else ''}{arguments}"


def name_of(model: pathlib.PurePath) -> str:
    """Returns the name of a model file's folder; of a checkpoint the method's, and the step."""
    if model.parent.name == "checkpoints":
        return f"{model.parent.parent.name}-{model.name}"
    return model.parent.name or "model"


def entry_point() -> None:
    """Runs the command line; a `UserError` is printed as one line, with exit code 2, a stop ends with 0."""

    def work() -> None:
        sys.argv = complete(sys.argv)  # where config_flags looks for overrides
        app.run(main, flags_parser=parse_flags)

    logging.set_verbosity(logging.INFO)
    carry_out(work)


if __name__ == "__main__":
    entry_point()
