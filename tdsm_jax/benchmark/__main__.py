"""Measurements: python -m tdsm_jax.benchmark NAME, where --help after a name shows examples."""

import runpy
import sys

from tdsm_jax.errors import did_you_mean
from tdsm_jax.manual import first_line, module_file

COMMANDS = (
    "step",
    "sampling",
    "convolution",
    "attention",
    "startup",
    "torch",
    "tpu",
    "tpu_block",
    "scaling",
    "stress",
    "estimators",
    "label_noise",
    "corrupted_images",
    "variants",
    "reading",
    "soak",
)


def listing() -> str:
    """Returns the commands, each with the first line of its docstring; none is imported for it."""
    return "\n".join(f"  {name:<16} {first_line(module_file(f'benchmark.{name}'))}" for name in COMMANDS)


def main() -> None:
    """Runs the command named first, with the other arguments."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h"):
        print(f"{__doc__}\n\n{listing()}")
        return
    if name not in COMMANDS:
        print(f"error: no benchmark {name!r}{did_you_mean(name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[0]
    runpy.run_module(f"tdsm_jax.benchmark.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
