"""Attention: every pattern is masked full attention, every implementation the same, at the cost that it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdsm_jax.networks import attention


def drawn(N, B=2, heads=2, c=4, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(2 * rng.normal(size=(B, N, heads, c)), dtype) for _ in range(3)]


def seen_by(grid, window):
    """Which tokens see which under `local_attention`, bool [N,N]: its definition."""
    seen = np.ones((1, 1), bool)
    for n in grid:
        first = np.clip(np.arange(n) - window // 2, 0, n - window)[:, None]
        seen = np.kron(seen, (first <= np.arange(n)) & (np.arange(n) < first + window))
    return seen


def masked(q, k, v, seen):
    """Attention by its formula, all N x N."""
    logits = jnp.where(seen, jnp.einsum("bqhc,bkhc->bhqk", q, k) / np.sqrt(q.shape[-1]), -jnp.inf)
    return jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(logits, -1), v)


def assert_same(one, other, arguments, tolerance=1e-5):
    """Values and gradients along a fixed direction agree."""
    g = jax.random.normal(jax.random.key(9), arguments[0].shape)

    def both(function):
        out, pull = jax.vjp(function, *arguments)
        return out, pull(g)

    for a, b in zip(*(jax.tree.leaves(jax.jit(both, static_argnums=0)(f)) for f in (one, other)), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 70), st.data())
def test_a_window_is_masked_full_attention(N, data):
    window = data.draw(st.integers(1, N))
    seen = seen_by((N,), window)
    local = lambda q, k, v: attention.local_attention(q, k, v, (N,), window)  # noqa: E731
    assert_same(local, lambda q, k, v: masked(q, k, v, seen), drawn(N))


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 11), st.integers(1, 11), st.data())
def test_a_neighbourhood_is_masked_full_attention(H, W, data):
    window = data.draw(st.integers(1, min(H, W)))
    seen = seen_by((H, W), window)
    local = lambda q, k, v: attention.local_attention(q, k, v, (H, W), window)  # noqa: E731
    assert_same(local, lambda q, k, v: masked(q, k, v, seen), drawn(H * W))


def test_what_is_seen_is_the_nearest_tokens_and_equally_many_at_borders():
    seen = seen_by((5, 7), 3)
    assert (seen.sum(1) == 9).all()
    for token, row in enumerate(seen):
        i, j = divmod(token, 7)
        near = [(a, b) for a in range(5) for b in range(7) if row[7 * a + b]]
        if 0 < i < 4 and 0 < j < 6:
            assert near == [(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        assert all(abs(a - i) <= 2 and abs(b - j) <= 2 for a, b in near) and (i, j) in near
    assert seen_by((6,), 6).all() and seen_by((4, 4), 4).all()


@pytest.mark.parametrize(("N", "chunk"), [(1, 4), (8, 4), (13, 4), (300, attention.CHUNK)])
def test_chunks_are_full_attention(N, chunk):
    chunked = lambda q, k, v: attention.chunked_attention(q, k, v, chunk)  # noqa: E731
    assert_same(chunked, lambda q, k, v: masked(q, k, v, True), drawn(N))


def test_large_logits_do_not_overflow_in_chunks():
    q, k, v = drawn(40)
    np.testing.assert_allclose(
        attention.chunked_attention(100 * q, k, v, 8), masked(100 * q, k, v, True), atol=1e-4, rtol=1e-4
    )


def test_chunks_may_be_mapped_and_have_other_queries_than_keys():
    q, k, v = drawn(13)
    q = jnp.stack([q[:, :5], -q[:, :5]])
    mapped = jax.vmap(lambda q: attention.full_attention(q, k, v, "chunked"))(q)
    for out, query in zip(mapped, q, strict=True):
        np.testing.assert_allclose(out, masked(query, k, v, True), atol=1e-5)


@pytest.mark.parametrize("pattern", attention.PATTERNS)
@pytest.mark.parametrize("implementation", ["xla", "chunked"])
def test_bfloat16_stays_bfloat16_and_close(pattern, implementation):
    full, low = drawn(36), drawn(36, dtype=jnp.bfloat16)
    of = lambda arguments: attention.patterned_attention(*arguments, (6, 6), pattern, 3, implementation)  # noqa: E731
    assert of(low).dtype == jnp.bfloat16
    np.testing.assert_allclose(of(low).astype(jnp.float32), of(full), atol=0.1)


def cost(pattern, implementation, side, gradient):
    """FLOPs and bytes of temporaries of one compiled call, by the compiler."""
    arguments = [jax.ShapeDtypeStruct((1, side * side, 1, 8), jnp.float32)] * 3

    def call(q, k, v):
        return attention.patterned_attention(q, k, v, (side, side), pattern, 4, implementation)

    called = jax.grad(lambda *a: call(*a).sum(), (0, 1, 2)) if gradient else call
    compiled = jax.jit(called).lower(*arguments).compile()
    return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("gradient", [False, True])
def test_local_attention_costs_in_proportion_to_the_tokens(gradient):
    """Four times the tokens: four times the work and memory, where full attention takes sixteen times."""
    growth = {
        pattern: np.divide(cost(pattern, "xla", 64, gradient), cost(pattern, "xla", 32, gradient))
        for pattern in attention.PATTERNS
    }
    for pattern in ("window", "neighbourhood"):
        assert (growth[pattern] < 5).all(), growth
    assert growth["full"][0] > 14


def test_chunks_take_memory_in_proportion_to_the_tokens():
    memory = {how: [cost("full", how, side, gradient=True)[1] for side in (32, 64)] for how in ("xla", "chunked")}
    assert memory["xla"][1] > 14 * memory["xla"][0]
    assert memory["chunked"][1] < 5 * memory["chunked"][0] and memory["chunked"][1] < memory["xla"][1] / 5
