"""Decoding equals the full forward pass; padding, batch mates and streaming change nothing."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.generate import Config, Detokenizer, decode, generate
from jaxformer.generate.logits import Rules
from jaxformer.generate.prompts import left_pad
from jaxformer.models import decoder

V = 23
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6], [2]]
GREEDY = Config(max_new_tokens=24, temperature=0.0)
WARM = Config(max_new_tokens=24, temperature=1.5, top_k=12, top_p=0.95)


def make(**options):
    config = decoder.Config(
        **dict(vocab_size=V, num_layers=2, width=16, num_heads=4, max_length=64, init_std=0.3)
        | options
    )
    model = decoder.make(config)
    return model, model.init(jax.random.key(0))


@pytest.fixture(scope="module")
def gpt():
    return make()


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens_BT):
    return model.logits(params, model.apply(params, {"tokens": tokens_BT}).hidden_BTD)


def full_logits(model, params, rows):
    """The logits of each row by one forward pass; what is padded on the right no token sees."""
    tokens_BT = np.zeros((len(rows), 48), np.int32)
    for row, ids in enumerate(rows):
        tokens_BT[row, : len(ids)] = ids
    return forward(model, params, tokens_BT)


def letters(ids):
    return "".join(chr(ord("a") + i) for i in ids)


FAMILIES = {
    "learned": dict(),
    "rope": dict(positions="rope", num_kv_heads=2, qk_norm=True, bias=False, tie_embeddings=False),
    "alibi": dict(positions="alibi", parallel_residual=True),
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "rope"]


@pytest.mark.parametrize("family", ["rope", *SLOW])
def test_greedy_decoding_equals_repeated_full_forward(family):
    model, params = make(**FAMILIES[family])
    rows = generate(model, params, PROMPTS, GREEDY)
    texts = [prompt + new for prompt, new in zip(PROMPTS, rows, strict=True)]
    best = np.argmax(full_logits(model, params, texts), -1)
    for row, (prompt, new) in enumerate(zip(PROMPTS, rows, strict=True)):
        assert len(new) == GREEDY.max_new_tokens
        assert best[row, len(prompt) - 1 :][: len(new)].tolist() == new
    assert len({tuple(row) for row in rows}) == len(rows)  # and they are not all alike


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_logits_equal_the_full_forward(family):
    """Prefill of left-padded rows, then one token at a time, against each row alone."""
    model, params = make(**FAMILIES[family])
    tokens, valid = left_pad(PROMPTS)
    rng = np.random.default_rng(0)
    new = rng.integers(0, V, (len(PROMPTS), 5))
    step = jax.jit(lambda batch, cache: model.apply(params, batch, cache=cache))
    positions = np.maximum(valid.cumsum(1) - 1, 0)
    out = step(
        {"tokens": tokens, "segment_ids": valid, "positions": positions},
        model.init_cache(len(PROMPTS), 32 + 8),
    )
    hidden, last = [out.hidden_BTD[:, -1]], positions[:, -1]
    for t in range(new.shape[1]):
        last = last + 1
        batch = {"tokens": new[:, t : t + 1], "positions": last[:, None]}
        out = step(batch, out.cache)
        hidden.append(out.hidden_BTD[:, -1])
    cached = model.logits(params, jnp.stack(hidden, 1))
    texts = [prompt + ids.tolist() for prompt, ids in zip(PROMPTS, new, strict=True)]
    full = full_logits(model, params, texts)
    for row, prompt in enumerate(PROMPTS):
        start = len(prompt) - 1
        np.testing.assert_allclose(cached[row], full[row, start : start + 6], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [GREEDY, WARM])
def test_batch_mates_and_padding_never_change_a_row(gpt, config):
    key = jax.random.key(7)
    together = generate(*gpt, PROMPTS, config, key=key)
    mates = [PROMPTS[0], [7] * 33, [8]]
    assert generate(*gpt, mates, config, key=key)[0] == together[0]
    assert generate(*gpt, PROMPTS[:1], config, key=key)[0] == together[0]


def test_seed_repeats_and_rows_differ(gpt):
    rows = generate(*gpt, [[1]] * 3, WARM)
    assert generate(*gpt, [[1]] * 3, WARM) == rows
    assert len({tuple(row) for row in rows}) == 3
    assert generate(*gpt, [[1]] * 3, WARM, key=jax.random.key(5)) != rows


def test_rows_stop_at_a_stop_token_and_the_others_go_on(gpt):
    free = generate(*gpt, PROMPTS, GREEDY)
    stop = free[0][9]
    rows = generate(*gpt, PROMPTS, Config(max_new_tokens=24, temperature=0.0, stop=(stop,)))
    for row, whole in zip(rows, free, strict=True):
        assert row == (whole[: whole.index(stop)] if stop in whole else whole)
    assert generate(*gpt, PROMPTS, GREEDY, eos_ids=[stop]) == rows


def test_the_loop_ends_early_when_all_rows_have_stopped(gpt):
    model, params = gpt
    tokens, valid = left_pad(PROMPTS)
    options = decode._Options(tokens.shape[1] + 64, 64, True, 0, 1.0, 0.0, -1, Rules(V))
    everything = np.arange(V, dtype=np.int32)
    state = decode._begin(
        model, options, params, tokens, valid, jax.random.key(0), np.float32(0), everything,
        np.int32(24),
    )  # fmt: skip
    assert state["step"] == 1 and state["done"].all() and not state["count"].any()


@pytest.mark.parametrize("config", [GREEDY, WARM])
def test_streaming_gives_the_same_tokens_in_pieces(gpt, config):
    pieces = []
    rows = generate(
        *gpt, PROMPTS, config, stream=lambda row, text: pieces.append((row, text)), decode=letters
    )
    assert rows == generate(*gpt, PROMPTS, config)
    for row, new in enumerate(rows):
        assert "".join(text for at, text in pieces if at == row) == letters(new)
    assert len(pieces) > len(PROMPTS)


def test_a_stop_string_ends_a_row_before_it(gpt):
    free = [letters(row) for row in generate(*gpt, PROMPTS, WARM)]
    stop = free[1][17:20]  # crosses no border of tokens here, but one of blocks of 16 it may
    config = Config(max_new_tokens=24, temperature=1.5, top_k=12, top_p=0.95, stop=(stop,))
    pieces = []
    rows = generate(
        *gpt, PROMPTS, config, stream=lambda row, text: pieces.append((row, text)), decode=letters
    )
    for row, (new, whole) in enumerate(zip(rows, free, strict=True)):
        want = whole.split(stop)[0]
        assert letters(new) == want
        assert "".join(text for at, text in pieces if at == row) == want
    assert len(rows[1]) <= 17


def test_one_program_serves_all_prompts_of_a_bucket(gpt):
    model, params = make(init_std=0.31)
    before = decode._begin._cache_size()
    for prompt, config in [([1], GREEDY), ([2] * 16, Config(max_new_tokens=9, temperature=0.0))]:
        generate(model, params, [prompt], config)
    assert decode._begin._cache_size() == before + 1


def test_mistakes_are_told_in_one_line(gpt):
    with pytest.raises(UserError, match=r"40 tokens.*30 new.*max_length=64.*max_new_tokens=24"):
        generate(*gpt, [[1] * 40], Config(max_new_tokens=30))
    with pytest.raises(UserError, match="prompt 1 is empty"):
        generate(*gpt, [[1], []], GREEDY)
    with pytest.raises(UserError, match=f"token {V}.*has {V}"):
        generate(*gpt, [[V]], GREEDY)
    for wrong in (
        dict(temperature=-1.0),
        dict(top_p=1.5),
        dict(max_new_tokens=0),
        dict(stop=("",)),
    ):
        with pytest.raises(UserError, match=rf"generate\.{next(iter(wrong))}"):
            Config(**wrong)


def test_the_padding_of_the_vocabulary_is_never_drawn(gpt):
    """Of 2 ids only these 2 are drawn, though the model knows more."""
    model, params = gpt
    hot = Config(max_new_tokens=20, temperature=5.0)
    rows = generate(model, params, [[1], [0]], hot, num_ids=2)
    assert {token for row in rows for token in row} <= {0, 1}


def test_an_empty_prompt_starts_from_bos_or_else_eos(gpt):
    want = generate(*gpt, [[4]], GREEDY)
    assert generate(*gpt, [[]], GREEDY, bos_id=4) == want
    eos = next(i for i in range(V) if i not in want[0])
    assert generate(*gpt, [[]], GREEDY, eos_ids=[eos]) == generate(
        *gpt, [[eos]], GREEDY, eos_ids=[eos]
    )


def test_detokenizer_prints_no_broken_characters():
    data = list("naïve → 🙂🙂!".encode())
    text = Detokenizer(lambda ids: bytes(ids).decode("utf-8", errors="replace"))
    pieces = [text.update(data[: n + 1]) for n in range(len(data))]
    pieces.append(text.update(data, last=True))
    assert "".join(pieces) == "naïve → 🙂🙂!" and "\ufffd" not in "".join(pieces)
    assert sum(map(bool, pieces)) > 8  # and holds nothing back that could be shown
    broken = Detokenizer(lambda ids: bytes(ids).decode("utf-8", errors="replace"))
    assert broken.update(data[:-2]) + broken.update(data[:-2], last=True) == "naïve → 🙂\ufffd"


def test_detokenizer_holds_back_what_may_begin_a_stop_string():
    text = Detokenizer("".join, ["END", "\n\n"])
    assert text.update(list("aE")) == "a"
    assert text.update(list("aEx\n")) == "Ex"
    assert text.update(list("aEx\ny\n")) == "\ny"
    assert text.update(list("aEx\ny\n\nz")) == "" and text.stopped
    assert "".join(text.ids) == "aEx\ny" == text.text


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="how XLA writes it on a CPU")
@pytest.mark.parametrize("rows", [1, 3])
def test_a_decode_step_copies_no_cache(rows):
    """Copying it at every token made twelve rows slower than one after the other."""
    model, params = make(positions="rope", num_kv_heads=2, max_length=96)
    matrices, S, H = 2 * rows, 96, 4

    @jax.jit
    def decode(params, cache, last):
        def step(_, state):
            cache, last = state
            out = model.apply(params, {"tokens": last}, cache=cache)
            logits = model.logits(params, out.hidden_BTD)
            return out.cache, jnp.argmax(logits, axis=-1).astype(jnp.int32)

        return jax.lax.fori_loop(0, 8, step, (cache, last))

    last = jnp.zeros((rows, 1), jnp.int32)
    lowered = decode.lower(model.unstack(params), model.init_cache(rows, S), last)
    text = lowered.compile().as_text()
    body = text.split("ENTRY")[0]  # before the loop the arguments may be copied, once
    for shape in (f"{matrices},{S},{H}", f"{matrices},{H},{S}"):
        assert f"f32[{shape}]" in body
        assert not re.findall(rf"= f32\[{shape}\]\S* (?:copy|transpose)\(", body)
