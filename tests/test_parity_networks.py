"""The score networks against the official ones, given the official state dicts; the way back is exact."""

import functools

import jax
import numpy as np
import pytest

from golden_rule import official_state
from tdsm_jax.diffusion.process import PROCESSES, make_denoiser
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
