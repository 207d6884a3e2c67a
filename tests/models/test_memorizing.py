"""The Memorizing Transformer against its paper, token by token, and what must hold of any."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.evaluate import likelihood
from jaxformer.generate import Config as GenerateConfig
from jaxformer.generate import generate
from jaxformer.models import memorizing

B, T, V = 2, 15, 29
TOKENS = np.random.default_rng(0).integers(0, V, (B, T))
SMALL = dict(
    vocab_size=V, width=16, num_layers=3, num_heads=4, feed_forward=20, unroll=1,
    segment_length=4, memory_size=8, memory_top_k=3, memory_layer=2, max_length=64,
)  # fmt: skip
CASES: dict[str, dict] = {
    "the paper's positions": {},
    "grouped queries, all of a long memory": dict(
        num_kv_heads=2, memory_size=65536, memory_top_k=32, qk_norm=False
    ),
    "the last layer, RoPE": dict(memory_layer=3, positions="rope", memory_size=4),
}


def make(**keys):
    model = memorizing.make(memorizing.Config(**{**SMALL, **keys}))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    draw = np.random.default_rng(1).normal  # norms and biases too: zeros and ones hide mistakes
    return model, jax.tree.map(lambda x: jnp.asarray(0.4 * draw(size=x.shape), jnp.float32), shapes)


def batch_of(**arrays) -> dict:
    return {name: jnp.asarray(x, jnp.int32) for name, x in arrays.items()}


def jitted(model):
    return jax.jit(lambda params, batch, cache=None: model.apply(params, batch, cache=cache))


def close(ours, expected, bound=1e-5) -> None:
    expected = np.asarray(expected)
    assert np.abs(np.asarray(ours) - expected).max() <= bound * np.abs(expected).max()


def paper(c, params, tokens_T: np.ndarray) -> np.ndarray:
    """One document: hidden [T, D] float64; Wu 2022, section 3.1, with all keys at hand."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x, H, s = params["embed"]["tokens"][tokens_T], c.per_head, c.segment_length
    kinds = c.layer_kinds

    def norm(of, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + c.norm_epsilon)
        return x * of["scale"] + of["bias"]

    def turned(x, t):
        if c.positions != "rope":
            return x
        angles = t / c.rope_base ** (np.arange(0, H, 2) / H)
        a, b = np.split(x, 2, axis=-1)
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def attend(scores, values):
        p = np.exp(scores - scores.max())
        return p @ values / p.sum()

    for layer in range(c.num_layers):
        of = jax.tree.map(lambda leaf: leaf[layer], params["layers"])  # noqa: B023
        w, y = of["attention"], norm(of["attention_norm"], x)
        q, k, v = (np.einsum("td,dnh->tnh", y, w[n]) + w[f"{n}_bias"] for n in "qkv")
        if c.qk_norm:
            q, k = (
                z / np.sqrt(np.mean(z**2, -1, keepdims=True) + c.norm_epsilon) * w[f"{n}_norm"]
                for n, z in (("q", q), ("k", k))
            )
        k, v = (np.repeat(z, c.num_heads // z.shape[1], axis=1) for z in (k, v))
        near_q, near_k = (np.stack([turned(row, t) for t, row in enumerate(z)]) for z in (q, k))
        attended = np.zeros_like(q)
        for t in range(len(x)):
            start = t // s * s
            for n in range(c.num_heads):
                scores = near_k[start : t + 1, n] @ near_q[t, n] / np.sqrt(H)
                if c.positions == "t5":  # near enough for a bucket of its own
                    scores = (
                        scores
                        + params["relative"]["relative_bias"][t - start :: -1, n][: t - start + 1]
                    )
                near = attend(scores, v[start : t + 1, n])
                if kinds[layer] != "memory":
                    attended[t, n] = near
                    continue
                first, far = max(0, start - c.memory_size), np.zeros(H)
                if start > first:
                    scores = k[first:start, n] @ q[t, n] / np.sqrt(H)
                    found = np.argsort(-scores)[: c.memory_top_k]
                    far = attend(scores[found], v[first:start, n][found])
                gate = 1 / (1 + np.exp(-params["memory"]["gate"][n]))
                attended[t, n] = gate * far + (1 - gate) * near
        x = x + np.einsum("tnh,nhd->td", attended, w["out"]) + w["out_bias"]
        f, y = of["feed_forward"], norm(of["feed_forward_norm"], x)
        y = y @ f["in"] + f["in_bias"]
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + y @ f["out"] + f["out_bias"]
    return norm(params["final_norm"], x)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_paper_in_all_three_ways_to_read(name):
    """A row at once; by a cache, as it is written; on and on, a segment at a time, with a ring."""
    model, params = make(**CASES[name])
    expected = np.stack([paper(model.config, params, row) for row in TOKENS])
    apply, unstacked = jitted(model), model.unstack(params)
    close(apply(params, batch_of(tokens=TOKENS)).hidden_BTD, expected, 3e-5)
    cache, parts = model.init_cache(B, 20), []
    for start, stop in ((0, 9), *((t, t + 1) for t in range(9, T))):  # a prompt of two segments
        out = apply(unstacked, batch_of(tokens=TOKENS[:, start:stop]), cache)
        cache = out.cache
        parts.append(out.hidden_BTD)
    close(jnp.concatenate(parts, axis=1), expected, 3e-5)
    config = dataclasses.replace(model.config, memory_size=min(model.config.memory_size, 64))
    cache, parts = memorizing.empty_memory(config, B), []
    for start in range(0, T, 4):  # a ring of 8 is overwritten
        out = apply(params, batch_of(tokens=TOKENS[:, start : start + 4]), cache)
        cache = out.cache
        parts.append(out.hidden_BTD)
    close(jnp.concatenate(parts, axis=1), expected, 3e-5)


@pytest.mark.slow
def test_documents_padding_and_batch_mates_change_nothing():
    model, params = make()
    apply = jitted(model)
    alone = apply(params, batch_of(tokens=TOKENS)).hidden_BTD
    packed = batch_of(
        tokens=np.concatenate([TOKENS[:1, :6], TOKENS[1:, :9]], axis=1),
        segment_ids=np.array([[1] * 6 + [2] * 9]),
    )
    both = apply(params, packed).hidden_BTD[0]
    close(both[:6], alone[0, :6])
    close(both[6:], alone[1, :9])  # the memory is emptied
    for left, right in ((3, 0), (0, 3)):
        real = np.pad(np.ones((B, T), int), ((0, 0), (left, right)))
        padded = batch_of(
            tokens=np.pad(TOKENS, ((0, 0), (left, right)), constant_values=7), segment_ids=real
        )
        close(apply(params, padded).hidden_BTD[:, left : left + T], alone)


def test_a_new_document_empties_the_ring():
    model, params = make()
    apply, memory = jitted(model), memorizing.empty_memory(model.config, B)
    first = batch_of(tokens=TOKENS[:, :4], segment_ids=np.ones((B, 4)))
    memory = apply(params, first, memory).cache
    again = batch_of(tokens=TOKENS[:, :4], segment_ids=np.full((B, 4), 2))
    fresh = memorizing.empty_memory(model.config, B)
    close(apply(params, again, memory).hidden_BTD, apply(params, first, fresh).hidden_BTD)
    assert not np.allclose(
        apply(params, first, memory).hidden_BTD, apply(params, first, fresh).hidden_BTD
    )


@pytest.mark.slow
def test_causal_by_gradient_and_none_enters_the_memory():
    model, params = make()
    tokens = jnp.arange(10)[None]

    @jax.jit
    def reach(table_VD):
        def read(table_VD):
            changed = {**params, "embed": {**params["embed"], "tokens": table_VD}}
            return jnp.sin(model.apply(changed, {"tokens": tokens}).hidden_BTD[0]).sum(axis=-1)

        return jax.jacobian(read)(table_VD)

    reached_TT = np.abs(reach(params["embed"]["tokens"])).sum(axis=-1)[:, :10] > 0
    same = np.arange(10)[:, None] // 4 == np.arange(10)[None] // 4
    np.testing.assert_array_equal(reached_TT, np.tril(same))
    # And yet what was said before matters, and what comes later does not.
    apply = jitted(model)
    hidden = apply(params, {"tokens": tokens}).hidden_BTD[0]
    other = apply(params, {"tokens": tokens.at[0, 6].set(20)}).hidden_BTD[0]
    differs = np.abs(np.asarray(hidden - other)).max(axis=-1) > 1e-6
    assert not differs[:6].any() and differs[6:].all()


@pytest.mark.slow
def test_the_gate_learns():
    model, params = make()
    loss = lambda p: jnp.sin(model.apply(p, batch_of(tokens=TOKENS)).hidden_BTD).sum()  # noqa: E731
    gradients = jax.jit(jax.grad(loss))(params)
    assert (np.abs(gradients["memory"]["gate"]) > 1e-4).all()


def test_without_a_memory_segments_are_texts_of_their_own():
    model, params = make(memory_size=0)
    apply = jitted(model)
    hidden = apply(params, batch_of(tokens=TOKENS[:, :12])).hidden_BTD
    cut = apply(params, batch_of(tokens=TOKENS[:, :12].reshape(-1, 4))).hidden_BTD
    close(hidden, cut.reshape(B, 12, -1))
    shapes, with_memory = (
        jax.tree.map(jnp.shape, tree)
        for tree in (params, make()[1])  # a run can be evaluated without
    )
    assert shapes == with_memory


@pytest.mark.slow
def test_generate_goes_on_as_the_forward_pass_would():
    model, params = make(tie_embeddings=False)
    prompts = [TOKENS[0, :10].tolist(), TOKENS[1, :3].tolist()]
    written = generate(model, params, prompts, GenerateConfig(max_new_tokens=5, temperature=0.0))
    apply = jitted(model)
    for prompt, got in zip(prompts, written):
        ids = np.zeros((1, 16), np.int32)
        ids[0, : len(prompt)] = prompt
        for n in range(len(prompt), len(prompt) + 5):
            hidden = apply(params, batch_of(tokens=ids)).hidden_BTD
            ids[0, n] = int(jnp.argmax(model.logits(params, hidden[0, n - 1])))
        assert got == ids[0, len(prompt) : len(prompt) + 5].tolist()
    forgetful = memorizing.make(dataclasses.replace(model.config, memory_size=0))
    config = GenerateConfig(max_new_tokens=5, temperature=0.0)
    assert generate(forgetful, params, prompts, config)[0] != written[0]  # or it would see little


@pytest.mark.slow
def test_likelihoods_are_those_of_the_forward_pass():
    model, params = make()
    row = TOKENS[0].tolist()
    [(total, _)] = likelihood.loglikelihoods(model, params, [(row[:9], row[9:])])
    logits = model.logits(params, model.apply(params, batch_of(tokens=TOKENS[:1])).hidden_BTD[0])
    logp = jax.nn.log_softmax(logits)[np.arange(8, 14), np.array(row[9:])]
    np.testing.assert_allclose(total, logp.sum(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{"unroll": 0, "remat": "full"}, {"memory_approximate": True}])
def test_running_choices_do_not_change_the_function(changed):
    model, params = make()
    other = memorizing.make(dataclasses.replace(model.config, **changed))

    def gradients(model):
        loss = lambda p: jnp.sin(model.apply(p, batch_of(tokens=TOKENS)).hidden_BTD).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params)

    jax.tree.map(lambda a, b: close(a, b, 2e-5), gradients(other), gradients(model))


@pytest.mark.parametrize("keys,words", [
    ({"segment_length": 0}, "model.segment_length is 0"),
    ({"memory_size": 6}, "multiple of model.segment_length=4"),
    ({"memory_layer": 4}, "must be 1 to model.num_layers=3"),
    ({"window": 4}, "leave model.attention, model.window"),
    ({"attention_soft_cap": 5.0}, "no soft cap"),
])  # fmt: skip
def test_bad_config_is_one_line(keys, words):
    with pytest.raises(UserError) as error:
        memorizing.Config(**{**SMALL, **keys})
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("keys,words", [
    ({"memory_size": 0}, "set model.memory_size"),
    ({"short_conv": 3}, "model.short_conv=0"),
    ({"positions": "learned"}, "model.positions=learned"),
])  # fmt: skip
def test_a_memory_that_cannot_be_is_told(keys, words):
    with pytest.raises(UserError, match=words):
        memorizing.empty_memory(memorizing.Config(**{**SMALL, **keys}), B)


def test_too_long_a_segment_is_told():
    model, params = make()
    with pytest.raises(UserError, match="model.segment_length=4 tokens; this one has 15"):
        model.apply(params, batch_of(tokens=TOKENS), cache=memorizing.empty_memory(model.config, B))
