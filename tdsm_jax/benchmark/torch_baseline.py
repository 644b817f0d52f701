"""The PyTorch side of the comparison: training steps and sampling, timed on request by another process.

`benchmark.torch` starts it with the folder of what it handed over and asks by lines of JSON on its input; each is
answered by one on its output. PyTorch and NumPy are all it needs.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tdsm_jax.benchmark.torch_networks import Classifier, DDPMpp

OUTPUTS = "torch_outputs.npz"
Denoise = Callable[..., Tensor]  # (x [B,C,H,W], sigma [B], label [B], dropout_rate=0) -> D


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """D(x, sigma, label) of a raw network under EDM's preconditioning, its arithmetic in bfloat16 on request."""

    network: nn.Module
    sigma_data: float
    bf16: bool

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor, dropout_rate: float = 0.0) -> Tensor:
        s, sd = sigma[:, None, None, None], self.sigma_data
        norm = (s**2 + sd**2).sqrt()
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            F = self.network(x / norm, sigma.log() / 4, label, dropout_rate)
        return (sd / norm) ** 2 * x + s * sd / norm * F.float()


@dataclasses.dataclass(frozen=True)
class Weigher:
    """w = p(y | x_t, y_tilde) [B,K] by Bayes' rule, from the classifier in float32 and log S [K,K]."""

    classifier: nn.Module
    log_S: Tensor
    sigma_data: float

    @torch.no_grad()
    def __call__(self, x_t: Tensor, sigma: Tensor, y_tilde: Tensor) -> Tensor:
        c_in = (sigma**2 + self.sigma_data**2).rsqrt()[:, None, None, None]
        log_h = functional.log_softmax(self.classifier(c_in * x_t, sigma.log() / 4), dim=1)
        evidence = self.log_S.T[y_tilde]
        possible = evidence.isfinite().any(dim=1, keepdim=True)
        return functional.softmax(log_h + torch.where(possible, evidence, 0.0), dim=1)


@dataclasses.dataclass(frozen=True)
class Losses:
    """The objectives, of x0, n [B,C,H,W], y_tilde int [B], sigma [B] and dropped bool [B] (examples without label)."""

    denoise: Denoise
    weigh: Callable[..., Tensor]
    residual: Tensor  # [K,K], the share of S above its columns' floor
    slots: tuple[int, bool]  # of the floor rule: other classes by themselves, and whether the null label
    tau: float
    sigma_data: float
    dropout_rate: float

    def dsm(self, x0: Tensor, n: Tensor, y_tilde: Tensor, sigma: Tensor, dropped: Tensor) -> Tensor:
        """Denoising score matching on the given labels."""
        label = torch.where(dropped, len(self.residual), y_tilde)
        x_t = x0 + sigma[:, None, None, None] * n
        return self.compared(self.denoise(x_t, sigma, label, self.dropout_rate), x0, sigma)

    def published(self, x0: Tensor, n: Tensor, y_tilde: Tensor, sigma: Tensor, dropped: Tensor) -> Tensor:
        """TDSM as published: a loop over the classes, each for the examples whose weight for it exceeds tau."""
        K = len(self.residual)
        x_t = x0 + sigma[:, None, None, None] * n
        w = self.weigh(x_t, sigma, y_tilde)
        own = torch.where(dropped, 1.0, w.gather(1, y_tilde[:, None])[:, 0])
        label = torch.where(dropped, K, y_tilde)
        M = own[:, None, None, None] * self.denoise(x_t, sigma, label, self.dropout_rate)
        with torch.no_grad():
            kept = (w > self.tau) & ~dropped[:, None] & (y_tilde[:, None] != torch.arange(K, device=w.device))
            others = torch.zeros_like(M)
            for y in range(K):
                rows = kept[:, y].nonzero()[:, 0]
                if len(rows):
                    D = self.denoise(x_t[rows], sigma[rows], torch.full_like(rows, y))
                    others.index_add_(0, rows, w[rows, y][:, None, None, None] * D)
        return self.compared(M + others, x0, sigma)

    def floor(self, x0: Tensor, n: Tensor, y_tilde: Tensor, sigma: Tensor, dropped: Tensor) -> Tensor:
        """TDSM with the floor of S on the null label: our form, two evaluations for symmetric noise of any K."""
        K, (m, null) = len(self.residual), self.slots
        x_t = x0 + sigma[:, None, None, None] * n
        above = self.weigh(x_t, sigma, y_tilde) * self.residual.T[y_tilde]
        own = above.gather(1, y_tilde[:, None])
        weights, classes = above.scatter(1, y_tilde[:, None], -1.0).topk(m, dim=1)
        if null:
            rest = (1 - own - weights.sum(dim=1, keepdim=True)).clamp_min(0)
            weights, classes = torch.cat([weights, rest], 1), functional.pad(classes, (0, 1), value=K)
        own = torch.where(dropped, 1.0, own[:, 0])
        weights = torch.where(dropped[:, None], 0.0, weights)
        M = own[:, None, None, None] * self.denoise(x_t, sigma, torch.where(dropped, K, y_tilde), self.dropout_rate)
        E = classes.shape[1]
        if E:
            with torch.no_grad():  # all the slots in one batch
                D = self.denoise(x_t.repeat(E, 1, 1, 1), sigma.repeat(E), classes.T.flatten())
            M = M + (weights.T.flatten()[:, None, None, None] * D).unflatten(0, (E, -1)).sum(0)
        return self.compared(M, x0, sigma)

    def compared(self, M: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
        """The mean over pixels of lambda(sigma) (M - x0)^2."""
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        return (weight[:, None, None, None] * (M - x0) ** 2).mean()


def heun(denoise: Denoise, latents: Tensor, label: Tensor, sigmas: list[float]) -> Tensor:
    """Deterministic sampler (Karras et al. 2022, algorithm 1). Shapes: latents [B,C,H,W], label int [B]."""
    x = latents * sigmas[0]

    def slope(x: Tensor, sigma: float) -> Tensor:
        return (x - denoise(x, torch.full_like(label, sigma, dtype=x.dtype), label)) / sigma

    with torch.no_grad():
        for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            d = slope(x, sigma)
            euler = x + (following - sigma) * d
            x = x + (following - sigma) * (d + slope(euler, following)) / 2 if following else euler
    return x


class Baseline:
    """Networks, optimiser and average from what was handed over, and one unit of each task at a time."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.settings = folder, json.loads((folder / "handover.json").read_text())
        s = self.settings
        with np.load(folder / "handover.npz") as stored:
            arrays = {name: torch.from_numpy(stored[name]).to(s["device"]) for name in stored.files}
        self.host = {name: arrays[name].cpu() for name in ("x0", "label")}  # [N,B,...]: batches come from the host
        self.arrays = arrays
        self.network = loaded(DDPMpp(**s["network"]), arrays, "network/")
        self.classifier = loaded(Classifier(**s["classifier"]), arrays, "classifier/")
        self.parameters = list(self.network.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimiser = torch.optim.Adam(self.parameters, lr=s["learning_rate"], fused=True)
        self.steps = 0
        self.denoise: dict[str, Denoise] = {}
        self.takes = {variant: self.tasks(variant) for variant in ("eager", "compile")}

    def losses(self, wrap: Callable[[Any], Any], bf16: bool, dropout_rate: float) -> Losses:
        s, sigma_data = self.settings, self.settings["sigma_data"]
        denoise = wrap(Denoiser(self.network, sigma_data, bf16).__call__)
        weigh = wrap(Weigher(self.classifier, self.arrays["log_S"], sigma_data).__call__)
        slots = tuple(s["residual_slots"])
        return Losses(denoise, weigh, self.arrays["residual"], slots, s["tau"], sigma_data, dropout_rate)

    def tasks(self, variant: str) -> dict[str, Callable[[], None]]:
        """Returns one unit of each task; the loop over classes has its networks compiled, any other loss as a whole."""
        wrap = torch.compile if variant == "compile" else as_it_is
        arguments = (self.settings["dtype"] == "bfloat16", self.settings["dropout_rate"])
        whole, parts = self.losses(as_it_is, *arguments), self.losses(wrap, *arguments)
        self.denoise[variant] = parts.denoise
        losses = {"dsm": wrap(whole.dsm), "floor": wrap(whole.floor), "published": parts.published}
        takes = {name: lambda loss=loss: self.train(loss) for name, loss in losses.items()}
        # A function of its own: the loop's program, for batches of any size, would serve sampling too.
        denoise = wrap(lambda x, sigma, label: whole.denoise(x, sigma, label))
        return takes | {"sampling": lambda: self.sample(denoise)}

    def warm(self, task: str, variant: str) -> float:
        """Returns the seconds of the first unit, compilation included; then shows the loop its other batch sizes."""
        (first,) = self.time(task, variant, units=1)
        if task == "published":
            sigma, label = self.arrays["sigma"], self.arrays["label"][0]
            x = channels_first(self.arrays["latents"])
            with torch.no_grad():
                for count in (1, 2, 3, len(label)):  # sizes that compilers treat in their own way
                    rows = torch.arange(count, device=x.device)
                    self.denoise[variant](x[rows], sigma[rows], label[rows])
        self.time(task, variant, units=1)
        return first

    def time(self, task: str, variant: str, units: int) -> list[float]:
        """Returns the seconds of some units of a task, each waited for."""
        seconds = []
        for _ in range(units):
            start = time.perf_counter()
            self.takes[variant][task]()
            if self.settings["device"] == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return seconds

    def train(self, loss_of: Callable[..., Tensor]) -> None:
        """One training step: batch from the host, noise, gradient, Adam, average."""
        s, device = self.settings, self.settings["device"]
        number = self.steps % len(self.host["x0"])
        x0, y_tilde = (self.host[name][number].to(device, non_blocking=True) for name in ("x0", "label"))
        B = len(y_tilde)
        sigma = (s["P_mean"] + s["P_std"] * torch.randn(B, device=device)).exp()
        dropped = torch.rand(B, device=device) < s["label_dropout"]
        x0 = channels_first(x0)
        self.optimiser.zero_grad(set_to_none=True)
        loss_of(x0, torch.randn_like(x0), y_tilde, sigma, dropped).backward()
        self.update()

    def update(self) -> None:
        """Adam with the ramp of the learning rate, then the average; lengths are counted in images."""
        s, seen = self.settings, (self.steps + 1) * self.settings["batch_size"]
        self.optimiser.param_groups[0]["lr"] = s["learning_rate"] * min(seen / max(s["ramp_images"], 1), 1.0)
        self.optimiser.step()
        half_life = max(min(s["ema_half_life"], seen * s["ema_ramp"]), 1e-8)
        decay = 0.5 ** (s["batch_size"] / half_life)
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        self.steps += 1

    def sample(self, denoise: Denoise) -> Tensor:
        latents, label = channels_first(self.arrays["latents"]), self.arrays["sample_label"]
        return heun(denoise, latents, label, self.settings["sigmas"])

    def write_outputs(self) -> None:
        """Writes what the comparison compares, of the first batch at given noise, in float32 without dropout."""
        a = self.arrays
        losses = self.losses(as_it_is, bf16=False, dropout_rate=0.0)
        x0, n, y_tilde, sigma = channels_first(a["x0"][0]), channels_first(a["n"]), a["label"][0], a["sigma"]
        x_t = x0 + sigma[:, None, None, None] * n
        found = {"w": losses.weigh(x_t, sigma, y_tilde)}
        with torch.no_grad():
            D = losses.denoise(x_t, sigma, torch.where(a["dropped"], len(losses.residual), y_tilde))
        found |= {"D": D.permute(0, 2, 3, 1), "samples": self.sample(losses.denoise).permute(0, 2, 3, 1)}
        for task in ("dsm", "floor", "published"):
            loss = getattr(losses, task)(x0, n, y_tilde, sigma, a["dropped"])
            gradient = torch.autograd.grad(loss, self.parameters)
            norm = torch.stack([g.square().sum() for g in gradient]).sum().sqrt()
            found |= {f"{task} loss": loss.detach(), f"{task} gradient norm": norm}
        np.savez(self.folder / OUTPUTS, **{name: value.cpu().numpy() for name, value in found.items()})


def as_it_is(function: Callable) -> Callable:
    return function


def loaded(module: nn.Module, arrays: dict[str, Tensor], prefix: str) -> nn.Module:
    """Returns the module with the arrays below `prefix` as parameters, channels last; every one must have its place."""
    state = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    module.load_state_dict(state)
    return module.to(arrays["x0"].device, memory_format=torch.channels_last)


def channels_first(x: Tensor) -> Tensor:
    """Turns [B,H,W,C] into [B,C,H,W] without moving anything: this is PyTorch's channels_last."""
    return x.permute(0, 3, 1, 2)


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Lets float32 products of a GPU keep ten bits, as JAX does by default, or not."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def about(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns versions and settings of this process."""
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "threads": torch.get_num_threads(),
        "precision": "bf16 autocast" if settings["dtype"] == "bfloat16" else "float32, TF32 on a GPU",
        "channels_last": True,
        "optimiser": "fused Adam, zero_grad(set_to_none=True)",
        "compile": "default mode; the loss whole, the published loop by its networks",
    }


def main(folder: pathlib.Path) -> None:
    """Answers requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    baseline = Baseline(folder)
    torch.set_num_threads(baseline.settings["threads"])
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.recompile_limit = 32  # the loop has batches of many sizes
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # no silent return to eager
    for line in sys.stdin:
        request = json.loads(line)
        kind = request.pop("kind")
        with tf32(kind != "outputs"):
            answer: Any = None
            if kind == "outputs":
                baseline.write_outputs()
            elif kind == "about":
                answer = about(baseline.settings)
            else:
                answer = (baseline.warm if kind == "warm" else baseline.time)(**request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
