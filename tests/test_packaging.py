"""What is installed: the wheel runs by itself, the source archive has the tests, one version everywhere."""

import io
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

import tdsm_jax

ROOT = pathlib.Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


def tree():
    """The files that a clone has."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [pathlib.PurePath(name) for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    parts = ("tdsm_jax", "configs", "tests", "docs", "launch", "colab", ".ci")  # an unpacked source archive
    inside = (path for part in parts for path in (ROOT / part).rglob("*") if "__pycache__" not in path.parts)
    return [path.relative_to(ROOT) for path in (*ROOT.iterdir(), *inside) if path.is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel, source archive), built from a copy of the tree without network."""
    pytest.importorskip("setuptools", minversion="77")
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("built")
    for name in tree():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    for what in ("build_sdist", "build_wheel"):
        done = subprocess.run([sys.executable, "-c", BUILD, what, out], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_the_wheel_holds_the_package_its_configs_and_nothing_else(built):
    names = zipfile.ZipFile(built[0]).namelist()
    expected = {str(name) for name in tree() if name.parts[0] == "tdsm_jax"}
    expected |= {f"tdsm_jax/{name}" for name in tree() if name.parts[0] == "configs"}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert "tdsm_jax/py.typed" in expected and any(name.endswith("licenses/LICENSE") for name in names)


def test_the_installed_program_works_in_an_empty_folder(built, tmp_path):
    zipfile.ZipFile(built[0]).extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "JAX_PLATFORMS": "cpu"}
    call = [sys.executable, "-m", "tdsm_jax", "--config=configs/digits.py:smoke", "--workdir=w", "--dry_run"]
    where = "import tdsm_jax; print(tdsm_jax.__file__)"
    ran = subprocess.run([sys.executable, "-c", where], cwd=tmp_path / "empty", env=environment, stdout=subprocess.PIPE)
    assert str(tmp_path).encode() in ran.stdout  # not the checkout
    done = subprocess.run(call, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "report.html" in done.stdout, done.stderr[-3000:]
    assert not list((tmp_path / "empty").iterdir())


def test_the_command_is_installed(built):
    archive = zipfile.ZipFile(built[0])
    text = archive.read(next(name for name in archive.namelist() if name.endswith("entry_points.txt"))).decode()
    assert "tdsm-jax = tdsm_jax.__main__:entry_point" in text


def test_the_source_archive_holds_all_that_a_clone_has(built):
    with tarfile.open(built[1]) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {str(name) for name in tree()} - {".gitignore"} - inside == set()


def test_one_version_everywhere():
    version = tdsm_jax.__version__
    changes = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changes[1] == version
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (\S+)$", citation, re.MULTILINE)[1] == version
    assert "license: Apache-2.0" in citation and "Apache License" in (ROOT / "LICENSE").read_text()
    for path in (ROOT / "setup.py", ROOT / "pyproject.toml", ROOT / "README.md"):
        assert f'"{version}"' not in path.read_text(), f"{path.name} repeats the version"


def test_every_dependency_has_a_lower_bound_and_a_pinned_version():
    source = (ROOT / "setup.py").read_text()
    required = re.findall(r'^        "([A-Za-z_-]+)(?:\[\w+\])?>=[\d.]+[^"]*",  # ', source, re.MULTILINE)
    lines = re.search(r"install_requires=\[\n(.*?)\n    \]", source, re.DOTALL)[1].splitlines()
    assert len(required) == len(lines), "each with a bound and a reason"
    pinned = {
        re.sub("[-_]", "-", line.partition("==")[0].lower())
        for line in io.StringIO((ROOT / "launch" / "constraints.txt").read_text())
        if "==" in line
    }
    assert {re.sub("[-_]", "-", name.lower()) for name in required} <= pinned


def test_no_module_escapes_the_type_checker():
    """The list of modules that are checked less closely names modules that are there, and switches no module off."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    for override in settings["overrides"]:
        assert "ignore_errors" not in override
        for name in override["module"]:
            assert (ROOT / name.replace(".", "/")).with_suffix(".py").is_file(), name
    marked = [path for path in (ROOT / "tdsm_jax").rglob("*.py") if "type: ignore" in path.read_text()]
    assert not marked
