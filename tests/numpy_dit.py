"""The diffusion transformer in NumPy float64, channels first, straight from a state dict with official names.

A second opinion that shares no code with the package: Peebles & Xie 2023, section 3.2, with the norms, activations and
embeddings of their implementation. Every sum over tokens and heads is written out.
"""

import numpy as np


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    """The approximation by tanh."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


class Transformer:
    """The network of a state dict; call it as F(x [B,C,H,W], t [B], label [B]) -> [B,C or 2C,H,W]."""

    def __init__(self, state, heads):
        self.state = {name: np.asarray(array, np.float64) for name, array in state.items()}
        self.heads = heads
        self.depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def tokens(self, x):
        """One token a patch, row by row."""
        kernel = self.state["x_embedder.proj.weight"]
        p = kernel.shape[-1]
        rows, columns = x.shape[2] // p, x.shape[3] // p
        patches = [x[:, :, i * p : i * p + p, j * p : j * p + p] for i in range(rows) for j in range(columns)]
        flat = [np.tensordot(patch, kernel, ((1, 2, 3), (1, 2, 3))) for patch in patches]
        return np.stack(flat, axis=1) + self.state["x_embedder.proj.bias"] + self.state["pos_embed"]

    def condition(self, t, label):
        angles = np.asarray(t, np.float64)[:, None] * np.exp(-np.log(10000) * np.arange(128) / 128)
        sines = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        embedded = self.linear("t_embedder.mlp.2", silu(self.linear("t_embedder.mlp.0", sines)))
        return embedded + self.state["y_embedder.embedding_table.weight"][label]

    def modulation(self, name, condition, parts):
        return np.split(self.linear(f"{name}.adaLN_modulation.1", silu(condition))[:, None], parts, axis=2)

    def attention(self, name, x):
        qkv = self.linear(f"{name}.qkv", x)
        width = x.shape[2] // self.heads
        mixed = []
        for head in range(self.heads):
            at = slice(head * width, head * width + width)
            q, k, v = (part[:, :, at] for part in np.split(qkv, 3, axis=2))
            mixed.append(softmax(q @ k.transpose(0, 2, 1) / np.sqrt(width)) @ v)
        return self.linear(f"{name}.proj", np.concatenate(mixed, axis=2))

    def __call__(self, x, t, label):
        condition, h = self.condition(t, label), self.tokens(np.asarray(x, np.float64))
        for index in range(self.depth):
            name = f"blocks.{index}"
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(name, condition, 6)
            h = h + gate_a * self.attention(f"{name}.attn", norm(h) * (1 + scale_a) + shift_a)
            inner = gelu(self.linear(f"{name}.mlp.fc1", norm(h) * (1 + scale_m) + shift_m))
            h = h + gate_m * self.linear(f"{name}.mlp.fc2", inner)
        shift, scale = self.modulation("final_layer", condition, 2)
        pixels = self.linear("final_layer.linear", norm(h) * (1 + scale) + shift)
        B, C, H, W = x.shape
        p = self.state["x_embedder.proj.weight"].shape[-1]
        out = np.empty((B, pixels.shape[2] // p**2, H, W))
        for token in range(pixels.shape[1]):
            i, j = divmod(token, W // p)
            patch = pixels[:, token].reshape(B, p, p, -1).transpose(0, 3, 1, 2)
            out[:, :, i * p : i * p + p, j * p : j * p + p] = patch
        return out


def position_embedding(grid, width):
    """The fixed embedding of a square grid [1,grid^2,width]: a quarter each sin and cos of the column, then the row."""
    rate = 1 / 10000 ** (np.arange(width // 4) / (width / 4))
    rows = []
    for i in range(grid):
        for j in range(grid):
            rows.append(np.concatenate([np.sin(j * rate), np.cos(j * rate), np.sin(i * rate), np.cos(i * rate)]))
    return np.array(rows)[None]


def official_state(seed, *, patch=2, width=16, depth=2, channels=3, out_channels=3, grid=4, classes=5):
    """Returns a state dict of random weights, of an order at which every part matters."""
    rng = np.random.default_rng(seed)

    def two(name, outputs, *inputs):
        scale = 1 / np.sqrt(np.prod(inputs))
        state[f"{name}.weight"] = (scale * rng.normal(size=(outputs, *inputs))).astype(np.float32)
        state[f"{name}.bias"] = (0.3 * rng.normal(size=outputs)).astype(np.float32)

    state = {"pos_embed": position_embedding(grid, width).astype(np.float32)}
    two("x_embedder.proj", width, channels, patch, patch)
    two("t_embedder.mlp.0", width, 256)
    two("t_embedder.mlp.2", width, width)
    state["y_embedder.embedding_table.weight"] = rng.normal(size=(classes + 1, width)).astype(np.float32)
    for index in range(depth):
        two(f"blocks.{index}.attn.qkv", 3 * width, width)
        two(f"blocks.{index}.attn.proj", width, width)
        two(f"blocks.{index}.mlp.fc1", 4 * width, width)
        two(f"blocks.{index}.mlp.fc2", width, 4 * width)
        two(f"blocks.{index}.adaLN_modulation.1", 6 * width, width)
    two("final_layer.linear", patch * patch * out_channels, width)
    two("final_layer.adaLN_modulation.1", 2 * width, width)
    return state
