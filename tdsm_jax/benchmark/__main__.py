"""Measurements. Each is a command of its own, whose --help shows examples:

{commands}
"""

import ast
import pathlib
import runpy
import sys

from tdsm_jax.errors import UserError, did_you_mean

HERE = pathlib.Path(__file__).parent


def commands() -> dict[str, str]:
    """Returns the commands beside this file and the first line of each one's docstring."""
    texts = {path.stem: ast.get_docstring(ast.parse(path.read_text())) for path in sorted(HERE.glob("*.py"))}
    sources = {name: (HERE / f"{name}.py").read_text() for name in texts}
    return {
        name: text.splitlines()[0]
        for name, text in texts.items()
        if text and name != "__main__" and '__name__ == "__main__"' in sources[name]
    }


def main() -> None:
    """Runs the command named first, with the other arguments."""
    known = commands()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h"):
        lines = "\n".join(f"  python -m tdsm_jax.benchmark {name:<12} {text}" for name, text in known.items())
        print(__doc__.format(commands=lines))
        return
    if name not in known:
        print(f"error: {UserError(f'no benchmark {name!r}{did_you_mean(name, known)}')}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[0]
    runpy.run_module(f"tdsm_jax.benchmark.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
