"""The tables of Na et al. 2024 (TDSM) as cells to run, and what is finished of them beside the published values.

  python -m tdsm_jax.paper                               (every cell, its published values and where they stand)
  python -m tdsm_jax.paper --collect runs/paper          (one Markdown table of what is finished)
  python -m tdsm_jax.paper --collect runs/smoke --smoke  (runs on made-up images, too)

A cell is a run of configs/paper.py, whose docstring shows the command, in a folder of the cell's name under the one to
collect; more seeds are folders seed1, seed2, ... inside it. What a run did is read from the manifests of its units,
not from its name: a run that is not the recipe has a row of its own with what differs, and one on made-up images is
left out unless --smoke asks for it.
"""

import argparse

from tdsm_jax.command import new_parser, run_command
from tdsm_jax.errors import UserError
from tdsm_jax.paper import cells


def main(arguments: argparse.Namespace) -> None:
    """Prints all cells, or the table of what is finished under a folder."""
    if not arguments.collect:
        if arguments.smoke:
            raise UserError("--smoke goes with --collect FOLDER")
        print(cells.manifest())
        return
    from tdsm_jax.paper import table  # which imports JAX; the list of cells needs none of it

    print(table.collect(arguments.collect, arguments.smoke))


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--collect", help="folder of the cells' workdirs: print what is finished of them")
    parser.add_argument("--smoke", action="store_true", help="with --collect: runs on made-up images, too")
    run_command(parser, main)
