"""The frame of the small commands: arguments in, a `UserError` or `OSError` out as one line with exit code 2."""

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
    """Parses the command line and runs `main`; a file that cannot be read or written is the user's matter too."""
    try:
        main(parser.parse_args())
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        said = error.strerror or str(error)
        _fail(said if error.filename is None else f"{error.filename}: {said}")


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
