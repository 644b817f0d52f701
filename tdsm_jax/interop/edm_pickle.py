"""Converts official EDM, TDSM and DiT snapshots: the network of a .pkl or .pt into a model file and a JSON config.

  python -m tdsm_jax.interop.edm_pickle edm-cifar10-32x32-cond-vp.pkl converted/
  python -m tdsm_jax.main --stages=sample --config.init_from=converted/ema.npz --workdir=runs/converted
  python -m tdsm_jax.interop.edm_pickle training-state-200000.pt converted/ --to-safetensors
  python -m tdsm_jax.interop.edm_pickle DiT-XL-2-256x256.pt transformer/

A score network becomes OUT/ema.npz, a classifier OUT/classifier.npz (for config.classifier.init_from); OUT/config.json
says what the file was and which config keys describe its network. Nothing that the file carries is executed, and
neither PyTorch nor the original source is needed. A diffusion transformer's images are latents of an autoencoder, which
is not part of it: model_file.read and the samplers take such a model, tdsm_jax.main has no pictures to make of it. What
it predicts of a variance is left out.
"""

import argparse
import itertools
import json
import math
import pathlib
from typing import Any

import numpy as np

from tdsm_jax import files
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.diffusion.process import EDM, PROCESSES, Process
from tdsm_jax.errors import UserError, printable
from tdsm_jax.interop.dit_params import PATCHES
from tdsm_jax.interop.layout import StateDict
from tdsm_jax.interop.pickled_names import Record
from tdsm_jax.interop.state_dicts import SUFFIXES, read_state_dict, write_state_dict
from tdsm_jax.interop.torch_classifier import BODY, OfficialClassifier, classifier_from_official, classifier_to_official
from tdsm_jax.interop.torch_params import network_from_official, network_to_official
from tdsm_jax.interop.unpickle import read_snapshot, state_dict
from tdsm_jax.labels.transition import volmin_matrix
from tdsm_jax.networks.backbones import ScoreNetwork, network_from
from tdsm_jax.networks.dit import DiT
from tdsm_jax.networks.resnet import BLOCKS
from tdsm_jax.training import model_file
from tdsm_jax.training.classifier import Fitted, write_fitted
from tdsm_jax.training.model_file import Model

ENTRIES = ("ema", "net")  # of a snapshot, the averaged network first
SIDE_ENTRIES = ("loss_fn", "augment_pipe", "dataset_kwargs")
SAMPLER_RANGE = (0.002, 80.0)  # the official sampler's noise levels, which the network's own range cuts
_MOST_NODES = 1000  # values that config.json shows of a snapshot's side entries
_LONGEST_LIST = 64  # entries of an array or container that it shows
_LONGEST_TEXT = 200
_DEEPEST = 5


def main(arguments: argparse.Namespace) -> None:
    """Converts the snapshot and prints what was written."""
    out = pathlib.Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder for what the conversion makes")
    if pathlib.Path(arguments.snapshot).suffix in SUFFIXES:
        snapshot, metadata = read_state_dict(arguments.snapshot)
    else:
        snapshot, metadata = read_snapshot(arguments.snapshot), {}
    try:
        network, state = find_network(snapshot)
        about = provenance(arguments.snapshot, snapshot, network)
        if any(name.startswith(BODY) for name in state):
            written = convert_classifier(state, out, about, safetensors=arguments.to_safetensors)
        else:
            asked = arguments.process or ("vp" if PATCHES in state else "edm")
            process = process_of(network, asked, metadata)
            found = network_from_official(state, arguments.heads, described_network(metadata))
            model = Model(*found[:2], process, found[2])
            written = convert_score(model, out, about, safetensors=arguments.to_safetensors)
    except UserError as error:
        raise UserError(f"{arguments.snapshot}: {error}") from None
    print("\n".join(str(out / name) for name in written))


def find_network(snapshot: Any) -> tuple[Record | None, StateDict]:
    """Returns the network of a snapshot, None for a plain state dict, and its arrays by official name."""
    if isinstance(snapshot, Record):
        return snapshot, state_dict(snapshot)
    if not isinstance(snapshot, dict):
        raise UserError(f"it holds a {type(snapshot).__name__}, not a snapshot; give an official .pkl or .pt")
    for entry in ENTRIES:
        if isinstance(snapshot.get(entry), Record):
            return snapshot[entry], state_dict(snapshot[entry])
        if is_state_dict(snapshot.get(entry)):
            return None, snapshot[entry]
    if is_state_dict(snapshot):
        return None, snapshot
    raise UserError(
        f"it holds no network: its entries are {printable(', '.join(map(str, list(snapshot)[:5])))}; one of them must "
        f"be {' or '.join(ENTRIES)}"
    )


def is_state_dict(value: Any) -> bool:
    """Says whether a value is {name: array} with at least one entry."""
    named = isinstance(value, dict) and all(type(n) is str and isinstance(a, np.ndarray) for n, a in value.items())
    return bool(value) if named else False


def process_of(network: Record | None, asked: str, metadata: dict[str, str]) -> Process:
    """Returns the diffusion process that a preconditioned network was trained with, by its class name and constants.

    A plain state dict has no class: there the `metadata` beside it say, or else `asked` names the process. VP's
    constants are those of DiT's training: betas from 1e-4 to .02 in 1000 steps.
    """
    if network is None and "model" in metadata:
        return described_process(metadata["model"])
    if network is None:
        return PROCESSES[asked]()
    kind = next((kind for kind in PROCESSES if network.name.lower().startswith(f"{kind}precond")), None)
    if kind is None:
        supported = ", ".join(f"{kind.upper()}Precond" for kind in PROCESSES)
        raise UserError(f"the network is a {printable(network.name)}; {supported} are supported")
    constant = {name: value for name, value in network.state.items() if type(value) in (int, float)}
    if kind == "edm":
        low, high = SAMPLER_RANGE
        taken = {
            "sigma_data": constant.get("sigma_data", EDM.sigma_data),
            "sigma_min": max(low, constant.get("sigma_min", low)),
            "sigma_max": min(high, constant.get("sigma_max", high)),
        }
    elif kind == "vp":
        taken = {name: constant[name] for name in ("beta_d", "beta_min", "M", "epsilon_t") if name in constant}
    else:
        taken = {name: constant[name] for name in ("sigma_min", "sigma_max") if name in constant}
    return model_file.process_from({"kind": kind} | taken)


def described_process(description: str) -> Process:
    """Returns the process of a model's description, the JSON text that the export leaves in the metadata."""
    try:
        process = json.loads(description)["process"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = printable(repr(error))
        raise UserError(f"its metadata entry `model` describes no model ({reason}); export it again") from None
    return model_file.process_from(process)


def described_network(metadata: dict[str, str]) -> ScoreNetwork | None:
    """Returns the network of a model's description, None where none came with the arrays."""
    if "model" not in metadata:
        return None
    try:
        return network_from(json.loads(metadata["model"])["network"])
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = printable(repr(error))
        raise UserError(f"its metadata entry `model` describes no network ({reason}); export it again") from None


def network_keys(network: ScoreNetwork) -> dict[str, Any]:
    """Returns the config keys that describe a network, by section."""
    if isinstance(network, DiT):
        keys = ("patch", "width", "depth", "heads", "conditioning")
        return {"network": {"style": "dit"}, "dit": {key: getattr(network, key) for key in keys}}
    keys = ("style", "channels", "multipliers", "blocks", "attention_resolutions")
    return {"network": {key: getattr(network, key) for key in keys}}


def convert_score(model: Model, out: pathlib.Path, about: dict[str, Any], *, safetensors: bool) -> list[str]:
    """Writes a score network: ema.npz, config.json and on request ema.safetensors; returns their names."""
    description = model_file.describe(model)
    config = network_keys(model.network) | {"process": description["process"]}
    about = about | {"model": description, "config": config}
    official = network_to_official(model.network, model.params, model.image_shape) if safetensors else None
    model_file.write(out / "ema.npz", model)
    metadata = {"format": "pt", "model": json.dumps(description)}
    return ["ema.npz", *write_beside(out, "ema.safetensors", official, metadata, about)]


def convert_classifier(state: StateDict, out: pathlib.Path, about: dict[str, Any], *, safetensors: bool) -> list[str]:
    """Writes a classifier: classifier.npz, config.json and on request classifier.safetensors; returns their names."""
    network, variables, V = classifier_from_official(state)
    S = np.zeros((0, 0)) if V is None else np.asarray(volmin_matrix(V), np.float64)
    config = {"classifier": {"network": kind_of(network), "folds": 1, "widths": np.ravel(network.channels).tolist()}}
    transition = {"num_classes": network.num_classes, "transition": S.tolist()}
    official = classifier_to_official(network, variables, V) if safetensors else None
    about = about | transition | {"config": config}
    write_fitted(out / "classifier.npz", Fitted(variables, 1.0, S, float("nan")))
    return ["classifier.npz", *write_beside(out, "classifier.safetensors", official, {"format": "pt"}, about)]


def write_beside(
    out: pathlib.Path, name: str, official: StateDict | None, metadata: dict[str, str], about: dict[str, Any]
) -> list[str]:
    """Writes the state dict, if there is one, and config.json last: it says that all is there; returns the names."""
    if official is not None:
        write_state_dict(out / name, official, metadata)
    files.write_json(out / "config.json", about)
    return ["config.json"] if official is None else [name, "config.json"]


def kind_of(network: OfficialClassifier) -> str:
    """Returns the value of config.classifier.network for a network; `UserError` where there is none."""
    blocks = getattr(network, "blocks", None)
    if blocks is None:
        return "cnn"
    for kind, known in BLOCKS.items():
        if blocks == known:
            return kind
    raise UserError(f"a ResNet with {blocks} blocks a stage; {', '.join(BLOCKS)} are supported")


def provenance(path: str, snapshot: Any, network: Record | None) -> dict[str, Any]:
    """Returns where the arrays come from, and what else the snapshot says, as JSON values."""
    entries = snapshot if isinstance(snapshot, dict) else {}
    said = as_json({name: entries[name] for name in SIDE_ENTRIES if name in entries})
    source = {"file": pathlib.Path(path).name, "sha256": files.file_digest(path)}
    return {"source": source | {"class": shortened(network.name) if network else "state dict"}} | said


def as_json(value: Any) -> Any:
    """Reduces what a snapshot holds to JSON: classes to names and scalars, large arrays to shapes, text to its start.

    What comes after the first 1000 values is left out, since shared containers may unfold without end.
    """
    left = _MOST_NODES

    def items_of(values: dict[Any, Any], depth: int) -> dict[str, Any]:
        first = itertools.islice(values.items(), _LONGEST_LIST)
        return {shortened(str(k)): reduced(v, depth) for k, v in first if left > 0}

    def reduced(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if isinstance(value, Record):
            scalars = {k: v for k, v in value.state.items() if type(v) in (int, float, str, bool)}
            return {"class": shortened(value.name)} | items_of(scalars, depth + 1)
        if isinstance(value, np.ndarray):
            return (
                reduced(value.tolist(), depth) if 0 < value.size <= _LONGEST_LIST else f"array of shape {value.shape}"
            )
        if isinstance(value, dict) and depth < _DEEPEST:
            return items_of(value, depth + 1)
        if isinstance(value, (list, tuple)) and depth < _DEEPEST:
            return [reduced(v, depth + 1) for v in value[:_LONGEST_LIST] if left > 0]
        if type(value) is str:
            return shortened(value)
        if type(value) is float and not math.isfinite(value):
            return str(value)  # JSON has no infinity
        return value if value is None or type(value) in (int, float, bool) else type(value).__name__

    return reduced(value, 0)


def shortened(text: str) -> str:
    """Returns the start of a long text."""
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("snapshot", help="a .pkl or .pt snapshot or saved state dict, also .safetensors or .npz")
    parser.add_argument("out", help="the folder of ema.npz (or classifier.npz) and config.json")
    parser.add_argument(
        "--to-safetensors", "--to_safetensors", action="store_true", help="write the official state dict as well"
    )
    parser.add_argument(
        "--process",
        choices=tuple(PROCESSES),
        help="of a plain state dict, which does not say (edm, of a diffusion transformer vp)",
    )
    parser.add_argument(
        "--heads", type=int, default=0, help="of a diffusion transformer of no published size, which does not say"
    )
    run_command(parser, main)
