"""The diffusion transformer beside one of PyTorch's layers, whose state dict has the names of the official one.

Needs PyTorch; without it numpy_dit.py is the second opinion.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpy_dit import position_embedding
from tdsm_jax.interop.torch_params import network_from_official, network_to_official

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional
WIDTH, HEADS, PATCH, SIDE, K = 24, 3, 2, 8, 5


def part(**modules):
    """Returns a module that only holds others by name."""
    module = nn.Module()
    for name, inner in modules.items():
        module.add_module(name, inner)
    return module


class TorchTransformer(nn.Module):
    """F(x [B,C,H,W], t [B], label [B]), without a predicted variance."""

    def __init__(self):
        super().__init__()
        self.x_embedder = part(proj=nn.Conv2d(3, WIDTH, PATCH, PATCH))
        self.t_embedder = part(mlp=nn.Sequential(nn.Linear(256, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH)))
        self.y_embedder = part(embedding_table=nn.Embedding(K + 1, WIDTH))
        embedding = position_embedding(SIDE // PATCH, WIDTH)
        self.pos_embed = nn.Parameter(torch.tensor(embedding, dtype=torch.float32), requires_grad=False)
        self.blocks = nn.ModuleList(
            part(
                attn=part(qkv=nn.Linear(WIDTH, 3 * WIDTH), proj=nn.Linear(WIDTH, WIDTH)),
                mlp=part(fc1=nn.Linear(WIDTH, 4 * WIDTH), fc2=nn.Linear(4 * WIDTH, WIDTH)),
                adaLN_modulation=nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH)),
            )
            for _ in range(2)
        )
        self.final_layer = part(
            linear=nn.Linear(WIDTH, 3 * PATCH**2),
            adaLN_modulation=nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH)),
        )

    def forward(self, x, t, label):
        h = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        angles = t[:, None] * 10000 ** (-torch.arange(128) / 128)
        c = self.t_embedder.mlp(torch.cat([angles.cos(), angles.sin()], dim=1)) + self.y_embedder.embedding_table(label)
        for block in self.blocks:
            shift0, scale0, gate0, shift1, scale1, gate1 = block.adaLN_modulation(c)[:, None].chunk(6, dim=2)
            qkv = (
                block.attn.qkv(self.norm(h) * (1 + scale0) + shift0).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            )
            mixed = functional.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
            h = h + gate0 * block.attn.proj(mixed)
            inner = block.mlp.fc1(self.norm(h) * (1 + scale1) + shift1)
            h = h + gate1 * block.mlp.fc2(functional.gelu(inner, approximate="tanh"))
        shift, scale = self.final_layer.adaLN_modulation(c)[:, None].chunk(2, dim=2)
        pixels = self.final_layer.linear(self.norm(h) * (1 + scale) + shift).transpose(1, 2)  # [B,(p q c),N]
        patches = pixels.unflatten(1, (PATCH**2, 3)).transpose(1, 2).flatten(1, 2)  # [B,(c p q),N]
        return functional.fold(patches, (SIDE, SIDE), PATCH, stride=PATCH)

    @staticmethod
    def norm(x):
        return functional.layer_norm(x, (WIDTH,), eps=1e-6)


def test_it_computes_what_pytorchs_layers_do_and_its_state_dict_loads_there():
    torch.manual_seed(0)
    module = TorchTransformer().eval()
    state = {name: array.numpy() for name, array in module.state_dict().items()}
    network, params, image_shape = network_from_official(state, heads=HEADS)
    x, t, label = torch.randn(3, 3, SIDE, SIDE), torch.tensor([0.0, 12.0, 999.0]), torch.tensor([0, 4, 5])
    with torch.no_grad():
        expected = module(x, t, label).numpy()
    with jax.default_matmul_precision("highest"):
        F = jax.jit(network.apply)(params, jnp.asarray(x.numpy().transpose(0, 2, 3, 1)), t.numpy(), label.numpy())
    np.testing.assert_allclose(np.asarray(F).transpose(0, 3, 1, 2), expected, atol=1e-5)
    back = network_to_official(network, params, image_shape)
    module.load_state_dict({name: torch.tensor(array) for name, array in back.items()}, strict=True)
