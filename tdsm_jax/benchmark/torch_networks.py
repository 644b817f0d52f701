"""The networks of the comparison in PyTorch: DDPM++ (Song et al. 2021, as in Karras et al. 2022), and the classifier.

They compute what `networks.unet.UNet` in its style ddpmpp and `networks.classifier.Classifier` do. Parameters bear the
names of exported state dicts. PyTorch and NumPy are all that is needed: the other process may have no JAX.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPS = 1e-6
SKIP_SCALE = math.sqrt(0.5)  # keeps the variance of a sum of two branches


def group_norm(channels: int) -> nn.GroupNorm:
    """Returns a norm of min(32, channels // 4) groups, or the next fewer that divide."""
    groups = next(g for g in range(max(1, min(32, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


def conv(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


def sinusoids(c_noise: Tensor, channels: int) -> Tensor:
    """Embeds the noise level [B] as sines, then cosines, of frequencies from 1 to 1/10000: [B,channels]."""
    half = channels // 2
    exponents = torch.arange(half, device=c_noise.device, dtype=torch.float32) / max(half - 1, 1)
    angles = c_noise[:, None] * 10000.0**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Block(nn.Module):
    """Residual block. Shapes: x [B,inputs,H,W], embedding [B,E] -> [B,outputs,H',W']; `move` is up, down or neither."""

    def __init__(self, inputs: int, outputs: int, embedding: int, move: str = "", attention: bool = False):
        super().__init__()
        self.kind, self.has_attention = move, attention
        self.norm0, self.conv0 = group_norm(inputs), conv(inputs, outputs)
        self.affine = nn.Linear(embedding, outputs)
        self.norm1, self.conv1 = group_norm(outputs), conv(outputs, outputs)
        self.skip = conv(inputs, outputs, 1) if move or inputs != outputs else nn.Identity()
        if attention:
            self.norm2 = group_norm(outputs)
            self.qkv, self.proj = conv(outputs, 3 * outputs, 1), conv(outputs, outputs, 1)

    def move(self, x: Tensor) -> Tensor:
        if self.kind == "down":
            return functional.avg_pool2d(x, 2)
        return functional.interpolate(x, scale_factor=2, mode="nearest") if self.kind == "up" else x

    def forward(self, x: Tensor, embedding: Tensor, dropout_rate: float) -> Tensor:
        branch = self.conv0(self.move(functional.silu(self.norm0(x))))
        branch = functional.silu(self.norm1(branch + self.affine(embedding)[:, :, None, None]))
        if dropout_rate:
            branch = functional.dropout(branch, dropout_rate)
        x = (self.skip(self.move(x)) + self.conv1(branch)) * SKIP_SCALE
        return self.attend(x) if self.has_attention else x

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention of one head over the pixels; channels of q, k and v come interleaved."""
        B, C, H, W = x.shape
        q, k, v = self.qkv(self.norm2(x)).reshape(B, C, 3, H * W).permute(2, 0, 3, 1)[:, :, None]  # each [B,1,HW,C]
        attended = functional.scaled_dot_product_attention(q, k, v)
        return (x + self.proj(attended[:, 0].transpose(1, 2).reshape(B, C, H, W))) * SKIP_SCALE


class DDPMpp(nn.Module):
    """The raw network F(x [B,C,H,W], c_noise [B], label int [B]) -> [B,C,H,W]; label num_classes is the null label."""

    def __init__(
        self,
        resolution: int,
        image_channels: int,
        num_classes: int,
        channels: int,
        multipliers: list[int],
        blocks: int,
        attention_resolutions: list[int],
    ):
        super().__init__()
        self.num_classes, self.channels = num_classes, channels
        E = 4 * channels
        self.map_label = nn.Linear(num_classes, channels)
        self.map_layer0, self.map_layer1 = nn.Linear(channels, E), nn.Linear(E, E)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()

        width, skips = channels, []
        for level, multiplier in enumerate(multipliers):
            r = resolution >> level
            if level:
                self.enc[f"{r}x{r}_down"] = Block(width, width, E, move="down")
            else:
                self.enc[f"{r}x{r}_conv"] = conv(image_channels, width)
            skips.append(width)
            for index in range(blocks):
                attention = r in attention_resolutions
                self.enc[f"{r}x{r}_block{index}"] = Block(width, channels * multiplier, E, attention=attention)
                width = channels * multiplier
                skips.append(width)
        for level, multiplier in reversed(list(enumerate(multipliers))):
            r = resolution >> level
            if level == len(multipliers) - 1:
                self.dec[f"{r}x{r}_in0"] = Block(width, width, E, attention=True)
                self.dec[f"{r}x{r}_in1"] = Block(width, width, E)
            else:
                self.dec[f"{r}x{r}_up"] = Block(width, width, E, move="up")
            for index in range(blocks + 1):
                attention = r in attention_resolutions and index == blocks
                block = Block(width + skips.pop(), channels * multiplier, E, attention=attention)
                self.dec[f"{r}x{r}_block{index}"] = block
                width = channels * multiplier
        self.dec[f"{resolution}x{resolution}_aux_norm"] = group_norm(width)
        self.dec[f"{resolution}x{resolution}_aux_conv"] = conv(width, image_channels)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor, dropout_rate: float = 0.0) -> Tensor:
        one_hot = label[:, None] == torch.arange(self.num_classes, device=x.device)
        embedding = sinusoids(c_noise, self.channels) + self.map_label(one_hot * math.sqrt(self.num_classes))
        embedding = functional.silu(self.map_layer0(embedding))
        embedding = functional.silu(self.map_layer1(embedding))
        skips = []
        for module in self.enc.values():
            x = module(x, embedding, dropout_rate) if isinstance(module, Block) else module(x)
            skips.append(x)
        for name, module in self.dec.items():
            if "block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            if isinstance(module, Block):
                x = module(x, embedding, dropout_rate)
            else:
                x = functional.silu(module(x)) if name.endswith("_norm") else module(x)
        return x


class Classifier(nn.Module):
    """The logits of h: x [B,C,H,W], c_noise [B] -> [B,num_classes]. Two convolutions and a halving a stage."""

    def __init__(self, resolution: int, image_channels: int, num_classes: int, widths: list[int], hidden: int):
        super().__init__()
        self.widths = widths
        self.map_layer = nn.Linear(widths[0], 2 * widths[0])
        width = image_channels
        for stage, outputs in enumerate(widths):
            self.add_module(f"stage{stage}_conv0", conv(width, outputs))
            self.add_module(f"stage{stage}_norm0", group_norm(outputs))
            self.add_module(f"stage{stage}_affine", nn.Linear(2 * widths[0], outputs))
            self.add_module(f"stage{stage}_conv1", conv(outputs, outputs))
            self.add_module(f"stage{stage}_norm1", group_norm(outputs))
            width = outputs
        self.hidden = nn.Linear((resolution >> len(widths)) ** 2 * width, hidden)
        self.logits = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        embedding = functional.silu(self.map_layer(sinusoids(c_noise, self.widths[0])))
        for stage in range(len(self.widths)):
            conv0, norm0, affine, conv1, norm1 = (
                self.get_submodule(f"stage{stage}_{part}") for part in ("conv0", "norm0", "affine", "conv1", "norm1")
            )
            x = norm0(conv0(x)) + affine(embedding)[:, :, None, None]
            x = functional.avg_pool2d(functional.silu(norm1(conv1(functional.silu(x)))), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)  # the channels fastest, as the weights have it
        return self.logits(functional.silu(self.hidden(x)))
