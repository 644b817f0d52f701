"""The judges of generated images: ResNet-50 as published, ResNet-18, the small one, and extractors of features."""

import functools
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from tdsm_jax import config as configuration
from tdsm_jax import extractors, files, judge_stages, plan
from tdsm_jax.benchmark.cells import carry_out
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import judge, report_words
from tdsm_jax.evaluation.measure import Observed, real_of
from tdsm_jax.evaluation.measure import measured as measured_of
from tdsm_jax.evaluation.table import markdown
from tdsm_jax.networks.resnet import BOTTLENECKS, JUDGES, Bottleneck, ResNet
from tdsm_jax.run import Run
from tdsm_jax.training import parallel
from tdsm_jax.validation import validate

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SMALL = ResNet(3, (1, 2), 4, 0, block=Bottleneck, stem="imagenet")
# As the judges, but shallow: what compiling them takes is their depth.
SHALLOW = {
    "resnet18": functools.partial(ResNet, blocks=(1,), embedding_channels=0),
    "resnet50": functools.partial(ResNet, blocks=(1,), block=Bottleneck, stem="imagenet", embedding_channels=0),
}


def shapes_of(network, size=32, channels=3):
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, channels)), jnp.zeros(1))


def count(variables):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"]))


def random_variables(network, size, channels=3):
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return (rng.normal(size=leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(network, size, channels))


def config_of(name, arguments=""):
    return configuration.load_module(CONFIGS / f"{name}.py").get_config(arguments)


# -- networks -----------------------------------------------------------------------------------------------


def test_resnet50_has_the_parameters_of_torchvisions():
    assert count(shapes_of(JUDGES["resnet50"](1000), size=224)) == 25_557_032
    assert count(shapes_of(JUDGES["resnet50"](1000))) == 25_557_032  # of any image size
    assert count(shapes_of(JUDGES["resnet18"](10))) == 11_173_962  # the CIFAR form of He et al.'s 18 layers


def test_a_judge_reads_no_noise_level():
    for network in (make(3, channels=4) for make in SHALLOW.values()):
        variables, x = random_variables(network, 16), jnp.ones((2, 16, 16, 3))
        assert not any(name.startswith(("map_layer", "dense")) for name in variables["params"])
        logits, features = network.apply(variables, x, jnp.zeros(2))
        np.testing.assert_array_equal(logits, network.apply(variables, x, jnp.ones(2))[0])
        assert logits.shape == (2, 3) and features.shape == (2, 16 if network.block is Bottleneck else 4)


def numpy_forward(variables, x, blocks):
    """The bottleneck network in evaluation, written out. x: [B,H,W,C], float64."""

    def conv(x, kernel, stride):
        size = kernel.shape[0]
        x = np.pad(x, [(0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]
        return np.einsum("bhwcij,ijcd->bhwd", windows, np.float64(kernel))

    def norm(x, at):
        p, s = (functools.reduce(dict.__getitem__, at, variables[kind]) for kind in ("params", "batch_stats"))
        return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    p, relu = variables["params"], lambda x: np.maximum(x, 0)
    x = relu(norm(conv(x, p["conv1"]["kernel"], 2), ("bn1",)))
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    x = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2].max((-1, -2))
    for stage, index in ((s, i) for s, n in enumerate(blocks, start=1) for i in range(n)):
        name, stride = f"layer{stage}_{index}", 2 if stage > 1 and index == 0 else 1
        kernels = {layer: p[name][layer]["kernel"] for layer in p[name] if "conv" in layer}
        y = relu(norm(conv(x, kernels["conv1"], 1), (name, "bn1")))
        y = relu(norm(conv(y, kernels["conv2"], stride), (name, "bn2")))
        y = norm(conv(y, kernels["conv3"], 1), (name, "bn3"))
        if index == 0:
            x = norm(conv(x, kernels["shortcut_conv"], stride), (name, "shortcut_bn"))
        x = relu(x + y)
    return x.mean((1, 2)) @ p["linear"]["kernel"] + p["linear"]["bias"]


def test_a_bottleneck_network_is_the_written_out_one():
    variables = random_variables(SMALL, 20)
    x = np.random.default_rng(1).normal(size=(2, 20, 20, 3))
    logits, _ = SMALL.apply(variables, jnp.float32(x), jnp.zeros(2))
    np.testing.assert_allclose(logits, numpy_forward(variables, x, SMALL.blocks), rtol=1e-4, atol=1e-5)


def torch_network(torch, blocks, width, classes):
    """torchvision's layout, by its names."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, inputs, features, stride):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(inputs, features, 1, bias=False), nn.BatchNorm2d(features)
            self.conv2 = nn.Conv2d(features, features, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(features)
            self.conv3, self.bn3 = nn.Conv2d(features, 4 * features, 1, bias=False), nn.BatchNorm2d(4 * features)
            self.downsample = None
            if stride != 1 or inputs != 4 * features:
                projection = nn.Conv2d(inputs, 4 * features, 1, stride, bias=False)
                self.downsample = nn.Sequential(projection, nn.BatchNorm2d(4 * features))

        def forward(self, x):
            y = torch.relu(self.bn1(self.conv1(x)))
            y = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(y)))))
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    stem = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    stages, inputs = [], width
    for stage, number in enumerate(blocks):
        for index in range(number):
            stages.append(Block(inputs, width * 2**stage, 2 if stage and not index else 1))
            inputs = 4 * width * 2**stage
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def test_a_bottleneck_network_is_pytorchs():
    torch = pytest.importorskip("torch")
    whole = torch_network(torch, BOTTLENECKS["resnet50"], 64, 1000)
    assert sum(p.numel() for p in whole.parameters()) == 25_557_032
    theirs, variables = torch_network(torch, SMALL.blocks, 4, 3).eval(), random_variables(SMALL, 32)
    p, s = variables["params"], variables["batch_stats"]

    def put(conv, norm, kernel, scales, statistics):
        conv.weight.data = torch.tensor(np.transpose(kernel["kernel"], (3, 2, 0, 1)).copy())
        norm.weight.data, norm.bias.data = torch.tensor(scales["scale"]), torch.tensor(scales["bias"])
        norm.running_mean, norm.running_var = torch.tensor(statistics["mean"]), torch.tensor(statistics["var"])

    put(theirs[0], theirs[1], p["conv1"], p["bn1"], s["bn1"])
    for block, name in zip(theirs[4:7], ("layer1_0", "layer2_0", "layer2_1"), strict=True):
        for k in "123":
            conv, norm = getattr(block, f"conv{k}"), getattr(block, f"bn{k}")
            put(conv, norm, p[name][f"conv{k}"], p[name][f"bn{k}"], s[name][f"bn{k}"])
        if block.downsample is not None:
            put(*block.downsample, p[name]["shortcut_conv"], p[name]["shortcut_bn"], s[name]["shortcut_bn"])
    theirs[-1].weight.data = torch.tensor(p["linear"]["kernel"].T.copy())
    theirs[-1].bias.data = torch.tensor(p["linear"]["bias"])
    x = np.random.default_rng(2).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(SMALL.apply(variables, x, jnp.zeros(2))[0], expected, rtol=1e-4, atol=1e-5)


def test_verdicts_are_the_likeliest_classes_whatever_the_batches(monkeypatch):
    variables = random_variables(SMALL, 8)
    images = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), np.uint8)
    logits, _ = SMALL.apply(variables, jnp.float32(images) / 127.5 - 1, jnp.zeros(11))
    monkeypatch.setattr(judge, "BATCH_SIZE", 4)
    seen = judge.verdicts(SMALL, variables, images, parallel.data_mesh())
    np.testing.assert_array_equal(seen, np.argmax(logits, axis=1))


# -- configs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_published_judge_is_part_of_the_recipe(name):
    e = config_of(name).evaluation
    assert e.classifiers == ("stages", "resnet18", "resnet50") and e.resnet50.batch_size == 150
    for network in ("resnet18", "resnet50"):
        assert e[network].width == 64 and e[network].steps * e[network].batch_size == pytest.approx(5e6, rel=1e-4)
    assert config_of("digits").evaluation.classifiers == ("stages",)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("classifiers", ("stages", "resnet5"), "did you mean 'resnet50'?"),
        ("classifiers", (), "at least one"),
        ("features", ("judge", "inceptoin:x.pth"), "did you mean 'inception'?"),
        ("features", ("clip",), "needs its weights, written clip:PATH"),
        ("features", ("clip:a", "clip:b"), "name each kind once"),
    ],
)
def test_bad_evaluation_keys(key, value, said):
    config = config_of("digits")
    config.evaluation[key] = value
    with pytest.raises(UserError, match=f"config key evaluation.{key}") as error:
        validate(config)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_weights_of_an_extractor_are_part_of_what_its_results_depend_on(tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("weights.bin", "weights.safetensors", "config.json"):
        (tmp_path / "model" / name).write_bytes(b"one")
        before = plan._weights(f"clip:{tmp_path / 'model'}")
        (tmp_path / "model" / name).write_bytes(b"two")  # as long
        assert plan._weights(f"clip:{tmp_path / 'model'}") != before
    with pytest.raises(UserError, match="no such file or folder .config key evaluation.features"):
        plan._weights("inception:none.pth")


def test_pixels_are_planned_without_weights(tmp_path):
    config = config_of("digits", "smoke")
    config.evaluation.features = ("judge", "pixels:8x8x1")
    validate(config)
    planned = {unit.name: unit for unit in plan.units(Run(config, tmp_path))}
    assert planned["references/pixels"].makes == ("references/pixels.npz",)
    assert not any("pixels:" in path for unit in planned.values() for path in unit.inputs)


# -- a run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A finished run of the small judge, then the same with all judges and an extractor; what was extracted."""
    workdir, calls = tmp_path_factory.mktemp("cas") / "run", []
    config = config_of("digits", "smoke,methods=dsm+tdsm+clean,objective=all")
    config.classifier.folds = 1
    for key, steps in (("classifier", 2), ("score", 2)):
        config[key].steps = steps
    for network in SHALLOW:
        config.evaluation[network].light = (0.0, 0.0, 0.0)  # less to compile
    config.logging.update(log_every=2, save_every=2)
    carry_out(config, workdir, ())
    before = json.loads((workdir / "metrics.json").read_text())

    weights = workdir.parent / "weights.pth"
    weights.write_bytes(b"weights")
    config.evaluation.classifiers = ("stages", "resnet18", "resnet50")
    config.evaluation.features = ("judge", f"inception:{weights}")

    def extract(extractor, images, *, label, parts=None):
        calls.append((extractor, label, len(images), parts))
        return types.SimpleNamespace(features=pooled(images), probabilities=None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_stages, "open_extractor", lambda spec, mesh: f"opened {spec}")
        patch.setattr(judge_stages, "extract", extract)
        for name, network in SHALLOW.items():
            patch.setitem(JUDGES, name, network)
        run = carry_out(config, workdir, ())
    return run, before, json.loads((workdir / "metrics.json").read_text()), calls


def pooled(images):
    N, H, W, C = images.shape
    return images.reshape(N, 4, H // 4, 4, W // 4, C).mean((2, 4)).reshape(N, -1) / 255


def test_more_judges_leave_the_small_ones_numbers_alone(measured):
    _, before, after, _ = measured
    assert list(before["judges"]) == ["stages"]
    for method, values in before["methods"].items():
        kept = {key: value for key, value in after["methods"][method].items() if key in values}
        assert {**kept, "recovery": values.get("recovery")} == {**values, "recovery": values.get("recovery")}
    assert before["real"].items() <= after["real"].items()


def test_the_counts_of_images_stand_beside_the_metrics(measured):
    run, _, after, _ = measured
    made, compared_with, test = len(run.samples("dsm").labels), len(run.train_set.labels), len(run.test_set.labels)
    assert after["counts"] == {"samples": made, "compared_with": compared_with, "test": test}


def test_each_judge_has_keys_of_its_own_with_its_accuracy_and_weights(measured):
    run, _, after, _ = measured
    for name in ("resnet18", "resnet50"):
        for values in (*after["methods"].values(), after["real"]):
            for metric in ("cas", "label_fidelity"):
                classes = values[f"{metric}_{name}_per_class"]
                assert len(classes) == 10 and values[f"{metric}_{name}_worst_class"] == min(classes)
        facts = after["judges"][name]
        assert facts["test_accuracy"] == after["real"][f"label_fidelity_{name}"] == after["real"][f"cas_{name}"]
        assert facts["weights_sha256"] == files.file_digest(run.workdir / f"judge_{name}" / "judge.npz")
    assert len({facts["weights_sha256"] for facts in after["judges"].values()}) == 3
    assert "cas_resnet50" in after["methods"]["tdsm"]["recovery"]
    leftovers = [path for path in (run.workdir / "measures").rglob("cas") if "resnet" in str(path)]
    assert not leftovers  # checkpoints of finished fits


def test_distances_of_an_extractor_stand_under_its_name(measured):
    run, _, after, calls = measured
    made = run.samples("dsm")
    train = run.train_set
    real, fake = real_of(pooled(train.images), train.labels), Observed(pooled(made.images), None, made.labels)
    expected = measured_of(real, fake, ("fd", "kid", "neighbours", "cmmd", "class_wise"))
    assert after["methods"]["dsm"]["inception"] == expected
    assert after["real"]["inception"]["fd"] != after["methods"]["dsm"]["inception"]["fd"]
    assert "inception_cw_fd" in after["methods"]["tdsm"]["recovery"]
    stored = files.read_arrays(run.workdir / "references" / "inception.npz")["features"]
    np.testing.assert_array_equal(stored, pooled(train.images))
    # The training images are looked at once, not once a method.
    places = ["references/inception", *(f"measures/inception/{m}" for m in ("real", "dsm", "tdsm", "clean"))]
    assert [label for _, label, _, _ in calls] == places
    assert all(opened.startswith("opened inception:") for opened, *_ in calls)
    assert all(parts == run.workdir / label / "parts" for _, label, _, parts in calls)


def test_the_report_has_words_for_every_kind_of_extractor():
    assert tuple(report_words.EXTRACTORS) == extractors.KINDS


def test_report_and_table_show_what_is_there(measured):
    run, before, after, _ = measured
    page = (run.workdir / "report.html").read_text()
    for said in ("CAS (ResNet-50)", "Label fidelity (ResNet-18)", "Class-wise FD", "(Inception)", "ResNet-50 "):
        assert said in page, said
    assert after["judges"]["resnet50"]["weights_sha256"][:12] in page
    assert page.count("how often a classifier trained on clean data sees") <= 2  # explained once, not once a judge
    head = markdown([after]).splitlines()[0]
    assert "CAS (ResNet-50)" in head and "Class-wise FD (Inception)" in head
    assert markdown([before]).splitlines()[0].count("|") == 8  # as ever: the name, five metrics, the recovery


def test_the_small_judge_can_be_left_out(measured):
    run, *_ = measured
    config = ml_collections.ConfigDict(run.config)
    config.evaluation.update(classifiers=("resnet50",), features=run.config.evaluation.features[1:])
    names = [unit.name for unit in plan.units(type(run)(config, run.workdir))]
    assert "judge" not in names and "measure/dsm" not in names
    assert {"judge/resnet50", "references/inception", "measure/dsm/resnet50", "measure/real/inception"} <= set(names)
