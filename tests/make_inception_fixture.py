"""Makes tests/golden/inception_rule.npz: what torch-fidelity's Inception makes of small images, with weights of a rule.

Run by hand, in an environment with torch and torch-fidelity: python tests/make_inception_fixture.py
The weights are those of `golden_rule`, but for the running variances: through some fifty ReLUs theirs would let every
image fade to the same few biases. Each layer's are multiplied by the variance that its inputs really have, which the
file keeps: then the outputs are of order 1 and differ from image to image.
"""

import json
import pathlib
import tempfile

import numpy as np
import torch

import fidelity
from golden_rule import inception_state

GOLDEN = pathlib.Path(__file__).parent / "golden" / "inception_rule.npz"
SEED = 0
SHAPES = ((32, 32), (40, 61), (96, 80))


def blank():
    """Returns the network as it is before weights are read."""
    module = fidelity.modules()[0]

    class Blank(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            pass

    with tempfile.NamedTemporaryFile() as file:
        torch.save({}, file.name)
        return Blank("inception", list(fidelity.NAMES), file.name)


def picture(seed, height, width):
    """Returns uint8 [1,H,W,3]: smooth waves and noise, other ones for each seed."""
    generator = np.random.Generator(np.random.PCG64(seed))
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    frequency, phase = generator.uniform(1, 9, (2, 3)), generator.uniform(0, 6, 3)
    waves = np.sin(6.3 * (y[..., None] * frequency[0] + x[..., None] * frequency[1]) + phase)
    noise = generator.normal(0, 25, (height, width, 3))
    return np.clip(128 + 90 * waves + noise, 0, 255).astype(np.uint8)[None]


def calibrate(net, images):
    """Sets each layer's running variances to the rule's times the variance of its inputs, first layers first."""
    factors = {}

    def before(name):
        def hook(module, inputs):
            factors[name] = float(np.float32(inputs[0].var()))
            module.running_var *= factors[name]
            module.running_mean *= factors[name] ** 0.5

        return hook

    norms = {name: module for name, module in net.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    handles = [module.register_forward_pre_hook(before(name)) for name, module in norms.items()]
    net(images)
    for handle in handles:
        handle.remove()
    return [factors[name] for name in norms]


def main():
    net = blank()
    shapes = {name: list(array.shape) for name, array in net.state_dict().items()}
    arrays = {
        "rule_seed": np.array(SEED),
        "names": np.array(list(shapes)),
        "shapes": np.array([json.dumps(shape) for shape in shapes.values()]),
    }

    def load():
        state = {name: torch.from_numpy(array) for name, array in inception_state(arrays).items()}
        torch.nn.Module.load_state_dict(net, state)

    images = [picture(seed, *shape) for seed, shape in enumerate(SHAPES)]
    load()
    seen = torch.cat([torch.from_numpy(picture(9 + n, 299, 299)).permute(0, 3, 1, 2) for n in range(4)])
    arrays["variances"] = np.array(calibrate(net, seen), np.float32)
    load()
    for n, image in enumerate(images):
        outputs = net(torch.from_numpy(image).permute(0, 3, 1, 2))
        arrays[f"image_{n}"] = image[0]
        arrays |= {f"{name}_{n}": output[0].numpy() for name, output in zip(fidelity.NAMES, outputs, strict=True)}
    np.savez_compressed(GOLDEN, **arrays)
    for name in fidelity.NAMES:
        rows = [arrays[f"{name}_{n}"] for n in range(len(images))]
        spread = np.std(rows, axis=0).mean() / np.mean(np.abs(rows))
        print(f"{name}: mean |value| {np.mean(np.abs(rows)):.3f}, spread between images {spread:.3f} of it")
    print(GOLDEN, GOLDEN.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
