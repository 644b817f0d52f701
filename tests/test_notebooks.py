"""The notebooks of colab/: they run from top to bottom, and what is saved with them is what a reader should see."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

ROOT = pathlib.Path(__file__).parents[1]
COLAB = ROOT / "colab"
NAMES = (
    "1_what_label_noise_does",
    "2_digits_end_to_end",
    "3_cifar10_on_a_gpu_or_tpu",
    "4_your_own_folder_of_images",
)
LOCAL = re.compile(r"/(?:home|root|tmp|work|Users|var|opt)/")  # a path of the machine that they were run on
_spec = importlib.util.spec_from_file_location("execute_notebooks", COLAB / "execute.py")
execute = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(execute)


@pytest.fixture(params=NAMES)
def saved(request):
    return COLAB / f"{request.param}.ipynb"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(outputs):
    """Every text that outputs show, but no pictures."""
    for output in outputs:
        yield output.get("text", "")
        yield from (value for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def test_every_notebook_is_known():
    assert [path.stem for path in execute.notebooks()] == list(NAMES)
    page = (COLAB / "README.md").read_text()
    assert all(f"({name}.ipynb)" in page for name in NAMES)


def test_saved_outputs_are_whole_and_of_one_run(saved):
    notebook = nbformat.read(saved, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert not [text for text in texts(outputs) if LOCAL.search(text)]
    assert saved.stat().st_size < 1.5e6


def test_badge_and_set_up_are_the_common_ones(saved):
    assert nbformat.read(saved, as_version=4) == execute.read(saved), "run python colab/execute.py --only_common"
    title, badge = nbformat.read(saved, as_version=4).cells[0].source.split("\n\n")[:2]
    assert title.startswith("# ")
    assert badge.endswith(f"/github/{execute.REPOSITORY}/blob/{execute.BRANCH}/colab/{saved.name})")


def test_links_and_commands_lead_somewhere(saved):
    text = "\n".join(cell.source for cell in nbformat.read(saved, as_version=4).cells)
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        assert (COLAB / target).is_file(), target
    for path in re.findall(r"`(?:docs|launch)/[\w.]+`|configs/\w+\.py", text):
        assert (ROOT / path.strip("`")).is_file(), path
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module), module


def run_small(name, folder):
    notebook = execute.read(COLAB / f"{name}.ipynb")
    cache = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"), "JAX_PLATFORMS": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in cache.items():
            patch.setenv(variable, value)
        execute.execute(notebook, folder, small=True)  # an error in a cell raises
    assert code_cells(notebook)[-1].execution_count == len(code_cells(notebook))
    shown = [text for cell in code_cells(notebook) for text in texts(cell.outputs)]
    return "".join(shown)


def test_the_world_of_points_runs(tmp_path):
    shown = run_small("1_what_label_noise_does", tmp_path)
    assert "jax" in shown and "on cpu" in shown
    largest = float(re.search(r"largest \|M - sum_y w_y D_y\|: (\S+)", shown).group(1))
    assert largest < 1e-5


def test_the_digits_run_from_end_to_end(tmp_path):
    shown = run_small("2_digits_end_to_end", tmp_path)
    assert "recovery" in shown and "label fidelity" in shown
    assert (tmp_path / "runs" / "digits" / "report.html").is_file()


@pytest.mark.slow
def test_cifar10_runs_on_prepared_images(tmp_path):
    shown = run_small("3_cifar10_on_a_gpu_or_tpu", tmp_path)
    assert "100 images to train, 40 to test" in shown and "images/s" in shown
    assert (tmp_path / "runs" / "cifar10" / "evaluation" / "tdsm" / "metrics.json").is_file()


@pytest.mark.slow
def test_a_folder_of_images_runs(tmp_path):
    shown = run_small("4_your_own_folder_of_images", tmp_path)
    assert "in a wrong folder" in shown and "really misnamed" in shown
    assert (tmp_path / "runs" / "photos" / "report.html").is_file()


def set_up(accelerator, monkeypatch, folder):
    """Runs the set-up cell alone, in this process, and returns its variables."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("TDSM_JAX_NOTEBOOK", raising=False)
    monkeypatch.setattr("tdsm_jax.runtime.configure", lambda compilation_cache: None)
    variables = {}
    source = execute.SETUP.substitute(repository="someone/tdsm_jax", branch="main", accelerator=accelerator)
    exec(compile(source, "set-up", "exec"), variables)
    return variables


def test_set_up_installs_nothing_where_the_package_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", None)
    variables = set_up(False, monkeypatch, tmp_path)
    assert not variables["SMALL"]
    assert f"jax {jax.__version__} on cpu" in capsys.readouterr().out


def test_set_up_stops_in_one_line_without_the_accelerator_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with pytest.raises(SystemExit, match="^no GPU or TPU found: choose one .*$"):
        set_up(True, monkeypatch, tmp_path)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    set_up(True, monkeypatch, tmp_path)


@pytest.mark.parametrize("code", [0, 1])
def test_set_up_installs_beside_the_jax_that_is_there(code, tmp_path, monkeypatch):
    calls = []

    def run(command, check=False):
        calls.append([os.fspath(part) for part in command])
        return subprocess.CompletedProcess(command, 0 if check else code)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    if code:
        with pytest.raises(SystemExit, match=f"^jax {jax.__version__} does not go with tdsm_jax: .*$"):
            set_up(False, monkeypatch, tmp_path)
    else:
        set_up(False, monkeypatch, tmp_path)
    clone, pip = calls
    assert clone[:2] == ["git", "clone"] and "https://github.com/someone/tdsm_jax" in clone
    assert pip[1:4] == ["-m", "pip", "install"] and "--constraint=kept.txt" in pip
    kept = (tmp_path / "kept.txt").read_text().splitlines()
    assert kept[0] == f"jax=={jax.__version__}" and kept[1].startswith("jaxlib==")
