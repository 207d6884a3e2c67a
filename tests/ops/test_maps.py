"""Weights of a few heads, rows and columns are those that the backends really used."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import ops
from jaxformer.ops import masks, positions
from tests.ops.jaxprs import equations

B, T, S, N, K, H = 2, 9, 11, 4, 2, 6
Q, KEYS, V = (
    jax.random.normal(jax.random.key(i), shape)
    for i, shape in enumerate([(B, T, N, H), (B, S, K, H), (B, S, K, H)])
)
IDS = jnp.array([[1] * 4 + [2] * 4 + [0] * 3, [1] * S])
CASES = {
    "plain": {},
    "packed, capped": {"mask": masks.segments(IDS[:, :T], IDS), "soft_cap": 2.0},
    "causal, bias of heads": {"mask": masks.causal(2), "bias": positions.alibi(N, offset=2)},
    "heads' own masks": {
        "mask": masks.explicit(jax.random.bernoulli(jax.random.key(3), 0.5, (B, N, T, S))),
        "bias": jax.random.normal(jax.random.key(4), (1, N, T, S)),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_part_is_that_of_the_whole(name):
    given = CASES[name]
    _, whole = ops.attention(Q, KEYS, V, backend="dense", return_weights=True, **given)
    whole = np.asarray(whole)
    out, lse = ops.attention(Q, KEYS, V, return_lse=True, query_chunk=4, key_chunk=5, **given)
    np.testing.assert_allclose(out, ops.attention(Q, KEYS, V, **given), atol=2e-6)
    np.testing.assert_allclose(ops.attention_weights(Q, KEYS, **given), whole, atol=1e-6)
    heads, rows, columns = (3, 1), (0, 8, 4), (10, 2)
    some = ops.attention_weights(Q, KEYS, heads=heads, rows=rows, **given)
    want = whole[:, heads][:, :, rows]
    np.testing.assert_allclose(some, want, atol=1e-6)
    part = ops.attention_weights(
        Q, KEYS, lse_BNT=lse, heads=heads, rows=rows, columns=columns, **given
    )
    np.testing.assert_allclose(part, want[..., columns], atol=1e-6)


def test_a_few_rows_never_cost_all():
    length = 2048
    q = jax.ShapeDtypeStruct((1, length, 2, 4), jnp.float32)

    def maps(q, k, v):
        out, lse = ops.attention(q, k, v, mask=masks.causal(), return_lse=True)
        return out, ops.attention_weights(q, k, lse_BNT=lse, rows=(5, 2000), mask=masks.causal())

    made = (v.aval for e in equations(jax.make_jaxpr(maps)(q, q, q).jaxpr) for v in e.outvars)
    largest = max(aval.size for aval in made if hasattr(aval, "size"))
    assert largest < length * length / 8


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="there is no head 4; valid: 0 to 3"):
        ops.attention_weights(Q, KEYS, heads=(4,))
    with pytest.raises(ValueError, match="there is no row 9"):
        ops.attention_weights(Q, KEYS, rows=(9,))
    with pytest.raises(ValueError, match="columns needs lse_BNT"):
        ops.attention_weights(Q, KEYS, columns=(1,))
    with pytest.raises(ValueError, match="cannot go with return_weights"):
        ops.attention(Q, KEYS, V, return_lse=True, return_weights=True)
    with pytest.raises(ValueError, match="cannot go with backend='cudnn'"):
        ops.attention(Q, KEYS, V, return_lse=True, backend="cudnn")
