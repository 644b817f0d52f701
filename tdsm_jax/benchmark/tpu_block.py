"""What choices do to one residual block and its gradient on a TPU, by its compiler: dtype, remat, padding, attention.

  python -m tdsm_jax.benchmark tpu_block
  python -m tdsm_jax.benchmark tpu_block --topology=v6e:1x1 --variants=plain/float32 --json=blocks.json

A block takes a minute to compile where a whole step takes twenty (`benchmark tpu`), so choices can be compared side by
side. Needs the extra [tpu], no TPU. All figures are the compiler's, of one chip; nothing here ran.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tdsm_jax import files
from tdsm_jax.benchmark.tpu import cost_of, mesh_of, placed, use_compiler, versions
from tdsm_jax.benchmark.tpu_figures import CHIPS, Chip, memory_of, read_topologies, roofline
from tdsm_jax.command import new_parser, run_command
from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.evaluation.table import grid
from tdsm_jax.networks.unet import STYLES, Block
from tdsm_jax.training.parallel import DataMesh

EMBEDDING = 512  # of the published network: four times its 128 channels


class Variant(NamedTuple):
    """A block: what the network's wide blocks are, but for what a variant changes."""

    channels: int = 256
    side: int = 32
    images: int = 64
    dtype: str = "bfloat16"
    dropout: float = 0.13
    remat: bool = False
    attend: bool = False


VARIANTS = {
    "plain": Variant(),
    "no dropout": Variant(dropout=0.0),
    "remat": Variant(remat=True),
    "float32": Variant(dtype="float32"),
    "128 images": Variant(images=128),
    "192 channels": Variant(channels=192),
    "16x16": Variant(side=16),
    "16x16, attention": Variant(side=16, attend=True),
    "16x16, attention, float32": Variant(side=16, attend=True, dtype="float32"),
}


def main(arguments: argparse.Namespace) -> None:
    """Compiles every variant; prints the table and writes the records as they come."""
    names = tuple(VARIANTS) if not arguments.variants else tuple(arguments.variants.split("/"))
    for name in names:
        if name not in VARIANTS:
            raise UserError(f"--variants: {name!r} is none{did_you_mean(name, VARIANTS)}")
    (topology,) = read_topologies(arguments.topology)
    use_compiler()
    mesh, records = mesh_of(topology), []
    if mesh.size != 1:
        raise UserError(f"--topology={topology.name} has {mesh.size} chips; a block is compiled for one: v5e:1x1")
    for name in names:
        record = {"variant": name, "topology": topology.name, "versions": versions()}
        records.append(record | compiled(VARIANTS[name], mesh, CHIPS[topology.chip]))
        print(f"{name}: compiled in {records[-1]['compile_seconds']:.0f} s", file=sys.stderr, flush=True)
        if arguments.json:
            files.write_json(arguments.json, records)
    print(f"compiler figures of one {topology.name} block and its gradient, not runs\n\n{table(records)}")


def compiled(variant: Variant, mesh: DataMesh, chip: Chip) -> dict[str, Any]:
    """Compiles a block with its gradient and returns what the compiler says of it; seconds are the processor's."""
    start = time.process_time()
    program = gradient_of(variant, mesh).compile()
    cost = cost_of(program)
    return {
        **variant._asdict(),
        "compile_seconds": time.process_time() - start,
        "flops": cost.flops,
        "bytes": cost.bytes,
        "memory": memory_of(program.memory_analysis(), chip),
        **roofline(cost, chip),
    }


def gradient_of(variant: Variant, mesh: DataMesh) -> jax.stages.Lowered:
    """Returns the block's gradient by parameters and input, lowered for the compiler."""
    v = variant
    kind: Callable[..., nn.Module] = nn.remat(Block) if v.remat else Block
    block = kind(v.channels, STYLES["ddpmpp"], dropout_rate=v.dropout, dtype=jnp.dtype(v.dtype), attend=v.attend)
    x, embedding = jnp.zeros((1, v.side, v.side, v.channels), v.dtype), jnp.zeros((1, EMBEDDING), v.dtype)
    keys = jax.random.split(jax.random.key(0), 1)
    params = placed(jax.eval_shape(block.init, jax.random.key(0), x, embedding, None), mesh)
    rows = placed((x, embedding, keys), mesh, v.images)

    def loss(params: Any, x: jax.Array, embedding: jax.Array, keys: jax.Array) -> jax.Array:
        return jnp.square(block.apply(params, x, embedding, keys).astype(jnp.float32)).mean()

    return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, *rows)


def table(records: list[dict[str, Any]]) -> str:
    """Returns the records as a Markdown table, by image so that batches compare."""
    heads = ("block", "MFLOP an image", "kB an image", "FLOP/byte (ridge)", "roofline, us an image")
    heads += ("temporaries, kB an image", "code, MB", "compile, CPU s")
    rows = []
    for r in records:
        n = r["images"]
        rows.append(
            [
                f"{r['variant']}",
                f"{r['flops'] / n / 1e6:,.0f}",
                f"{r['bytes'] / n / 1e3:,.0f}",
                f"{r['intensity']:.0f} ({r['ridge']:.0f})",
                f"{1e3 * r['roofline_ms'] / n:.1f}, {r['bound']}",
                f"{r['memory']['temporaries'] / n / 1e3:,.0f}",
                f"{r['memory']['code'] / 1e6:.1f}",
                f"{r['compile_seconds']:.0f}",
            ]
        )
    return grid(heads, rows)


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--topology", default="v5e:1x1", help="one chip (%(default)s)")
    parser.add_argument("--variants", help=f"of {' / '.join(VARIANTS)}, joined by slashes (all)")
    parser.add_argument("--json", help="where to write the records")
    run_command(parser, main)
