"""Measurements: python -m tdsm_jax.benchmark NAME, where --help after a name shows examples."""

import ast
import pathlib
import runpy
import sys

from tdsm_jax.errors import did_you_mean

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
    "windows",
    "reading",
    "soak",
)


def listing() -> str:
    """Returns the commands, each with the first line of its docstring; none is imported for it."""
    lines = []
    for name in COMMANDS:
        source = pathlib.Path(__file__).with_name(f"{name}.py").read_text()
        lines.append(f"  {name:<12} {ast.get_docstring(ast.parse(source)).splitlines()[0]}")
    return "\n".join(lines)


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
