"""torch-fidelity's Inception network and its resize, without the rest of that package, which wants torchvision."""

import importlib
import importlib.util
import sys
import types

import pytest

NAMES = ("64", "192", "768", "2048", "logits_unbiased")


def modules():
    """Returns the modules of the network and of the resize; without the package or torch the test is skipped."""
    pytest.importorskip("torch")
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("torch-fidelity is not installed")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    before = sys.modules.get("torch_fidelity")
    sys.modules["torch_fidelity"] = package
    try:
        names = ("feature_extractor_inceptionv3", "interpolate_compat_tensorflow")
        return tuple(importlib.import_module(f"torch_fidelity.{name}") for name in names)
    finally:
        if before is None:
            del sys.modules["torch_fidelity"]
        else:
            sys.modules["torch_fidelity"] = before


def extractor(weights_path):
    """Returns the network of a file of torch.save, which maps uint8 [B,3,H,W] to the arrays of `NAMES`."""
    return modules()[0].FeatureExtractorInceptionV3("inception", list(NAMES), str(weights_path))
