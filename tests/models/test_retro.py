"""RETRO: what each position may know of tokens and neighbours, by gradient; off it is a decoder."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer.errors import UserError
from jaxformer.generate import Config as GenerateConfig
from jaxformer.generate import generate
from jaxformer.models import count_parameters, decoder, retro
from jaxformer.parallel import mesh, rules

V, M, B, T, P, R = 37, 4, 2, 14, 2, 6  # 3 whole chunks of 4, and a half
L = T // M
SMALL = dict(
    vocab_size=V, width=16, num_layers=3, num_heads=4, num_kv_heads=2, max_length=32, chunk=M,
    retrieval_layers=(2, 3), encoder_width=12, encoder_heads=2, short_conv=2,
)  # fmt: skip
RANDOM = np.random.default_rng(0)
TOKENS = jnp.asarray(RANDOM.integers(0, V, (B, T)), jnp.int32)
FOUND = jnp.asarray(RANDOM.integers(0, V, (B, L, P, R)), jnp.int32)


@functools.cache
def made(**keys):
    model = retro.make(retro.Config(**SMALL, **keys))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    draw = np.random.default_rng(1).normal  # norms too: ones hide mistakes
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * draw(size=x.shape), jnp.float32), shapes)
    return model._replace(apply=jax.jit(model.apply)), params


def close(a, b, bound=2e-5):
    b = np.asarray(b)
    np.testing.assert_allclose(a, b, atol=bound * np.abs(b).max(), rtol=0)


@pytest.mark.slow
def test_the_loss_of_a_token_knows_no_later_token_and_neighbours_of_ended_chunks_alone():
    """By gradient, through the table of an embedding in which each place has a row of its own."""
    width, rows = SMALL["width"], T + L * P * R
    model = retro.make(retro.Config(**{**SMALL, "vocab_size": rows}))
    params = jax.jit(model.init)(jax.random.key(0))
    params = jax.tree.map(
        lambda x: x + 0.3 * jnp.asarray(np.random.default_rng(2).normal(size=x.shape)), params
    )
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    batch = {
        "tokens": jnp.arange(T)[None],
        "neighbours": (T + jnp.arange(L * P * R)).reshape(1, L, P, R),
    }
    targets_T = (jnp.arange(T) + 1) % T

    def losses(table_VD, of_neighbours_VE):
        """The loss of each position; it reads the table as given, its head does not change."""
        there = {**params["encoder"], "embed": {"tokens": of_neighbours_VE}}
        changed = {**params, "embed": {"tokens": table_VD}, "encoder": there}
        hidden_TD = model.apply(changed, batch).hidden_BTD[0]
        logits_TV = model.logits(params, hidden_TD)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits_TV), targets_T[:, None], 1)[:, 0]

    tables = params["embed"]["tokens"], params["encoder"]["embed"]["tokens"]
    assert tables[0].shape == (rows, width)
    jacobians = jax.jit(jax.jacrev(losses, (0, 1)))(*tables)
    by_token_TV, by_neighbour_TV = (np.abs(np.asarray(x)).sum(-1) for x in jacobians)
    by_chunk_TL = by_neighbour_TV[:, T:].reshape(T, L, P * R)
    assert not by_neighbour_TV[:, :T].any()
    for t in range(T):
        assert (by_token_TV[t, : t + 1] > 0).all() and not by_token_TV[t, t + 1 :].any(), t
        for u in range(L):
            # Two layers look, and self-attention carries on what an earlier position has read.
            ended = t >= (u + 1) * M - 1
            assert (by_chunk_TL[t, u] > 0).all() if ended else not by_chunk_TL[t, u].any(), (t, u)


def test_a_chunks_neighbours_may_change_without_a_trace_before_its_end():
    model, params = made()
    before = model.apply(params, {"tokens": TOKENS, "neighbours": FOUND}).hidden_BTD
    for u in range(L):
        changed = FOUND.at[:, u].set((FOUND[:, u] + 5) % V)
        after = model.apply(params, {"tokens": TOKENS, "neighbours": changed}).hidden_BTD
        moved_T = np.abs(np.asarray(after - before)).max((0, 2)) > 0
        assert moved_T.tolist() == [t >= (u + 1) * M - 1 for t in range(T)]


def test_off_is_a_plain_decoder():
    model, params = made()
    names = decoder.Config.__dataclass_fields__
    same = {name: getattr(model.config, name) for name in names if hasattr(model.config, name)}
    plain = decoder.make(decoder.Config(**same))
    ours = {name: tree for name, tree in params.items() if name not in ("cross", "encoder")}
    shapes = jax.eval_shape(plain.init, jax.random.key(0))
    assert jax.tree.structure(shapes) == jax.tree.structure(ours)
    want = jax.jit(plain.apply)(ours, {"tokens": TOKENS}).hidden_BTD
    close(model.apply(params, {"tokens": TOKENS}).hidden_BTD, want)
    none = {"tokens": TOKENS, "neighbours": jnp.full_like(FOUND, -1)}
    close(model.apply(params, none).hidden_BTD, want)


def test_padding_of_neighbours_changes_nothing():
    model, params = made()
    short = jnp.where(jnp.arange(R) < 4, FOUND, -1).at[:, :, 1].set(-1)
    got = model.apply(params, {"tokens": TOKENS, "neighbours": short}).hidden_BTD
    want = model.apply(params, {"tokens": TOKENS, "neighbours": short[:, :, :1, :4]}).hidden_BTD
    close(got, want)


def test_one_layer_is_the_papers_algorithm():
    """Borgeaud 2022, algorithm 1, with one layer in decoder and encoder, in float64."""
    c = retro.Config(
        vocab_size=V,
        width=8,
        num_layers=1,
        num_heads=2,
        chunk=M,
        encoder_layers=1,
        activation="relu",
    )
    model = retro.make(c)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    draw = np.random.default_rng(3).normal
    params = jax.tree.map(lambda x: jnp.asarray(0.5 * draw(size=x.shape), jnp.float32), shapes)
    got = model.apply(params, {"tokens": TOKENS[:1], "neighbours": FOUND[:1]}).hidden_BTD[0]
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    dec, cca = (jax.tree.map(lambda x: x[0], tree) for tree in (p["layers"], p["cross"]["layers"]))
    enc = jax.tree.map(lambda x: x[0], p["encoder"]["layers"])
    ca = jax.tree.map(lambda x: x[0], p["encoder"]["cross"]["layers"])

    def norm(x, w):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_epsilon) * w["scale"]

    def turn(x_TNH, places):
        half = x_TNH.shape[-1] // 2
        angle = np.asarray(places)[:, None, None] * 10000.0 ** -(np.arange(half) / half)
        a, b = x_TNH[..., :half], x_TNH[..., half:]
        return np.concatenate(
            [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1
        )

    def attend(w, x, source, x_places, places, visible):
        q = turn(np.einsum("td,dnh->tnh", x, w["q"]), x_places)
        k = turn(np.einsum("sd,dnh->snh", source, w["k"]), places)
        v = np.einsum("sd,dnh->snh", source, w["v"])
        logits = np.einsum("tnh,snh->nts", q, k) / np.sqrt(q.shape[-1])
        e = np.where(visible, np.exp(logits), 0.0)
        return np.einsum("nts,snh,nhd->td", e / e.sum(-1, keepdims=True), v, w["out"])

    def feed(w, x):
        y = norm(x, w["feed_forward_norm"])
        return x + np.maximum(y @ w["feed_forward"]["in"], 0) @ w["feed_forward"]["out"]

    h = p["embed"]["tokens"][np.asarray(TOKENS[0])]
    encoded = []
    for u in range(L):  # the encoder, conditioned on what the layer that looks first reads
        for neighbour in np.asarray(FOUND[0, u]):
            x = p["embed"]["tokens"][neighbour]
            y = norm(x, enc["attention_norm"])
            x = x + attend(enc["attention"], y, y, range(R), range(R), True)
            y = norm(x, ca["cross_attention_norm"])
            of_chunk = h[u * M : (u + 1) * M]
            x = x + attend(ca["cross_attention"], y, of_chunk, range(R), range(M), True)
            encoded.append(norm(feed(enc, x), p["encoder"]["final_norm"]))
    encoded = np.stack(encoded).reshape(L, P * R, -1)
    y = norm(h, dec["attention_norm"])
    h = h + attend(dec["attention"], y, y, range(T), range(T), np.tri(T, dtype=bool))
    y = norm(h, cca["cross_attention_norm"])
    read = np.zeros_like(h)
    for u in range(L):  # positions from 1: u m ... u m + m - 1 read chunk u
        for t in range((u + 1) * M - 1, min((u + 2) * M - 1, T)):
            place = M - 1 + (t + 1) % M
            read[t] = attend(
                cca["cross_attention"], y[t : t + 1], encoded[u], [place], [*range(R)] * P, True
            )[0]
    close(got, norm(feed(dec, h + read), p["final_norm"]), 1e-4)


@pytest.mark.slow
def test_decoding_equals_the_whole_with_neighbours_found_as_chunks_end():
    model, params = made()
    want = model.apply(params, {"tokens": TOKENS, "neighbours": FOUND}).hidden_BTD
    apart = model.unstack(params)
    for begin in (0, 5, 8):  # tokens that are read at once, with their whole chunks' neighbours
        cache = retro.with_retrieval(model.config, model.init_cache(B, T + 1), P, R)
        got = []
        if begin:
            batch = {"tokens": TOKENS[:, :begin], "neighbours": FOUND[:, : begin // M]}
            out = model.apply(apart, batch, cache=cache)
            got, cache = [out.hidden_BTD], out.cache
        for t in range(begin, T):
            batch = {"tokens": TOKENS[:, t : t + 1]}
            if (t + 1) % M == 0:
                batch["neighbours"] = FOUND[:, t // M : t // M + 1]
            elif t == 9:  # of a chunk that has not ended: it is not kept
                batch["neighbours"] = FOUND[:, :1]
            out = model.apply(apart, batch, cache=cache)
            cache = out.cache
            got.append(out.hidden_BTD)
        close(jnp.concatenate(got, axis=1), want)


def test_off_decodes_and_generates():
    model, params = made()
    want = model.apply(params, {"tokens": TOKENS}).hidden_BTD
    cache, got = model.init_cache(B, T), []
    for t in range(T):
        out = model.apply(params, {"tokens": TOKENS[:, t : t + 1]}, cache=cache)
        cache = out.cache
        got.append(out.hidden_BTD)
    close(jnp.concatenate(got, axis=1), want)
    greedy = GenerateConfig(max_new_tokens=4, temperature=0.0)
    new = generate(retro.make(model.config), params, [[1, 2, 3]], greedy)
    text = [1, 2, 3]
    for _ in range(4):
        hidden = model.apply(params, {"tokens": jnp.asarray([text])}).hidden_BTD[:, -1]
        text.append(int(model.logits(params, hidden).argmax()))
    assert new == [text[3:]]


@pytest.mark.slow
def test_bf16_remat_and_a_scan_are_the_same_function():
    model, params = made()
    batch = {"tokens": TOKENS, "neighbours": FOUND}
    weight = jnp.asarray(RANDOM.normal(size=(B, T, SMALL["width"])), jnp.float32)

    def gradient(model):
        return jax.jit(
            jax.grad(lambda p: (model.apply(p, batch).hidden_BTD * weight).sum())
        )(params)  # fmt: skip

    want = gradient(model)
    assert all(np.abs(np.asarray(x)).max() > 0 for x in jax.tree.leaves(want))
    other = retro.make(retro.Config(**SMALL, remat="full", unroll=1))
    for a, b in zip(jax.tree.leaves(gradient(other)), jax.tree.leaves(want), strict=True):
        close(a, b, 1e-4)
    half = retro.make(retro.Config(**SMALL, compute_dtype="bfloat16"))
    out = jax.jit(half.apply)(params, batch).hidden_BTD
    assert out.dtype == jnp.bfloat16
    close(out.astype(jnp.float32), model.apply(params, batch).hidden_BTD, 0.1)


def test_sizes_and_rules():
    config = retro.Config(**retro.SIZES["retro_172m"])
    assert [layer + 1 for layer in config.looking] == [6, 9, 12]
    shapes = jax.eval_shape(retro.make(config).init, jax.random.key(0))
    count = count_parameters(shapes) - count_parameters(shapes["embed"])
    # The paper's count, less the projections of relative positions, which RoPE does not have: one
    # of each attention's, of 896 x 1024, in 12 + 3 layers of the decoder and 2 + 1 of the encoder.
    assert count / 1e6 == pytest.approx(172 - 18 * 0.896 * 1.024, rel=0.01)
    assert [layer + 1 for layer in retro.Config(num_layers=4).looking] == [2]
    found = rules.shardings(shapes, mesh.make(mesh.Config(data=2, fsdp=2, tensor=2)))
    cross = found["encoder"]["cross"]["layers"]["cross_attention"]
    assert cross["q"].spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor", None)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (dict(norm_position="post", short_conv=0), "'pre' alone"),
        (dict(attention="linear"), "model.attention"),
        (dict(retrieval_layers=(3, 2)), "must rise, from 1 to 3"),
        (dict(retrieval_layers=(4,)), "must rise, from 1 to 3"),
        (dict(chunk=0), "model.chunk is 0"),
    ],
)
def test_bad_configs_are_one_line(keys, words):
    with pytest.raises(UserError, match=words) as caught:
        retro.Config(**{**SMALL, **keys})
    assert "\n" not in str(caught.value)


def test_neighbours_that_do_not_fit_are_one_line():
    model, params = made()
    with pytest.raises(UserError, match="data.retrieval_chunk"):
        model.apply(params, {"tokens": TOKENS, "neighbours": FOUND[:, :2]})
    with pytest.raises(UserError, match="with_retrieval"):
        batch = {"tokens": TOKENS[:, :4], "neighbours": FOUND[:, :1]}
        model.apply(params, batch, cache=model.init_cache(B, T))


@pytest.mark.slow
def test_it_learns_to_read_what_follows_in_its_neighbours():
    """Text at random, of which each neighbour has a chunk and, as its continuation, the next one:
    there is nothing to learn but to read it, and only from the first chunk's end on."""
    V, T = 12, 5 * M
    config = retro.Config(
        vocab_size=V, width=32, num_layers=2, num_heads=2, chunk=M, retrieval_layers=(2,),
        encoder_layers=1, init="fan_in", tie_embeddings=False,
    )  # fmt: skip
    model = retro.make(config)
    params = jax.jit(model.init)(jax.random.key(0))

    def losses(params, key, on):
        text = jax.random.randint(key, (32, T + M), 0, V)
        batch = {"tokens": text[:, :T]}
        pairs = [text[:, u * M : (u + 2) * M] for u in range(T // M)]
        if on:
            batch["neighbours"] = jnp.stack(pairs, axis=1)[:, :, None]
        logits = model.logits(params, model.apply(params, batch).hidden_BTD)
        targets = text[:, 1 : T + 1, None]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets, 2).mean((0, 2))

    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(state, key):
        params, kept = state
        gradient = jax.grad(lambda p: losses(p, key, True).mean())(params)
        updates, kept = optimizer.update(gradient, kept)
        return (optax.apply_updates(params, updates), kept), None

    keys = jax.random.split(jax.random.key(1), 400)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    read, unread = (losses(params, jax.random.key(2), on) for on in (True, False))
    chance = np.log(V)
    assert (read[: M - 1] > 0.9 * chance).all() and read[M - 1 :].max() < 0.2 * chance
    assert (unread > 0.9 * chance).all()
