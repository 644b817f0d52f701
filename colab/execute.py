"""Runs the notebooks of this folder from top to bottom and saves them with what they show.

  python colab/execute.py                                       all: ten minutes on two CPU cores
  python colab/execute.py colab/1_what_label_noise_does.ipynb   one of them
  python colab/execute.py --small --out=small                   cut to seconds, saved elsewhere
  python colab/execute.py --only_common                         badge and set-up anew, run nothing

The notebooks are edited as they are, in Jupyter or Colab. Two things are the same in all of them
and stand here: the badge below the title, and the set-up, the first code cell. Both are written
anew at each execution. One that needs an accelerator (a key of its metadata, which Colab reads,
too) runs small where there is none. Needs pip install 'tdsm_jax[notebooks]'.
"""

import argparse
import os
import pathlib
import string
import sys
import tempfile
from unittest import mock

import nbclient
import nbformat

REPOSITORY = "OWNER/tdsm_jax"  # on GitHub: a placeholder until the project has an address there
BRANCH = "main"
FOLDER = pathlib.Path(__file__).resolve().parent
SMALL = {"TDSM_JAX_NOTEBOOK": "small"}  # what makes a notebook run small
_SECONDS_A_CELL = 3600
_BADGE_START = "[![Open in Colab]"

BADGE = string.Template(
    f"{_BADGE_START}(https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/$repository/blob/$branch/colab/$name)"
)
SETUP = string.Template("""\
# @title Set-up: run this first
import importlib.util
import os
import pathlib
import subprocess
import sys
from importlib.metadata import version

SMALL = os.environ.get("TDSM_JAX_NOTEBOOK") == "small"  # every stage cut to seconds, for tests
NEEDS_ACCELERATOR = $accelerator

if importlib.util.find_spec("tdsm_jax") is None:
    source = pathlib.Path("tdsm_jax_source").absolute()
    if not source.exists():
        clone = ["git", "clone", "--quiet", "--depth=1", "--branch=$branch"]
        subprocess.run([*clone, "https://github.com/$repository", source], check=True)
    # The jax of this machine knows its accelerator: it stays as it is.
    pathlib.Path("kept.txt").write_text(f"jax=={version('jax')}\\njaxlib=={version('jaxlib')}\\n")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint=kept.txt"]
    if subprocess.run([*pip, f"--editable={source}"]).returncode:
        raise SystemExit(f"jax {version('jax')} does not go with tdsm_jax: see what pip says above")
    sys.path.insert(0, str(source))

import jax

import tdsm_jax.runtime

tdsm_jax.runtime.configure(compilation_cache="compiled")
device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
print(f"jax {jax.__version__} on {jax.default_backend()}: {device}")
if NEEDS_ACCELERATOR and not SMALL and jax.default_backend() == "cpu":
    raise SystemExit("no GPU or TPU found: choose one (Colab: Runtime > Change runtime type)")""")


def notebooks() -> list[pathlib.Path]:
    """Returns the notebooks of this folder, in order."""
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: pathlib.Path) -> nbformat.NotebookNode:
    """Returns a notebook with its badge and its set-up as they are to be."""
    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0]
    setup = next(cell for cell in notebook.cells if cell.cell_type == "code")
    title, *text = first.source.splitlines()
    rest = "\n".join(line for line in text if not line.startswith(_BADGE_START)).strip("\n")
    badge = BADGE.substitute(repository=REPOSITORY, branch=BRANCH, name=path.name)
    first.source = f"{title}\n\n{badge}\n\n{rest}"
    setup.source = SETUP.substitute(
        repository=REPOSITORY, branch=BRANCH, accelerator="accelerator" in notebook.metadata
    )
    return notebook


def make_up_cifar10(data_dir: pathlib.Path) -> None:
    """Prepares 100 made-up images in the files of CIFAR-10, which notebooks then take for it."""
    sys.path[:0] = [str(FOLDER.parent), str(FOLDER.parent / "tests")]
    import tfds_archives
    from tdsm_jax.data import prepare

    with tempfile.TemporaryDirectory() as name, mock.patch.object(prepare, "registered") as known:
        downloads = pathlib.Path(name)
        tfds_archives.cifar10(downloads)
        known.return_value = tfds_archives.registered_as(downloads)
        prepare.prepare("cifar10", downloads, data_dir)


def execute(notebook: nbformat.NotebookNode, folder: pathlib.Path, small: bool) -> None:
    """Runs all cells in `folder`, with this checkout; an error raises `CellExecutionError`."""
    if small and "accelerator" in notebook.metadata:
        make_up_cifar10(folder / "tfds")
    environment = os.environ | (SMALL if small else {})
    searched = [str(FOLDER.parent), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(searched)
    client = nbclient.NotebookClient(
        notebook,
        timeout=_SECONDS_A_CELL,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)
    notebook.metadata.language_info = {"name": "python"}  # its version is the machine's


def main() -> None:
    """Executes the notebooks that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=pathlib.Path, help="without any, all")
    parser.add_argument("--small", action="store_true", help="every stage cut to seconds")
    parser.add_argument("--out", type=pathlib.Path, help="folder to save to, not in place")
    parser.add_argument("--only_common", action="store_true", help="run nothing")
    given = parser.parse_args()
    for path in given.notebooks or notebooks():
        notebook = read(path)
        if not given.only_common:
            import jax

            lacking = "accelerator" in notebook.metadata and jax.default_backend() == "cpu"
            small = given.small or lacking
            print(f"{path.name}{', small' if small else ''} ...", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                execute(notebook, pathlib.Path(folder), small)
        target = given.out / path.name if given.out else path
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)


if __name__ == "__main__":
    main()
