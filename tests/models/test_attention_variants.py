"""Every way to attend, chosen by one line, in a model: what must hold whatever the weights.

`model.attention` swaps the attention of a decoder or an encoder and nothing else: no token sees a
later one, a packed text is what it is alone, padding changes nothing, and writing token by token
equals reading at once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.models import decoder, encoder
from jaxformer.modules import variants
from jaxformer.parallel import mesh, rules
from jaxformer.train import muon

V, T, B = 53, 12, 2
TOKENS = jnp.array(np.random.default_rng(0).integers(0, V, (B, T)), jnp.int32)
SMALL = dict(
    vocab_size=V, num_layers=2, width=16, num_heads=4, num_kv_heads=2, feed_forward=24,
    max_length=32, positions="rope", norm="rms_norm", unroll=1,
)  # fmt: skip
# Of each kind in variants.VARIANTS: how it is asked for here, small enough to matter at T = 12.
ASKED = {
    "bigbird": "bigbird(block=1, num_random=1)",
    "block_local": "block_local(block=3, look_back=1)",
    "differential": "differential",
    "gated_linear": "gated_linear(rank=4, temperature=2.0)",
    "latent": "latent(kv_rank=6, q_rank=5, rope_width=2)",
    "linear": "linear",
    "linformer": "linformer(projected=5)",
    "longformer": "longformer(window=4, global_tokens='first')",
    "nystromformer": "nystromformer(num_landmarks=3, convolution=3)",
    "performer": "performer(num_features=16)",
    "retention": "retention",
    "sliding_window": "sliding_window(left=3, sinks=1, learned_sink=True)",
}
# What a kind cannot have of SMALL.
INSTEAD = {"latent": {"num_kv_heads": 0}}
CAUSAL = [name for name in ASKED if variants.VARIANTS[name].CAUSAL]
BOTH_SIDES = [name for name in ASKED if variants.VARIANTS[name].BIDIRECTIONAL]
# Padding makes another line of a text for these, by their definition.
NO_PADDING = ("nystromformer", "bigbird")  # the parts of the line, and its ends, are others
NO_LEFT_PADDING = ("linformer", "block_local", "sliding_window")  # a token's place counts


def asked(name):
    return {**SMALL, **INSTEAD.get(name, {}), "attention": ASKED[name]}


def make(family, name, **keys):
    model = family.make(family.Config(**{**asked(name), **keys}))
    params = jax.jit(model.init)(jax.random.key(0))
    noise = iter(jax.random.split(jax.random.key(1), 200))
    params = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(noise), x.shape), params)
    return model._replace(apply=jax.jit(model.apply)), params


def close(got, want):
    np.testing.assert_allclose(got, want, atol=3e-5 * float(jnp.abs(want).max()))


def test_every_variant_is_tried():
    assert set(ASKED) == set(variants.VARIANTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CAUSAL)
def test_decoder(name):
    model, params = make(decoder, name)
    whole = model.apply(params, {"tokens": TOKENS}).hidden_BTD
    # Token by token, after a prompt of four with padding on its left.
    pad = 0 if name in NO_LEFT_PADDING + NO_PADDING else 3
    prompt = jnp.pad(TOKENS[:, :4], ((0, 0), (pad, 0)), constant_values=7)
    real = jnp.broadcast_to((jnp.arange(4 + pad) >= pad).astype(jnp.int32), prompt.shape)
    out = model.apply(
        params, {"tokens": prompt, "segment_ids": real}, cache=model.init_cache(B, T + pad)
    )
    parts = [out.hidden_BTD[:, pad:]]
    for t in range(4, T):
        out = model.apply(params, {"tokens": TOKENS[:, t : t + 1]}, cache=out.cache)
        parts.append(out.hidden_BTD)
    close(jnp.concatenate(parts, axis=1), whole)
    # No token sees a later one, and each sees an earlier one.
    at = 6

    def of_row(table, t):
        changed = {**params, "embed": {**params["embed"], "tokens": table}}
        return model.apply(changed, {"tokens": jnp.arange(T)[None]}).hidden_BTD[0, t].sum()

    slope = jax.grad(of_row)(params["embed"]["tokens"], at)
    reaches = np.asarray(jnp.abs(slope[:T]).max(axis=1))
    assert (reaches[at + 1 :] == 0).all() and reaches[at] > 0 and reaches[at - 1] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name"),
    [(decoder, name) for name in CAUSAL] + [(encoder, name) for name in BOTH_SIDES],
    ids=lambda x: x if isinstance(x, str) else x.__name__.rpartition(".")[2],
)
def test_packed_and_padded_texts_are_what_they_are_alone(family, name):
    model, params = make(family, name)
    a, b = TOKENS[0, :7], TOKENS[1, :4]
    alone = [model.apply(params, {"tokens": x[None]}).hidden_BTD[0] for x in (a, b)]
    if name not in NO_PADDING:
        tokens = jnp.stack([jnp.pad(a, (0, 4)), jnp.pad(b, (4, 3))])
        ids = jnp.stack([jnp.arange(11) < 7, (jnp.arange(11) >= 4) & (jnp.arange(11) < 8)])
        padded = {"tokens": tokens, "segment_ids": ids.astype(jnp.int32)}
        hidden = model.apply(params, padded).hidden_BTD
        close(hidden[0, :7], alone[0])
        if name not in NO_LEFT_PADDING:
            close(hidden[1, 4:8], alone[1])
    packed = {"tokens": jnp.concatenate([a, b])[None],
              "segment_ids": jnp.array([[1] * 7 + [2] * 4])}  # fmt: skip
    hidden = model.apply(params, packed).hidden_BTD[0]
    if not variants.VARIANTS[name].PACKS:  # never a text that sees another
        assert jnp.isnan(hidden).all()
        return
    close(hidden[:7], alone[0])
    if not variants.parse(ASKED[name]).make().bound_to_places():
        close(hidden[7:], alone[1])


@pytest.mark.parametrize("name", ASKED)
def test_every_parameter_has_its_rule_of_sharding_and_of_muon(name):
    for family in (decoder, encoder):
        keys = asked(name)
        if not (CAUSAL if family is decoder else BOTH_SIDES).count(name):
            continue
        model = family.make(family.Config(**keys))
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        rules.shardings(shapes, mesh.make(mesh.Config(data=2, fsdp=2, tensor=2)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
            muon.input_axes(rules.path_name(path), leaf.shape)


@pytest.mark.parametrize("name", ASKED)
def test_what_a_kind_cannot_do_is_told_before_training(name):
    kind, told = variants.VARIANTS[name], []
    for family, can in ((decoder, kind.CAUSAL), (encoder, kind.BIDIRECTIONAL)):
        config = asked(name)
        if not can:
            with pytest.raises(UserError, match="use it in model.family"):
                family.make(family.Config(**config))
            continue
        for honoured, keys in (
            ("bias", {"positions": "alibi"}),
            ("soft_cap", {"attention_soft_cap": 5.0}),
            ("dropout", {"attention_dropout": 0.1}),
        ):
            if honoured in kind.HONOURS:
                family.make(family.Config(**{**config, **keys}))
                continue
            with pytest.raises(UserError, match="cannot honour model") as error:
                family.make(family.Config(**{**config, **keys}))
            told.append(str(error.value))
        with pytest.raises(UserError, match=r"model\.window belongs to softmax"):
            family.make(family.Config(**config, window=3))
    assert all("\n" not in line for line in told)


def test_a_cache_refuses_given_global_tokens_which_it_would_forget():
    model, params = make(decoder, "longformer")
    given = jnp.broadcast_to((jnp.arange(T) == 3).astype(jnp.int32), (B, T))
    batch = {"tokens": TOKENS, "global_tokens": given}
    assert not jnp.isnan(model.apply(params, batch).hidden_BTD).any()
    with pytest.raises(UserError, match="set model.attention=longformer"):
        model.apply(params, batch, cache=model.init_cache(B, T))
