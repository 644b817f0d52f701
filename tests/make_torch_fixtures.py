"""Makes tests/fixtures with the real torch: small files of the byte form of official snapshots, and what they hold.

Run by hand, in an environment with torch, when the fixtures must change: python tests/make_torch_fixtures.py
The two modules that snapshots refer to are stand-ins: only their names and what they pickle to matter here.
"""

import copy
import io
import pathlib
import pickle
import sys
import types

import numpy as np
import torch
from torch import nn

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
SOURCE = 'raise RuntimeError("the source text of a snapshot was executed")\n'


class EasyDict(dict):
    """A dict subclass by the name that snapshots know it by."""


def _reconstruct_persistent_obj(meta):
    raise NotImplementedError("these fixtures are not read by torch")


def stand_in(module_name, thing):
    """Makes `thing` importable from `module_name`, as pickle demands of what it names."""
    thing.__module__ = module_name
    package = module_name.partition(".")[0]
    sys.modules.setdefault(package, types.ModuleType(package))
    module = sys.modules.setdefault(module_name, types.ModuleType(module_name))
    setattr(module, thing.__name__, thing)
    return thing


stand_in("dnnlib.util", EasyDict)
stand_in("torch_utils.persistence", _reconstruct_persistent_obj)


class Persistent:
    """Pickles as a call that carries source text and attributes instead of naming the class."""

    def __reduce__(self):
        meta = EasyDict(
            type="class", version=6, module_src=SOURCE, class_name=type(self).__name__, state=self.__dict__.copy()
        )
        return _reconstruct_persistent_obj, (meta,)

    def __reduce_ex__(self, protocol):
        return self.__reduce__()


class Affine(Persistent, nn.Module):
    def __init__(self, inputs, outputs, dtype=torch.float32):
        super().__init__()
        self._init_args = (inputs, outputs)
        self._init_kwargs = EasyDict(dtype=dtype)
        # Held transposed, so its strides are not those of its shape.
        self.weight = nn.Parameter(torch.randn(inputs, outputs, dtype=torch.float64).to(dtype).t())
        self.bias = nn.Parameter(torch.randn(outputs, dtype=torch.float64).to(dtype))


class TinyNet(Persistent, nn.Module):
    def __init__(self, channels, **kwargs):
        super().__init__()
        self._init_args = (channels,)
        self._init_kwargs = copy.deepcopy(kwargs)
        self.sigma_max = float("inf")
        self.conv = nn.Conv2d(3, channels, 3)
        self.norm = nn.BatchNorm2d(channels)
        self.blocks = nn.ModuleDict({"f16": Affine(4, 3, torch.float16), "f64": Affine(3, 2, torch.float64)})
        self.brain = Affine(2, 5, torch.bfloat16)
        self.head = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(5, 6, bias=False))
        self.head[2].weight = self.head[0].weight  # one parameter by two names
        shared = torch.arange(24, dtype=torch.float32)
        self.register_buffer("tail", shared[10:])  # two windows on one storage, neither from its start
        self.register_buffer("grid", shared.reshape(4, 6)[1:3, ::2])
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.register_buffer("absent", None)
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("none_left", torch.empty(0, 3))


class NoisyLoss(Persistent):
    def __init__(self, classifier):
        self.P_mean, self.classifier, self.transition = -1.2, classifier, torch.eye(3) * 0.7 + 0.1


def tiny_net():
    torch.manual_seed(0)
    return TinyNet(
        4,
        shape=torch.Size([3, 4]),
        device=torch.device("cuda", 0),
        dtype=torch.float32,
        scalar=np.float64(0.5),
        table=np.arange(6, dtype=np.int32).reshape(2, 3),
        fortran=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        swapped=np.arange(3, dtype=">f4"),
        flags={"a", "b"},
        nested=EasyDict(mult=[1, 2], name="x"),
    ).eval()


def arrays_of(module):
    """The state dict as arrays; NumPy files know no bfloat16, which float32 holds exactly."""
    return {
        name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        for name, tensor in module.state_dict().items()
    }


def main():
    FIXTURES.mkdir(exist_ok=True)
    net = tiny_net()
    classifier = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3)).eval()
    snapshot = dict(
        ema=net,
        loss_fn=NoisyLoss(classifier),
        augment_pipe=None,
        dataset_kwargs=EasyDict(path="x.zip", use_labels=True),
    )
    (FIXTURES / "snapshot.pkl").write_bytes(pickle.dumps(snapshot, protocol=4))
    optimizer_state = torch.optim.Adam(net.parameters()).state_dict()
    torch.save(dict(net=net, optimizer_state=optimizer_state), FIXTURES / "training_state.pt")
    torch.save(net.state_dict(), FIXTURES / "weights.pt")
    legacy = io.BytesIO()
    torch.serialization.get_source_lines_and_file = None  # fails, which torch takes for "no source text to save"
    saved = dict(module=classifier, weights=classifier.state_dict())
    torch.save(saved, legacy, _use_new_zipfile_serialization=False)
    (FIXTURES / "legacy.pt").write_bytes(legacy.getvalue())
    np.savez_compressed(FIXTURES / "net.npz", **arrays_of(net))
    np.savez_compressed(FIXTURES / "classifier.npz", **arrays_of(classifier))


if __name__ == "__main__":
    main()
