"""DDPM++ under EDM preconditioning in NumPy float64, channels first, straight from a state dict with official names.

A second opinion that shares no code with the package. One level of detail below the paper: Karras et al. 2022,
appendix F; Song et al. 2021.
"""

import re

import numpy as np

SIGMA_DATA = 0.5


def silu(x):
    return x / (1 + np.exp(-x))


def conv(x, weight, bias):
    """Correlation with zero padding that keeps the size. x [B,I,H,W], weight [O,I,n,n]."""
    n = weight.shape[-1]
    H, W = x.shape[2:]
    x = np.pad(x, [(0, 0), (0, 0), (n // 2, n // 2), (n // 2, n // 2)])
    out = sum(
        np.einsum("bihw,oi->bohw", x[:, :, i : i + H, j : j + W], weight[:, :, i, j], optimize=True)
        for i in range(n)
        for j in range(n)
    )
    return out + bias[:, None, None]


def group_norm(x, weight, bias):
    B, C, H, W = x.shape
    grouped = x.reshape(B, min(32, C // 4), -1)
    grouped = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + 1e-6)
    return grouped.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


def halve(x):
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def double(x):
    return x.repeat(2, axis=2).repeat(2, axis=3)


class Network:
    """The official network of a state dict; call it as D(x [B,C,H,W], sigma, one_hot [B,K])."""

    def __init__(self, state):
        self.state = {name.removeprefix("model."): np.asarray(a, np.float64) for name, a in state.items()}

    def _two(self, name):
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]

    def _linear(self, name, x):
        weight, bias = self._two(name)
        return x @ weight.T + bias

    def _block(self, name, x, embedding):
        move = halve if name.endswith("_down") else double if name.endswith("_up") else np.asarray
        branch = conv(move(silu(group_norm(x, *self._two(f"{name}.norm0")))), *self._two(f"{name}.conv0"))
        branch = branch + self._linear(f"{name}.affine", embedding)[:, :, None, None]
        branch = conv(silu(group_norm(branch, *self._two(f"{name}.norm1"))), *self._two(f"{name}.conv1"))
        if f"{name}.skip.weight" in self.state:
            x = conv(move(x), *self._two(f"{name}.skip"))
        x = (x + branch) * np.sqrt(0.5)
        if f"{name}.qkv.weight" not in self.state:
            return x
        B, C, H, W = x.shape
        qkv = conv(group_norm(x, *self._two(f"{name}.norm2")), *self._two(f"{name}.qkv")).reshape(B, C, 3, H * W)
        scores = np.exp(np.einsum("bct,bcs->bts", qkv[:, :, 0], qkv[:, :, 1]) / np.sqrt(C))
        attention = scores / scores.sum(-1, keepdims=True)
        mixed = np.einsum("bts,bcs->bct", attention, qkv[:, :, 2]).reshape(B, C, H, W)
        return (x + conv(mixed, *self._two(f"{name}.proj"))) * np.sqrt(0.5)

    def _embed(self, c_noise, one_hot):
        width = self.state["map_layer0.weight"].shape[1]
        frequencies = 10000.0 ** (-np.arange(width // 2) / (width // 2 - 1))
        angles = c_noise * frequencies
        x = np.concatenate([np.sin(angles), np.cos(angles)])
        x = x + self._linear("map_label", one_hot * np.sqrt(one_hot.shape[1]))
        return silu(self._linear("map_layer1", silu(self._linear("map_layer0", x))))

    def __call__(self, x, sigma, one_hot):
        total = sigma**2 + SIGMA_DATA**2
        embedding = self._embed(np.log(sigma) / 4, one_hot)
        F = self._body(x / np.sqrt(total), embedding)
        return SIGMA_DATA**2 / total * x + sigma * SIGMA_DATA / np.sqrt(total) * F

    def _body(self, x, embedding):
        names = list(
            dict.fromkeys(".".join(name.split(".")[:2]) for name in self.state if name[:4] in ("enc.", "dec."))
        )
        sizes = sorted({int(re.search(r"\.(\d+)x", name).group(1)) for name in names}, reverse=True)
        skips = []
        for r in sizes:
            first = f"enc.{r}x{r}_conv"
            x = conv(x, *self._two(first)) if first in names else self._block(f"enc.{r}x{r}_down", x, embedding)
            skips.append(x)
            for name in sorted(n for n in names if n.startswith(f"enc.{r}x{r}_block")):
                x = self._block(name, x, embedding)
                skips.append(x)
        for r in reversed(sizes):
            starts = ("in0", "in1") if r == sizes[-1] else ("up",)
            for start in starts:
                x = self._block(f"dec.{r}x{r}_{start}", x, embedding)
            for name in sorted(n for n in names if n.startswith(f"dec.{r}x{r}_block")):
                x = self._block(name, np.concatenate([x, skips.pop()], axis=1), embedding)
        top = f"dec.{sizes[0]}x{sizes[0]}"
        return conv(silu(group_norm(x, *self._two(f"{top}_aux_norm"))), *self._two(f"{top}_aux_conv"))


def heun(D, latents, sigmas):
    """Karras et al. 2022, algorithm 1, without churn, by its text. D(x, sigma)."""
    x = latents * sigmas[0]
    for i in range(len(sigmas) - 1):
        d = (x - D(x, sigmas[i])) / sigmas[i]
        guess = x + (sigmas[i + 1] - sigmas[i]) * d
        if sigmas[i + 1]:
            d = (d + (guess - D(guess, sigmas[i + 1])) / sigmas[i + 1]) / 2
            guess = x + (sigmas[i + 1] - sigmas[i]) * d
        x = guess
    return x
