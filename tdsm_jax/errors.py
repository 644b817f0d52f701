"""The exceptions that are no bugs: what the user got wrong, and being asked to stop."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input, said in one line: what was wrong and what to do about it.

    `main` prints the message and ends with `exit_code`; every other exception is a bug and keeps its traceback.
    """

    exit_code = 2


class Unreachable(UserError):
    """Something outside that is not there now and may be later: another host, a bucket. Trying again may help."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class Stopped(Exception):
    """The run was asked to stop and has saved what there was to save; the same command goes on."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the nearest valid name, else the list of valid names."""
    valid = sorted(valid)
    nearest = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else f"; valid: {', '.join(valid)}"


def printable(text: str) -> str:
    """Returns text of a file fit for an error message: ASCII, on one line, short."""
    plain = ascii(text)[1:-1]
    return plain if len(plain) <= 80 else f"{plain[:80]}..."
