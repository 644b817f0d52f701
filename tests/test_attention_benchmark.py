"""The benchmark of attention: what it times is what it says."""

import json

import jax
import numpy as np
import pytest

from tdsm_jax.benchmark import attention
from tdsm_jax.errors import UserError
from test_attention import seen_by
from test_benchmark import call

SHAPE = attention.Shape(batch=2, heads=2, channels=4, window=3, dtype="float32")


def test_each_kind_is_the_attention_of_its_name():
    """The window in the row of tokens is as long as the neighbourhood is large."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 25, 2, 4))
    masks = {"window": seen_by((25,), 9), "neighbourhood": seen_by((5, 5), 3)}
    for name, function in attention.kinds(SHAPE, 5).items():
        mask = masks.get(name, np.ones((25, 25), bool))
        expected = jax.nn.dot_product_attention(q, k, v, mask=mask[None, None])
        np.testing.assert_allclose(function(q, k, v), expected, atol=1e-5, err_msg=name)


def test_attention_is_measured_by_one_command(tmp_path):
    arguments = ("--tokens=16,64", "--batch=1", "--heads=1", "--channels=4", "--window=3", "--rounds=3")
    written, drawn = tmp_path / "attention.json", tmp_path / "attention.svg"
    done = call("attention", *arguments, f"--json={written}", f"--plot={drawn}")
    assert done.returncode == 0, done.stderr[-3000:]
    records = json.loads(written.read_text())
    assert {(r["kind"], r["part"], r["tokens"]) for r in records} == {
        (kind, part, tokens)
        for kind in ("full", "full, chunked", "window", "neighbourhood")
        for part in attention.PARTS
        for tokens in (16, 64)
    }
    assert all(r["milliseconds"] > 0 and r["temporary_bytes"] >= 0 and r["versions"] for r in records)
    full = [line for line in done.stdout.splitlines() if "| full |" in line]
    assert len(full) == 4 and all(line.split("|")[4].strip() == "1" for line in full)
    assert "neighbourhood" in drawn.read_text()


@pytest.mark.parametrize(
    ("tokens", "window", "said"), [(60, 3, "60 are no square grid; 49 or 64 are"), (16, 5, "larger than the 4x4 grid")]
)
def test_tokens_that_are_no_grid_for_the_window_are_refused(tokens, window, said):
    with pytest.raises(UserError, match=said):
        attention.side_of(tokens, window)
