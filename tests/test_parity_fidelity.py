"""FID, KID, Inception Score, precision and recall against torch-fidelity's functions of features."""

import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest

from tdsm_jax.evaluation.frechet import frechet_distance
from tdsm_jax.evaluation.kernels import kid
from tdsm_jax.evaluation.neighbours import neighbour_metrics
from tdsm_jax.evaluation.statistics import inception_score


class _Anything(types.ModuleType):
    """Stands for torchvision, which torch-fidelity imports for its own extractors and data: not what is tested."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (), {})


@pytest.fixture
def fidelity(monkeypatch):
    """Returns name -> metric module of torch-fidelity."""
    pytest.importorskip("torch")
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    names = ("", ".transforms", ".transforms.functional", ".datasets", ".models", ".models.vgg", ".ops", ".utils")
    if importlib.util.find_spec("torchvision") is None:
        for name in names:
            monkeypatch.setitem(sys.modules, f"torchvision{name}", _Anything(f"torchvision{name}"))
    return lambda name: importlib.import_module(f"torch_fidelity.metric_{name}")


def features(count, seed):
    return np.maximum(np.random.default_rng(seed).normal(size=(count, 64)) + 0.1 * seed, 0)


@pytest.fixture
def both():
    import torch

    real, fake = features(500, 0), features(450, 1)
    return real, fake, torch.from_numpy(real), torch.from_numpy(fake)


def test_fid(fidelity, both):
    module, (real, fake, *tensors) = fidelity("fid"), both
    statistics = [module.fid_features_to_statistics(x) for x in tensors]
    expected = module.fid_statistics_to_metric(*statistics, verbose=False)
    assert frechet_distance(real, fake) == pytest.approx(expected[module.KEY_METRIC_FID], rel=1e-9)


def test_kid(fidelity, both):
    module, (real, fake, *tensors) = fidelity("kid"), both
    expected = module.kid_features_to_metric(*tensors[::-1], kid_subset_size=200, kid_subsets=20, verbose=False)
    expected = expected[module.KEY_METRIC_KID_MEAN], expected[module.KEY_METRIC_KID_STD]
    assert kid(real, fake, subset_size=200, subsets=20) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("splits", [1, 7, 10])
def test_inception_score(fidelity, both, splits):
    import torch

    module, logits = fidelity("isc"), 5 * torch.from_numpy(features(103, 2))
    expected = module.isc_features_to_metric(logits, splits)  # shuffled, as it does by default
    expected = expected[module.KEY_METRIC_ISC_MEAN], expected[module.KEY_METRIC_ISC_STD]
    found = inception_score(torch.softmax(logits, dim=1).numpy(), splits)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_precision_and_recall(fidelity, both):
    module, (real, fake, *tensors) = fidelity("prc"), both
    expected = module.prc_features_to_metric(*tensors[::-1], verbose=False)
    values = neighbour_metrics(real, fake, (3,))
    found = values["precision_k3"], values["recall_k3"]
    assert found == pytest.approx((expected[module.KEY_METRIC_PRECISION], expected[module.KEY_METRIC_RECALL]), rel=1e-6)
