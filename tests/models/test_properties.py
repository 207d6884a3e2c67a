"""What must hold for a model whatever its weights: the metamorphic tests of both families."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.models import decoder, encoder
from jaxformer.modules.attention import Maps
from tests.ops.jaxprs import equations

V, D, L, N = 53, 16, 2, 4
B, T = 3, 10
TOKENS = jnp.array(np.random.default_rng(0).integers(0, V, (B, T)), jnp.int32)
GPT = dict(vocab_size=V, width=D, num_layers=L, num_heads=N, max_length=32)
LLAMA = dict(
    GPT, positions="rope", norm="rms_norm", gated=True, activation="silu", num_kv_heads=2,
    bias=False, tie_embeddings=False, qk_norm=True, attention_soft_cap=20.0, logit_soft_cap=15.0,
)  # fmt: skip


def make(family=decoder, **keys):
    model = family.make(family.Config(**keys))
    params = jax.jit(model.init)(jax.random.key(0))
    # Away from the initial values, at which heads see everything nearly alike.
    noise = iter(jax.random.split(jax.random.key(1), 100))
    params = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(noise), x.shape), params)
    # Compiled: op by op a test would take four times as long.
    apply = jax.jit(model.apply, static_argnames=("return_hidden", "return_attention"))
    return model._replace(apply=apply), params


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, atol=tolerance * float(jnp.abs(b).max()), rtol=0)


@pytest.mark.parametrize(
    "positions", ["rope", *(pytest.param(p, marks=pytest.mark.slow) for p in
                            ("learned", "sinusoidal", "alibi", "t5", "none"))]
)  # fmt: skip
def test_causal_by_gradient(positions):
    """Logits at t depend on inputs up to t and on no later one."""
    model, params = make(**{**GPT, "positions": positions})

    def at(table_VD, t):
        changed = {**params, "embed": {**params["embed"], "tokens": table_VD}}
        return model.apply(changed, {"tokens": jnp.arange(T)[None]}).hidden_BTD[0, t].sum()

    gradient = jax.jit(jax.grad(at))
    for t in (0, 4):
        reached_V = jnp.abs(gradient(params["embed"]["tokens"], t)).sum(axis=1) > 0
        assert np.flatnonzero(reached_V).tolist() == list(range(t + 1))


SLOW = pytest.mark.slow
OTHERS = (GPT, {**GPT, "positions": "alibi"}, {**GPT, "positions": "t5"})


@pytest.mark.parametrize("keys", [LLAMA, *(pytest.param(keys, marks=SLOW) for keys in OTHERS)])
def test_decode_equals_forward(keys):
    """Prefill of 4 tokens and then one at a time, against all at once."""
    model, params = make(**keys)
    whole = model.apply(params, {"tokens": TOKENS}).hidden_BTD
    out = model.apply(params, {"tokens": TOKENS[:, :4]}, cache=model.init_cache(B, 16))
    parts = [out.hidden_BTD]
    for t in range(4, T):
        out = model.apply(params, {"tokens": TOKENS[:, t : t + 1]}, cache=out.cache)
        parts.append(out.hidden_BTD)
    close(jnp.concatenate(parts, axis=1), whole)


def test_cached_left_padding_changes_nothing():
    model, params = make(**LLAMA)
    whole = model.apply(params, {"tokens": TOKENS}).hidden_BTD
    pad = 5
    tokens = jnp.pad(TOKENS, ((0, 0), (pad, 0)), constant_values=7)
    segment_ids = (jnp.arange(T + pad) >= pad).astype(jnp.int32)[None].repeat(B, 0)
    batch = {
        "tokens": tokens,
        "segment_ids": segment_ids,
        "positions": jnp.maximum(jnp.cumsum(segment_ids, axis=1) - 1, 0),
    }
    out = model.apply(params, batch, cache=model.init_cache(B, 32))
    close(out.hidden_BTD[:, pad:], whole)
    # In the forward pass without a cache too.
    close(model.apply(params, batch).hidden_BTD[:, pad:], whole)


@pytest.mark.parametrize("family,keys", [(decoder, LLAMA), (encoder, {**GPT, "num_classes": 3})])
def test_packed_equals_separate(family, keys):
    """Two texts in one row, with segment ids and restarting positions, against one a row."""
    model, params = make(family, **keys)
    a, b = TOKENS[0, :6], TOKENS[1, :4]
    packed = {
        "tokens": jnp.concatenate([a, b])[None],
        "segment_ids": jnp.array([[1] * 6 + [2] * 4]),
        "positions": jnp.array([[*range(6), *range(4)]]),
    }
    hidden = model.apply(params, packed).hidden_BTD[0]
    close(hidden[:6], model.apply(params, {"tokens": a[None]}).hidden_BTD[0])
    close(hidden[6:], model.apply(params, {"tokens": b[None]}).hidden_BTD[0])


@pytest.mark.parametrize("family,keys", [(decoder, GPT), (encoder, {**GPT, "num_classes": 3})])
def test_padding_and_batch_mates_change_nothing(family, keys):
    model, params = make(family, **keys)
    lengths = jnp.array([10, 4, 7])
    segment_ids = (jnp.arange(T) < lengths[:, None]).astype(jnp.int32)
    batch = {"tokens": TOKENS, "segment_ids": segment_ids}
    hidden = model.apply(params, batch).hidden_BTD
    for row, length in enumerate(lengths.tolist()):
        alone = model.apply(params, {"tokens": TOKENS[row : row + 1, :length]}).hidden_BTD[0]
        close(hidden[row, :length], alone)
    if family is encoder:
        logits = model.classify(params, hidden, batch)
        other = model.classify(params, hidden.at[1, 4:].set(99.0), batch)
        close(other, logits)


def gradients(model, params):
    def loss(params):
        return jnp.sum(model.apply(params, {"tokens": TOKENS}).hidden_BTD ** 2)

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("changed", [{"unroll": 1, "remat": "full"},
                                     *(pytest.param(c, marks=SLOW) for c in (
                                         {"remat": "dots"}, {"remat": "named"}, {"unroll": 1},
                                         {"attention_backend": "chunked"},
                                         {"attention_backend": "dense"}))])  # fmt: skip
def test_running_choices_do_not_change_the_function(changed):
    """Remat, scan instead of unrolled layers and chunked attention: same loss, same gradient."""
    model, params = make(**LLAMA)
    other = decoder.make(decoder.Config(**{**LLAMA, **changed}))  # same parameters
    loss, grads = gradients(model, params)
    other_loss, other_grads = gradients(other, params)
    close(other_loss, loss)
    jax.tree.map(close, other_grads, grads)


@pytest.mark.slow
def test_jit_equals_no_jit():
    model, params = make(**LLAMA)
    loss, grads = gradients(model, params)
    bare = decoder.make(decoder.Config(**LLAMA))
    with jax.disable_jit():
        other_loss, other_grads = gradients(bare, params)
    close(other_loss, loss)
    jax.tree.map(close, other_grads, grads)


def test_asked_for_intermediates():
    """Weights sum to 1 and see no future; the first hidden state is the embedding."""
    model, params = make(**GPT)
    out = model.apply(params, {"tokens": TOKENS}, return_hidden=True, return_attention=True)
    chex.assert_shape(out.attention_LBNTS, (L, B, N, T, T))
    close(out.attention_LBNTS.sum(-1), jnp.ones((L, B, N, T)))
    assert float(jnp.abs(jnp.triu(out.attention_LBNTS, 1)).max()) == 0.0
    chex.assert_shape(out.hidden_states_LBTD, (L, B, T, D))
    first = params["embed"]["tokens"][TOKENS] + params["embed"]["positions"][:T]
    close(out.hidden_states_LBTD[0], first)
    assert model.apply(params, {"tokens": TOKENS}).attention_LBNTS is None


@pytest.mark.parametrize("family", [decoder, encoder])
def test_a_batch_that_does_not_fit_is_told_by_its_shapes(family):
    model = family.make(family.Config(**GPT))
    params = jax.eval_shape(model.init, jax.random.key(0))

    def shape_of(**batch):
        return jax.eval_shape(model.apply, params, batch).hidden_BTD.shape

    assert shape_of(tokens=TOKENS, positions=TOKENS[:1]) == (B, T, D)
    for wrong in (
        {"tokens": TOKENS[0]},
        {"tokens": TOKENS.astype(jnp.float32)},
        {"tokens": TOKENS, "segment_ids": TOKENS[:, :-1]},
        {"tokens": TOKENS, "positions": TOKENS[:2]},
        {"tokens": TOKENS, "token_types": TOKENS[0]},
    ):
        with pytest.raises(AssertionError, match=r"shape|rank|dtype|type"):
            shape_of(**wrong)


def test_dropout_only_with_a_key():
    model, params = make(**GPT, dropout=0.5, attention_dropout=0.5)
    batch = {"tokens": TOKENS}
    still = model.apply(params, batch).hidden_BTD
    close(model.apply(params, batch).hidden_BTD, still)
    one = model.apply(params, batch, key=jax.random.key(1)).hidden_BTD
    two = model.apply(params, batch, key=jax.random.key(2)).hidden_BTD
    assert not np.allclose(one, still) and not np.allclose(one, two)


def test_bfloat16_stays_near_float32():
    model, params = make(**LLAMA)
    half = decoder.make(decoder.Config(**LLAMA, compute_dtype="bfloat16"))
    out = half.apply(params, {"tokens": TOKENS}).hidden_BTD
    assert out.dtype == jnp.bfloat16
    expected = model.apply(params, {"tokens": TOKENS}).hidden_BTD
    assert float(jnp.abs(out - expected).mean() / jnp.abs(expected).mean()) < 0.03


@pytest.mark.parametrize("keys,words", [
    ({"num_heads": 7}, "num_heads=7 does not divide model.width=16"),
    ({"num_kv_heads": 3}, "num_kv_heads=3 does not divide model.num_heads=4"),
    ({"norm": "layernorm"}, "did you mean 'layer_norm'"),
    ({"positions": "rope", "head_dim": 3}, "odd"),
    ({"dropout": 1.0}, "[0, 1)"),
])  # fmt: skip
def test_bad_config_is_one_line(keys, words):
    with pytest.raises(UserError) as error:
        decoder.Config(**{**GPT, **keys})
    assert words in str(error.value) and "\n" not in str(error.value)


SHORT = dict(LLAMA, short_conv=4)


@pytest.mark.slow
def test_short_convolution_decodes_packs_and_stays_causal():
    """Its filter sees the last tokens of the same text only: cached, packed or left-padded."""
    test_decode_equals_forward(SHORT)
    test_packed_equals_separate(decoder, SHORT)
    model, params = make(**SHORT)
    whole = model.apply(params, {"tokens": TOKENS}).hidden_BTD
    changed = TOKENS.at[:, 6:].set(1)
    close(model.apply(params, {"tokens": changed}).hidden_BTD[:, :6], whole[:, :6])
    pad = 5
    segment_ids = (jnp.arange(T + pad) >= pad).astype(jnp.int32)[None].repeat(B, 0)
    batch = {
        "tokens": jnp.pad(TOKENS, ((0, 0), (pad, 0)), constant_values=7),
        "segment_ids": segment_ids,
        "positions": jnp.maximum(jnp.cumsum(segment_ids, axis=1) - 1, 0),
    }
    out = model.apply(params, batch, cache=model.init_cache(B, 32))
    close(out.hidden_BTD[:, pad:], whole)


@pytest.mark.slow
@pytest.mark.parametrize("family", [decoder, encoder])
def test_some_attention_maps_are_those_of_all(family):
    """Chosen layers, heads and queries; with the chunked backend nothing larger is ever made."""
    keys = {**GPT, "num_layers": 3, "attention_backend": "chunked"}
    _, params = make(family, **keys)
    apply = jax.jit(family.make(family.Config(**keys)).apply, static_argnames="return_attention")
    batch = {"tokens": TOKENS, "segment_ids": jnp.ones_like(TOKENS).at[1, 7:].set(0)}
    whole = apply(params, batch, return_attention=True).attention_LBNTS
    maps = Maps(layers=(2, 0), heads=(3,), rows=(9, 0, 4))
    some = apply(params, batch, return_attention=maps).attention_LBNTS
    want = np.asarray(whole)[[2, 0]][:, :, [3]][:, :, :, [9, 0, 4]]
    np.testing.assert_allclose(some, want, atol=1e-6)
    every = apply(params, batch, return_attention=Maps(rows=(9,))).attention_LBNTS
    np.testing.assert_allclose(every, np.asarray(whole)[..., [9], :], atol=1e-6)


def test_a_few_maps_of_a_long_text_never_cost_all():
    T = 2048
    model = decoder.make(decoder.Config(**{**GPT, "max_length": T, "attention_backend": "chunked"}))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    batch = {"tokens": jax.ShapeDtypeStruct((1, T), jnp.int32)}

    def largest(asked):
        apply = functools.partial(model.apply, return_attention=asked)
        jaxpr = jax.make_jaxpr(apply)(shapes, batch)
        made = (v.aval for e in equations(jaxpr.jaxpr) for v in e.outvars)
        return max(aval.size for aval in made if hasattr(aval, "size"))

    assert largest(Maps(heads=(0,), rows=(5, 2000))) < T * T / 4
    assert largest(True) >= N * T * T
