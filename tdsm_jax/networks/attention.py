"""Attention: which tokens see which (full, window, neighbourhood), and how the full one is computed.

The first is part of a model, the second is not: all implementations give the same numbers. Shapes everywhere: q, k, v
[B,N,heads,c] -> [B,N,heads,c]; logits and softmax in float32.
"""

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Of full attention. auto, xla, cudnn: those of `jax.nn.dot_product_attention`; chunked: never N x N logits at a time.
IMPLEMENTATIONS = ("auto", "xla", "cudnn", "chunked")
_OF_JAX: dict[str, Literal["xla", "cudnn"] | None] = {"auto": None, "xla": "xla", "cudnn": "cudnn"}
PATTERNS = ("full", "window", "neighbourhood")
CHUNK = 256  # tokens; a loop over products this large costs nothing against one large product
LEAST_TILE = 16  # queries that share their keys: fewer make products too small


def full_attention(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str = "auto") -> jax.Array:
    """Every token sees every token, of `IMPLEMENTATIONS` by one; k and v may have another number of tokens than q."""
    if implementation == "chunked":
        return chunked_attention(q, k, v, min(CHUNK, max(q.shape[1], k.shape[1])))
    return jax.nn.dot_product_attention(q, k, v, implementation=_OF_JAX[implementation])


def patterned_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, grid: tuple[int, int], pattern: str, window: int, implementation: str
) -> jax.Array:
    """Attention of the tokens of a grid [H,W], in rows, by one of `PATTERNS`; `window` is read where it is local."""
    if pattern == "full":
        return full_attention(q, k, v, implementation)
    return local_attention(q, k, v, grid if pattern == "neighbourhood" else (math.prod(grid),), window)


# --- full, in chunks ---


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def chunked_attention(q: jax.Array, k: jax.Array, v: jax.Array, chunk: int) -> jax.Array:
    """Full attention of `chunk` queries and keys at a time: memory linear in their number, forward and backward.

    The softmax is rescaled as its maximum grows (Milakov & Gimelshein 2018); backward the weights are made again from
    the stored logarithm of their sum (Rabe & Staats 2021, Dao et al. 2022). No derivatives in forward mode.
    """
    return _chunked_forward(q, k, v, chunk)[0]


def _chunked_forward(q: jax.Array, k: jax.Array, v: jax.Array, chunk: int) -> tuple[jax.Array, tuple]:
    queries, keys, values, known = *(_chunks(x, chunk) for x in (q, k, v)), _known(k.shape[1], chunk)

    def of_queries(some: jax.Array) -> tuple[jax.Array, jax.Array]:
        B, n, heads, _ = some.shape

        def take_in(running: tuple, part: tuple) -> tuple[tuple, None]:
            most, total, mixed = running
            key, value, there = part
            logits = _logits(some, key, there)
            new = jnp.maximum(most, logits.max(-1))
            weights, shrink = jnp.exp(logits - new[..., None]), jnp.exp(most - new)
            mixed = mixed * shrink[..., None] + _product("bhqk,bkhc->bhqc", weights, value)
            return (new, total * shrink + weights.sum(-1), mixed), None

        # Every chunk of keys has a real one, so that the maximum is finite after the first.
        nothing = jnp.full((B, heads, n), -jnp.inf), jnp.zeros((B, heads, n)), jnp.zeros((B, heads, n, v.shape[-1]))
        (most, total, mixed), _ = jax.lax.scan(take_in, nothing, (keys, values, known))
        return jnp.moveaxis(mixed / total[..., None], 1, 2), most + jnp.log(total)

    mixed, log_total = jax.lax.map(of_queries, queries)  # [chunks,B,chunk,heads,c], [chunks,B,heads,chunk]
    out = _joined(mixed, q.shape[1]).astype(q.dtype)
    return out, (q, k, v, out, log_total)


def _chunked_backward(chunk: int, kept: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    q, k, v, out, log_total = kept
    queries, keys, values, gradients = (_chunks(x, chunk) for x in (q, k, v, gradient))
    scale = 1 / math.sqrt(q.shape[-1])
    inner = jnp.sum(gradient.astype(jnp.float32) * out, axis=-1)  # [B,N,heads]
    inner = jnp.moveaxis(_chunks(inner[..., None], chunk)[..., 0], -1, 2)  # [chunks,B,heads,chunk]

    def of_keys(d_queries: jax.Array, part: tuple) -> tuple[jax.Array, tuple]:
        key, value, there = part

        def take_in(running: tuple, row: tuple) -> tuple[tuple, jax.Array]:
            d_key, d_value = running
            query, g, log_sum, own = row
            weights = jnp.exp(_logits(query, key, there) - log_sum[..., None])
            d_logits = scale * weights * (_product("bqhc,bkhc->bhqk", g, value) - own[..., None])
            d_value = d_value + _product("bhqk,bqhc->bkhc", weights, g)
            d_key = d_key + _product("bhqk,bqhc->bkhc", d_logits, query)
            return (d_key, d_value), _product("bhqk,bkhc->bqhc", d_logits, key)

        zeros = jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
        (d_key, d_value), d_query = jax.lax.scan(take_in, zeros, (queries, gradients, log_total, inner))
        return d_queries + d_query, (d_key, d_value)

    none = jnp.zeros(queries.shape, jnp.float32)
    d_queries, (d_keys, d_values) = jax.lax.scan(of_keys, none, (keys, values, _known(k.shape[1], chunk)))

    def whole(d: jax.Array, like: jax.Array) -> jax.Array:
        return _joined(d, like.shape[1]).astype(like.dtype)

    return whole(d_queries, q), whole(d_keys, k), whole(d_values, v)


chunked_attention.defvjp(_chunked_forward, _chunked_backward)


def _chunks(x: jax.Array, chunk: int) -> jax.Array:
    """[B,N,heads,c] -> [chunks,B,chunk,heads,c], zeros behind the end."""
    B, N, heads, c = x.shape
    count = -(-N // chunk)
    padded = jnp.pad(x, [(0, 0), (0, count * chunk - N), (0, 0), (0, 0)])
    return jnp.moveaxis(padded.reshape(B, count, chunk, heads, c), 1, 0)


def _joined(chunks: jax.Array, N: int) -> jax.Array:
    """The inverse of `_chunks`."""
    count, B, chunk, heads, c = chunks.shape
    return jnp.moveaxis(chunks, 0, 1).reshape(B, count * chunk, heads, c)[:, :N]


def _known(N: int, chunk: int) -> np.ndarray:
    """Which keys of each chunk there are, bool [chunks,chunk]."""
    return np.arange(-(-N // chunk) * chunk).reshape(-1, chunk) < N


def _logits(q: jax.Array, k: jax.Array, seen: jax.Array | np.ndarray) -> jax.Array:
    """[...,q,heads,c], [...,k,heads,c], bool [...,q or 1,k] -> float32 [...,heads,q,k], -inf for what is not seen."""
    logits = _product("...qhc,...khc->...hqk", q, k) / math.sqrt(q.shape[-1])
    return jnp.where(seen, logits, -jnp.inf)


def _product(form: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """A sum of products in float32, of factors in the smaller type of both (weights of bfloat16 values are rounded)."""
    dtype = min(a.dtype, b.dtype, key=lambda dtype: jnp.dtype(dtype).itemsize)
    return jnp.einsum(form, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


# --- local ---


class Tiling(NamedTuple):
    """How one axis is cut. Shapes: queries int [tiles,size], keys int [tiles,length], seen bool [tiles,size,length].

    The queries of a tile share their keys, the union of what they see; behind the end the last token is repeated.
    """

    queries: np.ndarray
    keys: np.ndarray
    seen: np.ndarray


def tiling(n: int, window: int, least: int) -> Tiling:
    """Cuts an axis; token i sees the `window` tokens from i - window // 2 on, moved inside at both ends.

    Tiles of half a window, or of `least` tokens: then some two to three windows of keys serve each.
    """
    size = min(n, max(least, -(-window // 2)))
    length = min(n, size + window - 1)
    tiles = -(-n // size)
    queries = np.minimum(np.arange(tiles * size), n - 1).reshape(tiles, size)
    first = np.clip(queries - window // 2, 0, n - window)  # that each query sees
    start = np.clip(np.arange(tiles) * size - window // 2, 0, n - length)
    keys = start[:, None] + np.arange(length)
    ahead = keys[:, None] - first[..., None]
    return Tiling(queries, keys, (0 <= ahead) & (ahead < window))


def local_attention(q: jax.Array, k: jax.Array, v: jax.Array, grid: tuple[int, ...], window: int) -> jax.Array:
    """Each token of a grid of one or two axes sees the `window` tokens around it along each axis.

    Near a border the window is moved inside, so that all tokens see equally many, as in neighbourhood attention
    (Hassani et al. 2023, arXiv 2204.07143). Takes time and memory in proportion to the tokens, whose number must be
    the product of `grid`; no axis may be shorter than `window`.
    """
    B, N, heads, c = q.shape
    axes = len(grid)
    cuts = [tiling(n, window, round(LEAST_TILE ** (1 / axes))) for n in grid]
    seen = cuts[0].seen
    if axes == 2:
        rows, columns = seen, cuts[1].seen  # [n,s,L], [m,t,M] -> [n,m,s t,L M]
        seen = rows[:, None, :, None, :, None] & columns[None, :, None, :, None, :]
        seen = seen.reshape(len(rows), len(columns), rows.shape[1] * columns.shape[1], -1)

    def tiles(x: jax.Array, index: list[np.ndarray]) -> jax.Array:
        """[B,N,heads,c] -> [B,*tiles,tokens of a tile,heads,c]."""
        x = x.reshape(B, *grid, heads, c)
        for axis, own in enumerate(index):
            x = jnp.take(x, own, axis=1 + 2 * axis, mode="clip")  # [B,n,s,W,...], then [B,n,s,m,t,...]
        if axes == 2:
            x = jnp.swapaxes(x, 2, 3)
        return x.reshape(B, *(len(own) for own in index), -1, heads, c)

    query = tiles(q, [cut.queries for cut in cuts])
    key, value = (tiles(x, [cut.keys for cut in cuts]) for x in (k, v))
    weights = jax.nn.softmax(_logits(query, key, seen[..., None, :, :]), axis=-1)
    mixed = _product("...hqk,...khc->...qhc", weights, value).astype(q.dtype)
    sizes = [cut.queries.shape for cut in cuts]
    if axes == 2:
        (n, s), (m, t) = sizes
        mixed = jnp.swapaxes(mixed.reshape(B, n, m, s, t, heads, c), 2, 3).reshape(B, n * s, m * t, heads, c)
        mixed = mixed[:, : grid[0], : grid[1]]
    return mixed.reshape(B, -1, heads, c)[:, :N]
