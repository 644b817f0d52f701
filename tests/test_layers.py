"""The house: each room imports only the rooms before it, and the maths knows no files, config or framework."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "tdsm_jax"
# A room imports itself and the rooms before it.
ROOMS = (
    "__init__", "errors", "roll_call", "hosts", "paths", "files", "runtime", "command",
    "labels", "networks", "diffusion", "data", "training", "evaluation", "interop",
    "sampler", "extractors", "config", "score_network", "validation", "pipeline", "paper", "run_data", "run", "checks",
    "image_stages", "label_stages", "model_stages", "refinement", "judge_stages", "results", "robust_losses", "plan",
    "job", "compare_runs", "make_ref_stats", "compare", "sampling_options", "evaluate", "sweep", "manual", "main",
    "__main__", "benchmark",
)  # fmt: skip
SOURCES = sorted(PACKAGE.rglob("*.py"))
EVALUATION_MATHS = ("pairs", "frechet", "neighbours", "kernels", "statistics", "class_wise")
MATHS = [
    path
    for path in SOURCES
    if path.parent.name in ("labels", "diffusion")
    or (path.parent.name == "evaluation" and path.stem in EVALUATION_MATHS)
]
FORBIDDEN_IN_MATHS = (
    "flax",
    "optax",
    "orbax",
    "ml_collections",
    "absl",
    "os",
    "pathlib",
    "tdsm_jax.files",
    "tdsm_jax.paths",
    "tdsm_jax.hosts",
)


def imported(path):
    """Yields the full names of all modules a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    here = ROOMS.index(room_of(path))
    for name in imported(path):
        if name.startswith("tdsm_jax."):
            room = name.split(".")[1]
            if room == "__version__":  # of the package itself
                continue
            assert ROOMS.index(room) <= here, f"{path.name} imports {name}, which lies above it"


@pytest.mark.parametrize("path", MATHS, ids=lambda path: path.name)
def test_maths_knows_no_files_config_or_framework(path):
    for name in imported(path):
        assert not any(name == f or name.startswith(f"{f}.") for f in FORBIDDEN_IN_MATHS), name


def test_every_room_is_listed():
    assert {room_of(path) for path in SOURCES} <= set(ROOMS)
