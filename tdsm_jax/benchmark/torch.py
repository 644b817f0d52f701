"""Training steps and sampling beside PyTorch on the same work: network, weights, batch, dtype, optimiser and rule.

  python -m tdsm_jax.benchmark.torch --out=runs/torch
  python -m tdsm_jax.benchmark.torch --out=runs/torch --torch_python=VENV/bin/python --rounds=20
  python -m tdsm_jax.benchmark.torch --out=runs/gpu --device=cuda --dtype=bfloat16 --config=configs/cifar10.py
      --config.data.name=synthetic --config.classifier.steps=300

Fits one noise-conditional classifier, hands all weights over to a process of PyTorch, compares outputs in float32 to
1e-4 and then times both processes in turn: plain DSM; TDSM with the floor of S on the null label; TDSM with the
threshold, packed here and a loop over classes there, as published; Heun sampling. PyTorch runs eager and compiled.
PyTorch is the extra [torch].
"""

import os
import pathlib
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from tdsm_jax import files, runtime
from tdsm_jax.benchmark import torch_handover
from tdsm_jax.benchmark.cells import carry_out
from tdsm_jax.benchmark.timing import compiling_afresh, described
from tdsm_jax.benchmark.torch_process import TorchProcess, Variant, check_python
from tdsm_jax.benchmark.torch_timing import COMPILED, EAGER, JAX, JaxTasks, about, measure, table
from tdsm_jax.config import CONFIGS
from tdsm_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", str(CONFIGS / "digits.py"), "Config of network and data.")
_OUT = flags.DEFINE_string("out", None, "Folder of the classifier, of what is handed over and of torch.json.")
_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "cuda"], "Where both compute.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Arithmetic of the score network.")
_BATCH = flags.DEFINE_integer("batch", None, "Images a step and a sampling (config.score.batch_size).", 3)
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Turns of each process.", 1)
_STEPS = flags.DEFINE_integer("steps", 3, "Training steps of each task in a turn; of samplings there is one.", 1)
_PYTHON = flags.DEFINE_string("torch_python", sys.executable, "The Python that has PyTorch; it needs no JAX.")
_COMPILE = flags.DEFINE_bool("torch_compile", True, "Also time torch.compile, which takes minutes to compile on a CPU.")
_THREADS = flags.DEFINE_integer("torch_threads", None, "Threads of PyTorch on the CPU (all that JAX may use).", 1)


def main(argv: list[str]) -> None:
    """Prepares both sides, compares, times, prints the table and writes torch.json."""
    logging.set_verbosity(logging.WARNING)
    if argv[1:] or not _OUT.value:
        raise UserError("give --out=FOLDER, and every flag as --name=value; --help shows examples")
    out, config, device = pathlib.Path(_OUT.value).absolute(), _CONFIG.value, _DEVICE.value
    check_python(_PYTHON.value, device)
    runtime.configure(compilation_cache=str(out / "compiled"))
    choose_device(device)
    torch_handover.like_for_like(config, _DTYPE.value, _BATCH.value)
    run = carry_out(config, out / "run", ("labels", "classifier", "transition"))

    params, batches, probe = (
        torch_handover.stirred_params(run), torch_handover.make_batches(run), torch_handover.make_probe(run)
    )  # fmt: skip
    threads = _THREADS.value or len(os.sched_getaffinity(0))
    torch_handover.hand_over(run, params, batches, probe, out, device=device, threads=threads)
    with TorchProcess(_PYTHON.value, out, threads) as torch:
        errors = torch_handover.compare(torch_handover.outputs(run, params, batches[0], probe), torch.outputs())
        print(f"outputs agree to {max(errors.values()):.1e} of their size", flush=True)
        with compiling_afresh():  # PyTorch has no cache either
            ours = JaxTasks(run, params, batches, probe)
            sides = {JAX: ours, EAGER: Variant(torch, "eager")}
            if _COMPILE.value:
                sides[COMPILED] = Variant(torch, "compile")
            records = measure(sides, config.score.batch_size, _ROUNDS.value, _STEPS.value)
        figures = about(run) | {"pytorch": torch.ask("about"), "errors": errors}
    report = figures | {"capacity": ours.capacity, "records": records}
    files.write_json(out / "torch.json", report)
    print(f"{described(figures)}, torch {figures['pytorch']['torch']}, {figures['dtype']}")
    print(table(records))


def choose_device(device: str) -> None:
    """Makes JAX compute on one device of this kind, with memory left to the other process, or raises `UserError`."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax.config.update("jax_platforms", device)
    try:
        count = jax.device_count()
    except RuntimeError:
        raise UserError(f"JAX finds no device for --device={device}; install tdsm_jax[cuda] or use cpu") from None
    if count != 1:
        raise UserError(f"the comparison is of one device and JAX sees {count}; set CUDA_VISIBLE_DEVICES=0")


if __name__ == "__main__":
    try:
        app.run(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
