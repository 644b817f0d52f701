"""The command `tdsm-jax`: the main job, or with the name of a command first that command.

tdsm-jax --config=digits --workdir=runs/digits      (python -m tdsm_jax.main ...)
tdsm-jax evaluate --checkpoint=...                  (python -m tdsm_jax.evaluate ...)
"""

import runpy
import sys

from tdsm_jax import manual
from tdsm_jax.errors import did_you_mean


def entry_point() -> None:
    """Runs the command named first with the other arguments; without a name, the main job."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if not name or name.startswith("-"):
        name = "main"
    elif name in manual.COMMANDS:
        del sys.argv[1]
    else:
        print(f"error: no command {name!r}{did_you_mean(name, manual.COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    runpy.run_module(f"tdsm_jax.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    entry_point()
