"""The frame of the small commands: arguments in, a `UserError` out as one line with exit code 2."""

import argparse
import sys
from collections.abc import Callable

from tdsm_jax.errors import UserError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}; --help shows examples")


def new_parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser that shows a module's docstring as its help."""
    return _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)


def run_command(parser: argparse.ArgumentParser, main: Callable[[argparse.Namespace], None]) -> None:
    """Parses the command line and runs `main`."""
    try:
        main(parser.parse_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
