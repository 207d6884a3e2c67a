"""Transformer-XL against its paper's equations in float64, and what must hold whatever its weights.

The published code left transformers with version 5; with its last version, 4.57.6, logits, memories
and gradients of eight configurations agreed to 3e-6.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.generate import Config as GenerateConfig
from jaxformer.generate import generate
from jaxformer.models import transformer_xl

pytestmark = pytest.mark.slow

B, T, V = 2, 9, 41
TOKENS = np.random.default_rng(0).integers(0, V, (B, T))
SMALL = dict(
    vocab_size=V, width=16, num_layers=2, num_heads=2, head_dim=6, feed_forward=20, unroll=1
)  # fmt: skip
CASES = {
    "shared biases": dict(memory_length=5),
    "own biases, pre-norm, clamped": dict(
        memory_length=7, untie_r=True, norm_position="pre", clamp_length=4, num_heads=3, width=18
    ),
    "same length": dict(memory_length=4, same_length=True, embedding_size=10, num_layers=3),
}


def make(**keys):
    model = transformer_xl.make(transformer_xl.Config(**{**SMALL, **keys}))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    draw = np.random.default_rng(1).normal  # norms and biases too: zeros and ones hide mistakes
    params = jax.tree.map(lambda x: jnp.asarray(0.25 * draw(size=x.shape), jnp.float32), shapes)
    return model, params


def batch_of(**arrays) -> dict:
    return {name: jnp.asarray(x, jnp.int32) for name, x in arrays.items()}


def jitted(model):
    return jax.jit(lambda params, batch, cache=None: model.apply(params, batch, cache=cache))


def close(ours, expected, bound=2e-5) -> None:
    expected = np.asarray(expected)
    assert np.abs(np.asarray(ours) - expected).max() <= bound * np.abs(expected).max()


def paper(c, params, tokens_T: np.ndarray, memory: list[np.ndarray]):
    """One row: (hidden [T, D], each layer's input); Dai 2019, section 3.3, term by term."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    H, N, M = c.per_head, c.num_heads, len(memory[0])
    x = params["embed"]["tokens"][tokens_T]
    if "projection" in params["embed"]:
        x = x @ params["embed"]["projection"]
    x, inputs = x * np.sqrt(c.width), []

    def norm(of, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + c.norm_epsilon)
        return x * of["scale"] + of["bias"]

    def wave(distance):
        distance = min(distance, c.clamp_length or distance)
        angles = distance / 10000.0 ** (np.arange(0, c.width, 2) / c.width)
        return np.concatenate([np.sin(angles), np.cos(angles)])

    for layer in range(c.num_layers):
        of = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"])
        inputs.append(x)
        pre, w = c.norm_position == "pre", of["attention"]
        seen = np.concatenate([memory[layer], x])
        seen = norm(of["attention_norm"], seen) if pre else seen
        q, k, v = (np.einsum("td,dnh->tnh", seen, w[name]) for name in "qkv")
        biases = w if c.untie_r else params["relative"]
        attended = np.zeros((len(x), N, H))
        for i in range(len(x)):
            place = M + i
            first = place - c.memory_length + 1 if c.same_length else 0
            keys = range(max(first, 0), place + 1)
            scores = np.zeros((len(keys), N))
            for n, j in enumerate(keys):
                r = np.einsum("d,dnh->nh", wave(place - j), w["r"])
                a = np.sum(q[place] * k[j], axis=-1)
                b = np.sum(q[place] * r, axis=-1)
                content = np.sum(biases["r_w_bias"] * k[j], axis=-1)
                distance = np.sum(biases["r_r_bias"] * r, axis=-1)
                scores[n] = (a + b + content + distance) / np.sqrt(H)
            p = np.exp(scores - scores.max(axis=0))
            attended[i] = np.einsum("sn,snh->nh", p / p.sum(axis=0), v[list(keys)])
        x = x + np.einsum("tnh,nhd->td", attended, w["out"])
        x = x if pre else norm(of["attention_norm"], x)
        f, y = of["feed_forward"], norm(of["feed_forward_norm"], x) if pre else x
        x = x + np.maximum(y @ f["in"] + f["in_bias"], 0) @ f["out"] + f["out_bias"]
        x = x if pre else norm(of["feed_forward_norm"], x)
    return x, inputs


@pytest.mark.parametrize("name", CASES)
def test_segments_with_their_memory(name):
    """Segments of 6, 1 and 4 tokens: hidden states and what is remembered of them."""
    model, params = make(**CASES[name])
    c, apply = model.config, jitted(model)
    cache = transformer_xl.empty_memory(c, B)
    memories = [[np.zeros((0, c.width))] * c.num_layers for _ in range(B)]
    for length in (6, 1, 4):
        tokens = np.random.default_rng(length).integers(0, V, (B, length))
        out = apply(params, batch_of(tokens=tokens), cache)
        cache = out.cache
        for row in range(B):
            hidden, inputs = paper(c, params, tokens[row], memories[row])
            close(out.hidden_BTD[row], hidden)
            memories[row] = [
                np.concatenate(both)[-c.memory_length :] for both in zip(memories[row], inputs)
            ]
            for ours, expected in zip(cache["memory"], memories[row]):
                close(ours[row, -len(expected) :], expected)
        logits = model.logits(params, out.hidden_BTD)
        assert logits.shape == (B, length, V)


def test_memory_has_no_gradient_but_its_weights_have():
    """Keys and values are made of the memory by today's weights (Dai 2019, section 3.2)."""
    model, params = make(memory_length=6)
    cache = transformer_xl.empty_memory(model.config, B)
    cache = jitted(model)(params, batch_of(tokens=TOKENS), cache).cache
    one = batch_of(tokens=TOKENS[:, :1])

    @jax.jit
    def gradients(params, memory):
        def loss(params, memory):
            hidden = model.apply(params, one, cache={**cache, "memory": memory}).hidden_BTD
            return jnp.sum(jnp.sin(3 * hidden))

        return jax.grad(loss, argnums=(0, 1))(params, memory)

    of_params, of_memory = gradients(params, cache["memory"])
    assert all(float(jnp.abs(x).max()) == 0.0 for x in of_memory)
    none = transformer_xl.empty_memory(model.config, B)["memory"]
    of_others, _ = gradients(params, none)
    w_v, w_v_alone = (g["layers"]["attention"]["v"] for g in (of_params, of_others))
    assert float(jnp.abs(w_v - w_v_alone).max()) > 1e-3 * float(jnp.abs(w_v).max())


@pytest.mark.parametrize("keys", [{}, CASES["own biases, pre-norm, clamped"], CASES["same length"]])
def test_segments_equal_one_forward_pass(keys):
    """With room for all of the text, or where a token's reach is the memory's length anyway."""
    model, params = make(**{**keys, **({} if keys.get("same_length") else {"memory_length": 0})})
    apply, hidden = jitted(model), []
    whole = apply(params, batch_of(tokens=TOKENS)).hidden_BTD
    cache = transformer_xl.empty_memory(model.config, B, 4 if keys.get("same_length") else 12)
    for start, stop in ((0, 4), (4, 6), (6, 9)):
        out = apply(params, batch_of(tokens=TOKENS[:, start:stop]), cache)
        cache = out.cache
        hidden.append(out.hidden_BTD)
    close(jnp.concatenate(hidden, axis=1), whole, 1e-5)


def test_segment_length_reads_a_text_as_its_segments():
    """In one call, as for training: 9 tokens in segments of 4, 4 and 1; packed texts stay apart."""
    model, params = make(memory_length=5, segment_length=4)
    apply, hidden = jitted(model), []
    got = jax.jit(lambda p, b: model.apply(p, b, return_hidden=True))(
        params, batch_of(tokens=TOKENS)
    )
    cache = transformer_xl.empty_memory(model.config, B)
    for start in (0, 4, 8):
        out = apply(params, batch_of(tokens=TOKENS[:, start : start + 4]), cache)
        cache = out.cache
        hidden.append(out.hidden_BTD)
    close(got.hidden_BTD, jnp.concatenate(hidden, axis=1), 1e-5)
    assert got.hidden_states_LBTD.shape == (2, B, T, 16)
    for ours, expected in zip(got.hidden_states_LBTD, cache["memory"]):
        close(ours[:, -5:], expected, 1e-5)
    packed = batch_of(
        tokens=np.concatenate([TOKENS[:1, :6], TOKENS[1:, :3]], axis=1),
        segment_ids=np.array([[1] * 6 + [2] * 3]),
    )
    both = apply(params, packed).hidden_BTD[0]
    alone = apply(params, batch_of(tokens=TOKENS[1:, :2])).hidden_BTD[0]
    close(both[6:8], alone, 1e-5)  # up to where a segment of its own row ends


@pytest.mark.parametrize("keys", CASES.values(), ids=list(CASES))
def test_writing_equals_reading_token_by_token(keys):
    """Keys and values in a buffer, against the memory; the text outgrows the memory."""
    model, params = make(**keys)
    apply, unstacked = jitted(model), model.unstack(params)
    cache, memory = model.init_cache(B, 12), transformer_xl.empty_memory(model.config, B)
    for start, stop in ((0, 3), *((t, t + 1) for t in range(3, T))):
        piece = batch_of(tokens=TOKENS[:, start:stop])
        out, want = apply(unstacked, piece, cache), apply(params, piece, memory)
        cache, memory = out.cache, want.cache
        close(out.hidden_BTD, want.hidden_BTD, 1e-5)


@pytest.mark.parametrize("keys", [{}, {"memory_length": 4, "same_length": True}])
def test_decode_equals_forward_with_left_padding(keys):
    model, params = make(**keys)
    apply, pad = jitted(model), 5
    whole = apply(params, batch_of(tokens=TOKENS)).hidden_BTD
    real = np.broadcast_to(np.arange(T + pad) >= pad, (B, T + pad))
    padded = batch_of(
        tokens=np.pad(TOKENS, ((0, 0), (pad, 0)), constant_values=7), segment_ids=real
    )
    close(apply(params, padded).hidden_BTD[:, pad:], whole, 1e-5)
    first = {name: x[:, : pad + 4] for name, x in padded.items()}
    out = apply(params, first, model.init_cache(B, 20))
    parts = [out.hidden_BTD[:, pad:]]
    for t in range(4, T):
        out = apply(params, batch_of(tokens=TOKENS[:, t : t + 1]), out.cache)
        parts.append(out.hidden_BTD)
    close(jnp.concatenate(parts, axis=1), whole, 1e-5)


def test_generate_goes_on_as_the_forward_pass_would():
    model, params = make(tie_embeddings=False, norm_position="pre")
    prompts = [TOKENS[0, :5].tolist(), TOKENS[1, :2].tolist()]
    written = generate(model, params, prompts, GenerateConfig(max_new_tokens=5, temperature=0.0))
    apply = jitted(model)
    for prompt, got in zip(prompts, written):
        ids = np.zeros((1, 12), np.int32)
        ids[0, : len(prompt)] = prompt
        for n in range(len(prompt), len(prompt) + 5):
            hidden = apply(params, batch_of(tokens=ids)).hidden_BTD
            ids[0, n] = int(jnp.argmax(model.logits(params, hidden[0, n - 1])))
        assert got == ids[0, len(prompt) : len(prompt) + 5].tolist()
        assert len(set(got)) > 3  # or the test would not see much


def test_causal_by_gradient():
    model, params = make(memory_length=4, segment_length=3)

    @jax.jit
    def reach(table_VD):
        def read(table_VD):
            changed = {**params, "embed": {**params["embed"], "tokens": table_VD}}
            batch = {"tokens": jnp.arange(7)[None]}
            return jnp.sin(model.apply(changed, batch).hidden_BTD[0]).sum(axis=-1)

        return jax.jacobian(read)(table_VD)

    reached_TT = np.abs(reach(params["embed"]["tokens"])).sum(axis=-1)[:, :7] > 0
    # No gradient goes beyond a segment, and none to a later token.
    same = np.arange(7)[:, None] // 3 == np.arange(7)[None] // 3
    np.testing.assert_array_equal(reached_TT, np.tril(same))


def test_padding_packing_and_batch_mates_change_nothing():
    model, params = make(untie_r=True)
    apply = jitted(model)
    lengths = (9, 4)
    segment_ids = np.arange(T) < np.array(lengths)[:, None]
    hidden = apply(params, batch_of(tokens=TOKENS, segment_ids=segment_ids)).hidden_BTD
    for row, length in enumerate(lengths):
        alone = apply(params, batch_of(tokens=TOKENS[row : row + 1, :length])).hidden_BTD[0]
        close(hidden[row, :length], alone, 1e-5)
    packed = batch_of(
        tokens=np.concatenate([TOKENS[:1, :5], TOKENS[1:, :4]], axis=1),
        segment_ids=np.array([[1] * 5 + [2] * 4]),
    )
    both = apply(params, packed).hidden_BTD[0]
    close(both[:5], hidden[0, :5], 1e-5)
    close(both[5:], hidden[1, :4], 1e-5)


def test_dropout_only_with_a_key():
    model, params = make(dropout=0.4, attention_dropout=0.3, memory_length=4, segment_length=5)
    apply, batch = jax.jit(model.apply), batch_of(tokens=TOKENS)
    still = apply(params, batch).hidden_BTD
    one, two = (apply(params, batch, key=jax.random.key(k)).hidden_BTD for k in (1, 2))
    assert not np.allclose(one, still) and not np.allclose(one, two)


@pytest.mark.parametrize("changed", [{"unroll": 0, "remat": "full"}])
def test_running_choices_do_not_change_the_function(changed):
    batch = batch_of(tokens=TOKENS)
    model, params = make(memory_length=6, segment_length=4)
    other = transformer_xl.make(dataclasses.replace(model.config, **changed))

    def gradients(model):
        def loss(params):
            return jnp.sum(jnp.sin(model.apply(params, batch).hidden_BTD))

        return jax.jit(jax.value_and_grad(loss))(params)

    jax.tree.map(lambda a, b: close(a, b, 2e-5), gradients(other), gradients(model))


@pytest.mark.parametrize("keys,words", [
    ({"cutoffs": (30, 20)}, "model.cutoffs=(30, 20) must rise"),
    ({"cutoffs": (50,)}, "below model.vocab_size=41"),
    ({"div_val": 2}, "model.div_val=2"),
    ({"segment_length": 4}, "model.memory_length"),
    ({"same_length": True}, "model.memory_length"),
    ({"norm_position": "output"}, "model.norm_position"),
])  # fmt: skip
def test_bad_config_is_one_line(keys, words):
    with pytest.raises(UserError) as error:
        transformer_xl.Config(**{**SMALL, **keys})
    assert words in str(error.value) and "\n" not in str(error.value)


def test_no_memory_is_told():
    with pytest.raises(UserError, match="set model.memory_length"):
        transformer_xl.empty_memory(transformer_xl.Config(**SMALL), B)
