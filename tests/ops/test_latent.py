"""Latent attention: both forms are the paper's formula, and a token costs R + P numbers to keep."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import masks
from jaxformer.ops.attention.latent import absorbing_is_less, latent_attention
from tests.ops.jaxprs import equations

B, T, S, N, R, H, P = 2, 7, 9, 3, 10, 6, 4
IDS = jnp.array([[1] * 4 + [2] * 3 + [0] * 2, [1] * S])
MASKS = {
    "none": None,
    "causal": masks.causal(2),
    "packed": masks.segments(IDS[:, :T], IDS) & masks.causal(2),
    "nothing": masks.lengths(jnp.array([0, 5])),
}


def arrays(values: int = 6):
    shapes = dict(
        q_BTNA=(B, T, N, H + P), c_BSR=(B, S, R), k_rope_BSP=(B, S, P), w_k_RNH=(R, N, H),
        w_v_RNX=(R, N, values),
    )  # fmt: skip
    keys = jax.random.split(jax.random.key(values), len(shapes))
    return {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}


def truth(a, mask, xp=np, bias=None):
    """Each head's logit is q_content . (W_k c) + q_rope . k_rope; float64 in numpy."""
    a = {n: np.asarray(x, np.float64) for n, x in a.items()} if xp is np else a
    q_BTNH, q_BTNP = a["q_BTNA"][..., :H], a["q_BTNA"][..., H:]
    logits = xp.einsum("btnh,bsr,rnh->bnts", q_BTNH, a["c_BSR"], a["w_k_RNH"])
    logits = (logits + xp.einsum("btnp,bsp->bnts", q_BTNP, a["k_rope_BSP"])) / (H + P) ** 0.5
    logits = logits if bias is None else logits + xp.asarray(bias)
    seen = np.ones((1, 1, T, S), bool) if mask is None else np.asarray(
        masks.materialise(mask, T, S))  # fmt: skip
    logits = xp.where(seen, logits, -1e30)
    p = xp.where(seen, xp.exp(logits - logits.max(-1, keepdims=True)), 0.0)
    total = p.sum(-1, keepdims=True)
    weights = p / xp.where(total == 0, 1.0, total)
    return xp.einsum("bnts,bsr,rnx->btnx", weights, a["c_BSR"], a["w_v_RNX"]), weights


@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_the_formula_and_its_slopes(name, absorbed):
    mask, a = MASKS[name], arrays()

    def loss(a):
        out, weights = latent_attention(**a, mask=mask, absorbed=absorbed, return_weights=True)
        return jnp.sum(jnp.sin(out)), (out, weights)

    (_, (out, weights)), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(a)
    want, want_weights = truth(a, mask)
    np.testing.assert_allclose(out, want, atol=1e-5)
    np.testing.assert_allclose(weights, want_weights, atol=1e-5)
    seen_BTN = np.moveaxis(want_weights.sum(-1) > 0, 1, 2)
    assert (np.asarray(out)[~seen_BTN] == 0).all()
    want_slopes = jax.grad(lambda a: jnp.sum(jnp.sin(truth(a, mask, jnp)[0])))(a)
    for at, want_slope in want_slopes.items():
        np.testing.assert_allclose(
            slopes[at], want_slope, atol=2e-5 * float(jnp.abs(want_slope).max()), err_msg=at
        )


@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize("backend", ["dense", "chunked"])
@pytest.mark.parametrize("values", [3, 14])  # narrower and wider than a key
def test_any_backend_any_width_of_values(values, backend, absorbed):
    a, bias = arrays(values), jax.random.normal(jax.random.key(9), (1, N, T, S))
    mask = MASKS["causal"]
    out = latent_attention(**a, mask=mask, bias=bias, absorbed=absorbed, backend=backend)
    assert out.shape == (B, T, N, values)
    np.testing.assert_allclose(out, truth(a, mask, bias=np.asarray(bias))[0], atol=1e-5)
    scaled = latent_attention(**a, scale=0.0, absorbed=absorbed, backend=backend)
    mean = jnp.einsum("BSR,RNX->BNX", a["c_BSR"], a["w_v_RNX"])[:, None] / S
    np.testing.assert_allclose(scaled, jnp.broadcast_to(mean, scaled.shape), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("absorbed", [False, True])
def test_bfloat16_forward_and_backward(absorbed):
    a, mask = arrays(), MASKS["causal"]
    low = {name: x.astype(jnp.bfloat16) for name, x in a.items()}
    step = jax.jit(
        jax.grad(
            lambda a: jnp.sum(latent_attention(**a, mask=mask, absorbed=absorbed) ** 2, dtype=float)
        )
    )
    out = latent_attention(**low, mask=mask, absorbed=absorbed)
    assert out.dtype == jnp.bfloat16
    pairs = {"out": (out, latent_attention(**a, mask=mask))}
    pairs |= {name: (got, step(a)[name]) for name, got in step(low).items()}
    for name, (got, want) in pairs.items():
        away = jnp.linalg.norm((got.astype(jnp.float32) - want).ravel())
        assert away <= 0.04 * jnp.linalg.norm(want.ravel()), name


def test_a_decode_step_reads_latents_alone():
    """No keys or values of single heads are ever made: nothing as large as S N H."""
    length, heads, latent = 512, 16, 8
    shapes = [(1, 1, heads, H + P), (1, length, latent), (1, length, P), (latent, heads, H),
              (latent, heads, H)]  # fmt: skip
    given = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]

    def step(q, c, r, w_k, w_v):
        return latent_attention(q, c, r, w_k_RNH=w_k, w_v_RNX=w_v)

    made = (v.aval for e in equations(jax.make_jaxpr(step)(*given).jaxpr) for v in e.outvars)
    assert max(aval.size for aval in made if hasattr(aval, "size")) <= length * heads
    cached = sum(given[i].size for i in (1, 2))
    assert cached == length * (latent + P) < length * 2 * heads * H


def test_the_cheaper_form_is_taken():
    sizes = dict(latent=512, content=128, rope=64, values=128)  # DeepSeek-V2's
    assert absorbing_is_less(1, 4096, **sizes)
    assert not absorbing_is_less(4096, 4096, **sizes)


@pytest.mark.slow
@pytest.mark.parametrize("absorbed", [False, True])
def test_vmap_and_remat(absorbed):
    a = arrays()
    run = jax.checkpoint(lambda a: latent_attention(**a, mask=masks.causal(2), absorbed=absorbed))
    stacked = {name: jnp.stack([x, 0.5 * x]) for name, x in a.items()}
    out = jax.jit(jax.vmap(run))(stacked)
    half = run({name: 0.5 * x for name, x in a.items()})
    np.testing.assert_allclose(out, jnp.stack([run(a), half]), atol=1e-5)


def test_mistakes_are_named():
    a = arrays()
    for change, told in (
        ({"w_k_RNH": a["w_k_RNH"][..., 1:]}, r"10 wide .* 5 \+ 4"),
        ({"w_v_RNX": a["w_v_RNX"][1:]}, r"must be \[R, N, ...\]"),
        ({"k_rope_BSP": a["k_rope_BSP"][:, 1:]}, "differ in rows or keys"),
        ({"c_BSR": a["c_BSR"][:, :, None]}, "the latents, rotary keys and weights 3"),
    ):
        with pytest.raises(ValueError, match=told):
            latent_attention(**{**a, **change})
