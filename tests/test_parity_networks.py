"""The score networks against the official ones, given the official state dicts; the way back is exact."""

import functools
import re

import jax
import numpy as np
import pytest

from golden_rule import official_state
from tdsm_jax.diffusion.process import PROCESSES, make_denoiser
from tdsm_jax.errors import UserError
from tdsm_jax.interop import torch_params
from tdsm_jax.interop.torch_params import network_from_official, network_to_official

STORED = ("net_ddpmpp_edm", "net_ddpmpp_vp", "net_ncsnpp_edm", "net_ncsnpp_ve", "net_adm_edm")
FULL_SIZE = ("rule_ddpmpp_cifar10", "rule_ncsnpp_cifar100")


def denoised(arrays, process, *, null):
    """Returns our output [B,C,H,W] for the inputs of an array file."""
    network, variables, _ = network_from_official(official_state(arrays))
    label = np.full(len(arrays["y"]), network.num_classes) if null else arrays["y"]

    @jax.jit
    def denoise(variables, x, sigma, label, augment_label):
        return make_denoiser(process, functools.partial(network.apply, variables))(x, sigma, label, augment_label)

    x = arrays["x"].transpose(0, 2, 3, 1)
    with jax.default_matmul_precision("highest"):
        D = denoise(variables, x, arrays["sigma"], label, arrays.get("augment_labels"))
    return np.asarray(D).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("name", STORED)
def test_the_denoiser_returns_the_official_output(name, null, golden):
    arrays = golden(name)
    process = PROCESSES[name.rpartition("_")[2]]()
    expected = arrays["denoised_null" if null else "denoised"]
    np.testing.assert_allclose(denoised(arrays, process, null=null), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_full_size_network_returns_the_official_output(name, golden):
    arrays = golden(name)
    D = denoised(arrays, PROCESSES["edm"](), null=False)
    np.testing.assert_allclose(D, arrays["denoised"], atol=1e-4 * np.abs(arrays["denoised"]).max(), rtol=0)


@pytest.mark.parametrize("name", STORED + FULL_SIZE)
def test_import_and_export_return_the_state_dict_exactly(name, golden):
    state = official_state(golden(name))
    back = network_to_official(*network_from_official(state))
    assert back.keys() == state.keys()
    for key, array in state.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)


# -- what does not fit --------------------------------------------------------------------------------------


CHANGES = {
    "dropped": lambda array: None,
    "flattened": lambda array: array.reshape(-1, 1, 1),
    "without rank": lambda array: np.zeros((), array.dtype),
    "emptied": lambda array: array[:0],
    "without inputs": lambda array: array[:, :0] if array.ndim > 1 else array[:0],
    "doubled": lambda array: np.concatenate([array, array]),
    "as text": lambda array: array.astype(str),
}


@pytest.fixture
def traced_once(monkeypatch):
    """Each architecture is traced once only: most changes leave it as it is."""
    monkeypatch.setattr(torch_params, "variable_shapes", functools.lru_cache(torch_params.variable_shapes))


@pytest.mark.parametrize("name", ["net_ncsnpp_edm", "net_adm_edm"])
def test_a_state_dict_that_changes_is_read_exactly_or_refused_in_one_line(name, golden, traced_once):
    state = official_state(golden(name))
    for changed in state:
        for change, function in CHANGES.items():
            array = function(state[changed])
            made = {key: kept for key, kept in (state | {changed: array}).items() if kept is not None}
            try:
                back = network_to_official(*network_from_official(made))
            except UserError as error:
                assert "\n" not in str(error)
            else:  # the filters are known, and not every network has labels
                assert change == "dropped" and changed.endswith(
                    ("resample_filter", "map_label.weight", "map_augment.weight")
                )
                assert back.keys() - {changed} == made.keys()


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (
            lambda name: re.sub(r"\d+x\d+_conv", "30000x30000_conv", name),
            "no array is called enc.NxN_conv.weight with N up to 4096",
        ),
        (lambda name: re.sub(r"\d+x\d+_conv", "4096x4096_conv", name), "each must be half of the one before"),
        (lambda name: name.replace("map_layer0", "map_\x1b[31m"), r"lacks map_layer0.bias, map_layer0.weight"),
        (lambda name: name.replace("map_layer0.bias", "weight"), "lacks map_layer0.bias"),
    ],
)
def test_names_that_do_not_fit_are_refused_exactly(rename, said, golden):
    state = {rename(name): array for name, array in official_state(golden("net_adm_edm")).items()}
    with pytest.raises(UserError) as error:
        network_from_official(state)
    assert said in str(error.value) and str(error.value).isprintable()


def test_arrays_with_and_without_prefix_are_not_mixed_exactly(golden):
    state = official_state(golden("net_adm_edm"))
    with pytest.raises(UserError, match="with and without 'model.'"):
        network_from_official(state | {"map_layer0.bias": state["model.map_layer0.bias"]})
