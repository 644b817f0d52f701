"""Our EMA parameters as a PyTorch state dict with the official names.

  python -m tdsm_jax.interop.export runs/digits/score/tdsm/ema.npz tdsm.safetensors
  python -m tdsm_jax.interop.export runs/digits/score/tdsm/ema.npz tdsm.npz

In PyTorch: net.load_state_dict(safetensors.torch.load_file("tdsm.safetensors")), where `net` is the official module of
the same architecture: what the command prints.
"""

import argparse
import json

from tdsm_jax.command import new_parser, run_command
from tdsm_jax.interop.state_dicts import check_suffix, write_state_dict
from tdsm_jax.interop.torch_params import network_to_official
from tdsm_jax.training import model_file


def main(arguments: argparse.Namespace) -> None:
    """Reads the model file, writes the state dict, prints its architecture."""
    check_suffix(arguments.out)
    model = model_file.read(arguments.model)
    description = json.dumps(model_file.describe(model))
    state = network_to_official(model.network, model.params, model.image_shape)
    write_state_dict(arguments.out, state, {"format": "pt", "model": description})
    print(f"{arguments.out}: {len(state)} arrays of {description}")


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("model", help="a model file: WORKDIR/score/METHOD/ema.npz")
    parser.add_argument("out", help="the state dict, .safetensors or .npz")
    run_command(parser, main)
