"""The frame of the small commands: arguments in, a `UserError` or `OSError` out as one line with exit code 2."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable

from tdsm_jax import hosts, runtime
from tdsm_jax.errors import Stopped, UserError


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
    except (UserError, OSError) as error:
        _say(error)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def add_host_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how the hosts of a command find one another."""
    group = parser.add_argument_group("several hosts: the same command on each, files where all of them see them")
    group.add_argument("--distributed", choices=("auto", "on", "off"), default="auto", help="as of tdsm_jax.main")
    group.add_argument("--coordinator", help="HOST:PORT of process 0, where the machine does not say it")
    group.add_argument("--num_processes", type=int, help="how many hosts there are")
    group.add_argument("--process_id", type=int, help="the number of this host, from 0")
    group.add_argument("--start_timeout", type=int, default=300, help="seconds to wait for the others (%(default)s)")


def run_on_hosts(parser: argparse.ArgumentParser, main: Callable[[argparse.Namespace], None]) -> None:
    """Parses the command line and runs `main` on all devices of all hosts; SIGTERM stops it where it can go on."""

    def work() -> None:
        given = parser.parse_args()
        runtime.configure()
        place = hosts.given_place(given.coordinator, given.num_processes, given.process_id)
        hosts.start(given.distributed, place, given.start_timeout)
        hosts.check_alone()
        hosts.listen_for_stop()
        hosts.listen_for_maintenance()
        main(given)
        hosts.finish()

    carry_out(work, (UserError, OSError))


def carry_out(work: Callable[[], None], users: tuple[type[Exception], ...] = (UserError,)) -> None:
    """Runs `work`; what ends it early ends this process with a line and its exit code, and the other hosts hear of it.

    Errors of `users` are the user's to mend: one line, exit code 2 or the error's own. A stop ends with 0.
    """
    try:
        work()
    except users as error:
        _say(error)
        hosts.leave(getattr(error, "exit_code", 2))
    except Stopped:
        print("stopped as asked; the same command goes on from here", file=sys.stderr)
        hosts.finish()
        sys.exit(0)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        hosts.leave(130, at_once=True)
    except Exception as error:  # a bug, or a host whose peer is gone: the others must hear of either
        traceback.print_exc()
        hosts.await_explanation(error)
        hosts.leave(1)


def _say(error: Exception) -> None:
    message = str(error)
    if isinstance(error, OSError):
        said = error.strerror or str(error)
        message = said if error.filename is None else f"{error.filename}: {said}"
    print(f"{_red('error:')} {message}", file=sys.stderr)


def _red(word: str) -> str:
    """Returns a word in red where standard error is a terminal that may show it (https://no-color.org)."""
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\033[31m{word}\033[0m" if coloured else word
