"""Beam search against transformers' and against all texts there are; rules; sources."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.generate import Config, generate
from jaxformer.generate.logits import Rules, obey
from jaxformer.models import decoder, encoder_decoder

V, EOS = 11, 1
PROMPTS = [[3, 4, 5], [6, 2, 8, 9, 7], [2]]


@pytest.fixture(scope="module")
def gpt():
    config = decoder.Config(
        vocab_size=V, num_layers=2, width=16, num_heads=4, max_length=64, init_std=0.5
    )
    model = decoder.make(config)
    return model, model.init(jax.random.key(1))


@pytest.fixture(scope="module")
def translator():
    config = encoder_decoder.Config(
        vocab_size=V, num_layers=2, width=16, num_heads=4, max_length=64, start_id=0,
        init="normal", init_std=0.6,
    )  # fmt: skip
    model = encoder_decoder.make(config)
    return model, model.init(jax.random.key(2))


@functools.partial(jax.jit, static_argnums=0)
def log_probs(model, params, batch):
    return jax.nn.log_softmax(model.logits(params, model.apply(params, batch).hidden_BTD))


def scores(made, sources, texts):
    """The log-likelihood of each text after its source (of one length) or its prompt."""
    model, params = made
    texts = np.asarray(texts)
    if model.encode is None:
        tokens = np.concatenate([np.asarray(sources), texts], axis=1)
        found = log_probs(model, params, {"tokens": tokens})[:, len(sources[0]) - 1 : -1]
    else:
        tokens = np.pad(texts, ((0, 0), (1, 0)))[:, :-1]
        found = log_probs(model, params, {"source": np.asarray(sources), "tokens": tokens})
    return np.take_along_axis(np.asarray(found), texts[..., None], axis=2).sum(axis=(1, 2))


def test_enough_beams_find_the_best_of_all_texts(gpt):
    """11 ** 2 texts of two tokens; as many beams as first tokens find the best."""
    found = generate(*gpt, PROMPTS, Config(max_new_tokens=2, num_beams=V))
    every = [list(pair) for pair in itertools.product(range(V), repeat=2)]
    for prompt, text in zip(PROMPTS, found, strict=True):
        assert text == every[int(np.argmax(scores(gpt, [prompt] * len(every), every)))]


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("early", [False, True])
def test_equal_to_transformers(gpt, penalty, early):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=64, n_embd=16, n_layer=2, n_head=4, bos_token_id=None,
        eos_token_id=EOS, pad_token_id=0,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    weights = dict(theirs.named_parameters())
    params = gpt[1]
    layers = params["layers"]

    def put(name, value):
        weights[name].data = torch.tensor(np.asarray(value)).reshape(weights[name].shape)

    put("transformer.wte.weight", params["embed"]["tokens"])
    put("transformer.wpe.weight", params["embed"]["positions"])
    for i in range(2):
        at = f"transformer.h.{i}."
        attention, feed = layers["attention"], layers["feed_forward"]
        qkv = np.concatenate([np.asarray(attention[n][i]).reshape(16, 16) for n in "qkv"], axis=1)
        put(at + "attn.c_attn.weight", qkv)
        put(at + "attn.c_proj.weight", attention["out"][i])
        put(at + "mlp.c_fc.weight", feed["in"][i])
        put(at + "mlp.c_proj.weight", feed["out"][i])
    for prompt in PROMPTS:
        expected = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=12, num_beams=3, do_sample=False,
            length_penalty=penalty, early_stopping=early, attention_mask=torch.ones(1, len(prompt)),
        )[0, len(prompt) :].tolist()  # fmt: skip
        expected = expected[: expected.index(EOS)] if EOS in expected else expected
        settings = Config(
            max_new_tokens=12, num_beams=3, length_penalty=penalty, early_stopping=early
        )
        assert generate(*gpt, [prompt], settings, eos_ids=[EOS]) == [expected]


def test_batch_mates_change_nothing(gpt, translator):
    for made in (gpt, translator):
        settings = Config(max_new_tokens=9, num_beams=3, length_penalty=0.6)
        together = generate(*made, PROMPTS, settings, eos_ids=[EOS])
        alone = [generate(*made, [prompt], settings, eos_ids=[EOS])[0] for prompt in PROMPTS]
        assert together == alone


def test_one_compile_serves_all_lengths(gpt):
    from jaxformer.generate import beam

    settings = [Config(max_new_tokens=n, num_beams=2) for n in (3, 9)]
    generate(*gpt, PROMPTS, settings[0])
    before = beam._search._cache_size()
    generate(*gpt, PROMPTS, settings[1])
    assert beam._search._cache_size() == before


def test_a_better_text_than_the_greedy_one(translator):
    """The search's result is at least as likely as the greedy text, and sometimes more."""
    sources = np.random.default_rng(0).integers(2, V, (16, 5)).tolist()
    greedy = generate(*translator, sources, Config(max_new_tokens=6, temperature=0.0))
    best = generate(*translator, sources, Config(max_new_tokens=6, num_beams=6))
    gains = scores(translator, sources, best) - scores(translator, sources, greedy)
    assert gains.min() > -1e-5 and gains.max() > 1e-3


def test_decoding_a_source_equals_the_forward_pass(translator):
    texts = generate(*translator, PROMPTS, Config(max_new_tokens=9, temperature=0.0))
    for source, text in zip(PROMPTS, texts, strict=True):
        batch = {"source": np.asarray([source]), "tokens": np.asarray([[0, *text[:-1]]])}
        assert text == log_probs(*translator, batch)[0].argmax(axis=-1).tolist()


def test_rules():
    logits = jnp.zeros((2, V))
    tokens = jnp.asarray([[3, 4, 3, 0, 0], [5, 5, 5, 0, 0]])
    stops = jnp.asarray([EOS, -1])

    def forbidden(step, **rules):
        out = obey(Rules(**({"num_ids": V} | rules)), logits, tokens, jnp.int32(step), stops)
        return [np.flatnonzero(np.isinf(row)).tolist() for row in out]

    assert forbidden(3, num_ids=9) == [[9, 10], [9, 10]]
    assert forbidden(3, suppress_ids=(0, 7)) == [[0, 7], [0, 7]]
    assert forbidden(3, min_new_tokens=4) == [[EOS], [EOS]]
    assert forbidden(4, min_new_tokens=4) == [[], []]
    assert forbidden(3, no_repeat_ngram=2) == [[4], [5]]  # 3 4 was there, 5 5 too
    assert forbidden(3, no_repeat_ngram=1) == [[3, 4], [5]]
    assert forbidden(3, no_repeat_ngram=3) == [[], [5]]
    assert forbidden(0, no_repeat_ngram=2) == [[], []]
    others = [token for token in range(V) if token != 4]
    assert forbidden(0, first_id=4) == [others, others]
    assert forbidden(1, first_id=4) == [[], []]


def test_the_first_token_is_given(translator):
    """It is the first of every row, costs a search nothing, and the rest follows from it."""
    for beams in (1, 3):
        settings = Config(max_new_tokens=6, temperature=0.0, num_beams=beams, length_penalty=0.0)
        free = generate(*translator, PROMPTS, settings)
        first = next(token for token in range(2, V) if token not in {text[0] for text in free})
        given = generate(*translator, PROMPTS, settings, first_id=first)
        assert all(text[0] == first for text in given)
        if beams == 1:
            for source, text in zip(PROMPTS, given, strict=True):
                batch = {"source": np.asarray([source]), "tokens": np.asarray([[0, *text[:-1]]])}
                best = log_probs(*translator, batch)[0].argmax(axis=-1).tolist()
                assert text[1:] == best[1:]


def test_bad_input(translator):
    with pytest.raises(UserError, match="num_beams is 0"):
        Config(num_beams=0)
    with pytest.raises(UserError, match="stop holds a string"):
        Config(num_beams=2, stop=("x",))
    with pytest.raises(UserError, match="source 0 has 65 tokens"):
        generate(*translator, [[2] * 65], Config(max_new_tokens=2))
