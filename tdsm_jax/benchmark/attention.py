"""What attention costs against the number of tokens: full in each implementation, to a window, to a neighbourhood.

  python -m tdsm_jax.benchmark attention
  python -m tdsm_jax.benchmark attention --tokens=256,1024,4096 --window=7 --json=attention.json --plot=attention.svg
  python -m tdsm_jax.benchmark attention --tokens=64,256 --batch=1 --heads=2 --rounds=3   (seconds)

Tokens are those of a square grid. A neighbourhood is --window tokens along each axis; a window, in the row of all
tokens, is as many as such a neighbourhood has, so that both see equally much. full is `jax.nn.dot_product_attention`
in plain operations, full chunked never holds N x N logits, full cudnn needs a GPU and --dtype=bfloat16 and is left out
elsewhere. Forward is the attention alone, backward is forward and the gradients of q, k and v. Everything is compiled
first, then all are timed in turn, so that what else the machine does meets all alike; ratios are to full at the same
number of tokens in the same run. Memory is the compiler's count of temporary bytes, arguments and results left out: a
figure of the program, not a reading of the device. What does not fit the memory is named and left out.
"""

import argparse
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from tdsm_jax import files, runtime
from tdsm_jax.benchmark.sampling import counts
from tdsm_jax.benchmark.timing import described, environment, seconds_of, spread_of, summary
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import charts
from tdsm_jax.evaluation.table import grid
from tdsm_jax.networks.attention import full_attention, patterned_attention

DTYPES = ("float32", "bfloat16")
PARTS = ("forward", "backward")
REFERENCE = "full"


class Shape(NamedTuple):
    """What is timed: images at a time, heads and channels of one, window along an axis, type of q, k and v."""

    batch: int
    heads: int
    channels: int
    window: int
    dtype: str


def main(arguments: argparse.Namespace) -> None:
    """Times every kind at every number of tokens, prints and writes the records."""
    runtime.configure()
    shape = Shape(arguments.batch, arguments.heads, arguments.channels, arguments.window, arguments.dtype)
    if min(shape[:4]) < 1 or arguments.rounds < 3:
        raise UserError("--batch, --heads, --channels and --window must be at least 1, --rounds at least 3")
    sides = [side_of(tokens, shape.window) for tokens in counts("tokens", arguments.tokens)]
    about = shape._asdict() | {"rounds": arguments.rounds} | environment()
    records = [record | about for side in sides for record in measure(shape, side, arguments.rounds)]
    print(f"{described(about)}\n{shape.dtype}, {shape.batch} x {shape.heads} heads of {shape.channels}\n")
    print("\n\n".join(f"### {part}\n\n{table(records, part)}" for part in PARTS))
    if arguments.json:
        files.write_json(arguments.json, records)
    if arguments.plot:
        files.write_text(arguments.plot, plot(records))


def side_of(tokens: int, window: int) -> int:
    """Returns the side of a square grid; a number that is no square, or a grid smaller than the window, is refused."""
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise UserError(f"--tokens: {tokens} are no square grid; {side**2} or {(side + 1) ** 2} are")
    if window > side:
        raise UserError(f"--window={window} is larger than the {side}x{side} grid of --tokens={tokens}")
    return side


def kinds(shape: Shape, side: int) -> dict[str, Callable[..., jax.Array]]:
    """Returns every attention (q, k, v) -> [B,N,heads,c] that this machine can compute, by name."""
    local = functools.partial(patterned_attention, grid=(side, side), implementation="auto")
    found: dict[str, Callable[..., jax.Array]] = {
        REFERENCE: functools.partial(full_attention, implementation="xla"),
        "full, chunked": functools.partial(full_attention, implementation="chunked"),
        "window": functools.partial(local, pattern="window", window=shape.window**2),
        "neighbourhood": functools.partial(local, pattern="neighbourhood", window=shape.window),
    }
    if jax.default_backend() == "gpu" and shape.dtype == "bfloat16":
        found["full, cudnn"] = functools.partial(full_attention, implementation="cudnn")
    return found


def parts(attention: Callable[..., jax.Array]) -> dict[str, Callable]:
    """Returns the two parts of an attention, each of (q, k, v, g): its value; its value and gradients along g."""

    def backward(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> tuple:
        out, pull = jax.vjp(attention, q, k, v)
        return out, pull(g)

    return {"forward": lambda q, k, v, g: attention(q, k, v), "backward": backward}


def measure(shape: Shape, side: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yields the record of each kind and part at one number of tokens."""
    size = (shape.batch, side * side, shape.heads, shape.channels)
    arrays = [jax.random.normal(key, size, shape.dtype) for key in jax.random.split(jax.random.key(0), 4)]
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    memory: dict[tuple[str, str], int | None] = {}
    for kind, attention in kinds(shape, side).items():
        for part, of_part in parts(attention).items():
            try:
                compiled = jax.jit(of_part).lower(*arrays).compile()
                jax.block_until_ready(compiled(*arrays))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                print(f"{kind}, {part}, {side * side} tokens: does not fit the memory; left out")
                continue
            calls[kind, part] = functools.partial(compiled, *arrays)
            analysis = compiled.memory_analysis()
            memory[kind, part] = None if analysis is None else analysis.temp_size_in_bytes
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(seconds_of(call))
    for (kind, part), taken in seconds.items():
        yield {
            "kind": kind,
            "part": part,
            "tokens": side * side,
            "temporary_bytes": memory[kind, part],
            **summary(taken, shape.batch),
        }


def table(records: Sequence[dict[str, Any]], part: str) -> str:
    """Returns the records of one part in Markdown: times, memory, and both over those of full attention."""
    own = [r for r in records if r["part"] == part]
    full = {r["tokens"]: r for r in own if r["kind"] == REFERENCE}
    rows = []
    for r in own:
        reference, known = full.get(r["tokens"]), r["temporary_bytes"] is not None
        rows.append(
            (
                r["tokens"],
                r["kind"],
                spread_of(r),
                over(r, reference, "milliseconds"),
                f"{r['temporary_bytes'] / 2**20:.1f}" if known else "",
                over(r, reference, "temporary_bytes"),
            )
        )
    return grid(("tokens", "attention", "ms, median (quartiles)", "over full", "temporaries, MiB", "over full"), rows)


def over(record: dict[str, Any], reference: dict[str, Any] | None, key: str) -> str:
    """Returns a figure over that of full attention, "" where one of them is missing."""
    if reference is None or record[key] is None or not reference[key]:
        return ""
    return f"{record[key] / reference[key]:.3g}"


def plot(records: Sequence[dict[str, Any]]) -> str:
    """Returns the chart, as SVG, of the time of forward and backward against tokens, a line a kind."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for r in records:
        if r["part"] == "backward":
            xs, ys = series.setdefault(r["kind"], ([], []))
            xs.append(r["tokens"])
            ys.append(r["milliseconds"])
    return charts.line_chart(
        series, x_label="tokens (log scale)", y_label="forward and backward, ms (log scale)", log_x=True, log_y=True
    )


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--tokens", default="64,256,1024,4096", help="of square grids, by commas (%(default)s)")
    parser.add_argument("--window", type=int, default=7, help="tokens that each sees along an axis (%(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="images at a time (%(default)s)")
    parser.add_argument("--heads", type=int, default=6, help="(%(default)s)")
    parser.add_argument("--channels", type=int, default=64, help="of a head (%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of q, k and v (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each (%(default)s)")
    parser.add_argument("--json", help="where to write the records")
    parser.add_argument("--plot", help="where to draw time against tokens, as SVG")
    run_command(parser, main)
