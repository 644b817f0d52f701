"""The classifiers against the official ones, given the official state dicts; the way back is exact."""

import functools

import jax
import numpy as np
import pytest

from golden_rule import official_state
from tdsm_jax.diffusion.process import EDM
from tdsm_jax.errors import UserError
from tdsm_jax.interop.torch_classifier import classifier_from_official, classifier_to_official
from tdsm_jax.labels.transition import volmin_matrix
from tdsm_jax.networks.mnist_cnn import MnistCNN
from tdsm_jax.networks.resnet import BLOCKS, ResNet
from tdsm_jax.training.classifier import classify

CNN = "net_classifier_cnn"
RESNETS = {
    "rule_classifier_resnet18": "resnet18",
    "rule_classifier_resnet18_transition": "resnet18",
    "rule_classifier_resnet34": "resnet34",
    "rule_classifier_resnet34_64": "resnet34",
}
ALL = (CNN, *RESNETS)


def official_logits(arrays):
    """Returns our logits [B,K] for the inputs of an array file."""
    network, variables, _ = classifier_from_official(official_state(arrays))

    @jax.jit
    def logits(variables, x, sigma):
        return classify(functools.partial(network.apply, variables), EDM(), x, sigma)[0]

    with jax.default_matmul_precision("highest"):
        return np.asarray(logits(variables, arrays["x"].transpose(0, 2, 3, 1), arrays["sigma"]))


@pytest.mark.parametrize("name", ALL)
def test_the_logits_are_the_official_ones(name, golden):
    arrays = golden(name)
    scale = 1 if name.startswith("net_") else np.abs(arrays["logits"]).max()
    np.testing.assert_allclose(official_logits(arrays), arrays["logits"], atol=1e-4 * scale, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_import_and_export_return_the_state_dict_exactly(name, golden):
    state = official_state(golden(name))
    back = classifier_to_official(*classifier_from_official(state))
    assert back.keys() == state.keys()
    for key, array in state.items():
        assert back[key].dtype == array.dtype
        np.testing.assert_array_equal(back[key], array, err_msg=key)


@pytest.mark.parametrize("name", ALL)
def test_the_architecture_is_read_off_the_state_dict(name, golden):
    arrays = golden(name)
    network, _, V = classifier_from_official(official_state(arrays))
    K = arrays["logits"].shape[1]
    assert network.num_classes == K
    if name == CNN:
        assert isinstance(network, MnistCNN)
    else:
        assert isinstance(network, ResNet)
        assert network.blocks == BLOCKS[RESNETS[name]]
    assert (V is not None) == ("transition" in arrays)
    if V is not None:
        np.testing.assert_allclose(volmin_matrix(V), arrays["transition"], rtol=1e-5)


# -- what does not fit --------------------------------------------------------------------------------------


@pytest.fixture
def state(golden):
    return official_state(golden(CNN))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("model.map_layer1.bias", None, r"lacks model.map_layer1.bias \(1 in all\)"),
        ("model.classifier.conv2.0.weight", None, "no model.classifier.conv2.0.weight"),
        ("model.classifier.dense_3.bias", np.zeros(3), "unknown arrays: model.classifier.dense_3.bias"),
        ("model.classifier.dense_1.bias", np.zeros(3), r"dense_1.bias is \(3,\); .* must be \("),
        ("model.classifier.linear.weight", np.zeros((10, 33)), "33 inputs: no square image"),
        ("model.classifier.conv1.0.weight", np.zeros(4), "4 axes"),
        ("model.classifier.linear.weight", np.zeros((0, 32)), "non-empty"),
        ("model.map_layer0.weight", np.zeros((4, 1)), "come in pairs"),
        ("transition_matrix", np.zeros((2, 3)), r"transition_matrix is \(2, 3\)"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_by_name(name, array, message, state):
    state.pop(name, None)
    if array is not None:
        state[name] = array
    with pytest.raises(UserError, match=message):
        classifier_from_official(state)


def test_another_networks_state_dict_is_refused(golden):
    with pytest.raises(UserError, match="no classifier of TDSM"):
        classifier_from_official(official_state(golden("net_ddpmpp_edm")))


def test_the_flattened_image_changes_its_order(state):
    """One pixel of one channel: official input c*H*W + i*W + j is our input (i*W + j)*C + c."""
    weight = state["model.classifier.linear.weight"]
    channels = len(state["model.classifier.conv2.0.weight"])
    side = int(np.sqrt(weight.shape[1] // channels))
    c, i, j = 1, 2 % side, 3 % side
    weight[:] = 0
    weight[4, (c * side + i) * side + j] = 1
    _, variables, _ = classifier_from_official(state)
    kernel = variables["params"]["linear"]["kernel"]
    assert list(zip(*np.nonzero(kernel), strict=True)) == [((i * side + j) * channels + c, 4)]


def test_endless_residual_blocks_are_refused_before_the_network_is_built(golden):
    state = official_state(golden("rule_classifier_resnet18"))
    block = np.zeros((1, 1, 3, 3), np.float32)
    with pytest.raises(UserError, match="residual blocks"):
        classifier_from_official(state | {f"model.classifier.layer1.{i}.conv1.weight": block for i in range(10_000)})


def test_the_image_that_a_state_dict_asks_for_is_not_made(state):
    """Read-only views of one element declare a layer for images of 16 TB."""
    state["model.classifier.conv1.0.weight"] = np.broadcast_to(np.float32(0), (16, 1 << 20, 5, 5))
    state["model.classifier.linear.weight"] = np.broadcast_to(np.float32(0), (10, 32 << 20))
    with pytest.raises(UserError, match="lacks|going by the other arrays|unknown"):
        classifier_from_official(state | {"model.map_layer1.bias": np.zeros(3)})


@pytest.mark.parametrize("change", [lambda a: a.reshape(-1, 1, 1), lambda a: a[:0], lambda a: a.astype(str)])
def test_a_changed_array_is_refused_in_one_line(change, state):
    for name in state:
        if state[name].ndim:
            with pytest.raises(UserError) as error:
                classifier_from_official(state | {name: change(state[name])})
            assert "\n" not in str(error.value)
