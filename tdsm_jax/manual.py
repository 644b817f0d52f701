"""What the command line says of itself: its flags, the configs with their arguments, the other commands."""

import ast
import pathlib
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from absl import flags

from tdsm_jax import __version__
from tdsm_jax import config as configuration
from tdsm_jax.config import PACKAGE

# Modules to run, `python -m tdsm_jax.NAME` or `tdsm-jax NAME`, in the order of the work.
COMMANDS = (
    "main",
    "evaluate",
    "sweep",
    "make_ref_stats",
    "compare",
    "compare_runs",
    "evaluation.table",
    "paper",
    "data.prepare",
    "data.convert",
    "data.label_files",
    "interop.edm_pickle",
    "interop.export",
    "benchmark",
)
WIDTH = 112  # columns
_INDENT = 26  # of what a flag means


def version() -> str:
    """Returns the name of the program and its version."""
    return f"tdsm_jax {__version__}"


def page(examples: str, groups: Mapping[str, Mapping[str, flags.FlagHolder | str]]) -> str:
    """Returns the short help: `examples`, then in each group how a flag is written and what it, or a text, says."""
    parts = [examples.strip()]
    for title, entries in groups.items():
        meanings = {form: said if isinstance(said, str) else _help(said) for form, said in entries.items()}
        parts.append("\n".join([f"{title}:", *(_entry(form, meaning) for form, meaning in meanings.items())]))
    return "\n\n".join(parts)


def configs() -> str:
    """Returns every config that comes with the program, what it is, and its arguments with their defaults or choices.

    The arguments are asked of the configs themselves.
    """
    lines = ["--config=configs/FILE.py:NAME=VALUE,NAME=VALUE,SWITCH; of choices the first one is the default."]
    for path in configuration.runnable():
        taken = configuration.arguments_of(path)
        choices = {name: default for name, default in taken.items() if isinstance(default, tuple)}
        others = [_argument(name, default) for name, default in taken.items() if name not in choices]
        lines += ["", f"configs/{path.name}: {first_line(path)}"]
        for text in ("  ".join(others), *(f"{name}= {', '.join(valid)}" for name, valid in choices.items())):
            lines += textwrap.wrap(text, WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8)
    return "\n".join(lines)


def commands() -> str:
    """Returns the commands beside the main one, each with the first line of its docstring."""
    lines = ["tdsm-jax NAME, or python -m tdsm_jax.NAME; each has --help.", ""]
    lines += (_entry(name, first_line(module_file(name))) for name in COMMANDS)
    return "\n".join(lines)


def module_file(name: str) -> pathlib.Path:
    """Returns the source of a module of this package that can be run, "data.prepare"."""
    path = PACKAGE.joinpath(*name.split("."))
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def first_line(source: pathlib.Path) -> str:
    """Returns the first line of a file's docstring; the file is not run."""
    return (ast.get_docstring(ast.parse(source.read_text())) or "").partition("\n")[0]


def _help(holder: flags.FlagHolder) -> str:
    return re.sub(r"^<[^>]*>: ", "", flags.FLAGS[holder.name].help)  # absl puts the choices first


def _argument(name: str, default: Any) -> str:
    return name if isinstance(default, bool) else f"{name}={default}"


def _entry(name: str, meaning: str) -> str:
    lines = textwrap.wrap(" ".join(meaning.split()), WIDTH - _INDENT, break_on_hyphens=False)
    first = f"  {name:<{_INDENT - 3}} "
    if len(first) > _INDENT:  # the meaning starts on a line of its own
        return textwrap.indent("\n".join(lines), " " * _INDENT).join((first.rstrip() + "\n", ""))
    return ("\n" + " " * _INDENT).join([first + lines[0], *lines[1:]])
