"""Log-probabilities: equal to one row at a time by hand, whatever the batch; perplexities."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.data.tokenizers import ByteTokenizer, CharTokenizer
from jaxformer.errors import UserError
from jaxformer.evaluate import likelihood, loglikelihoods, perplexity, rolling_loglikelihood
from jaxformer.evaluate.batching import batches_by_length, pad_rows, padded_length
from jaxformer.generate import Config, generate
from jaxformer.models import decoder, encoder, encoder_decoder

MAX = 48  # of the fixture's model


def draw_pairs(number, longest=MAX, seed=0):
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(number):
        n = int(rng.integers(1, longest))
        m = int(rng.integers(0, longest + 1 - n))
        ids = rng.integers(0, 262, n + m).tolist()
        pairs.append((ids[:n], ids[n:]))
    return pairs


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_equals_one_row_at_a_time_by_hand(speaker, batch_size):
    pairs = draw_pairs(13)
    found = loglikelihoods(speaker.model, speaker.params, pairs, batch_size)
    for (total, greedy), pair in zip(found, pairs, strict=True):
        want, want_greedy = speaker.by_hand(*pair)
        assert total == pytest.approx(want, rel=1e-5, abs=1e-5)
        assert greedy == want_greedy


def test_batch_mates_change_nothing(rope_speaker):
    model, params, _ = rope_speaker.all
    pairs = draw_pairs(20, seed=1)
    together = loglikelihoods(model, params, pairs, 8)
    shuffled = np.random.default_rng(2).permutation(len(pairs))
    again = loglikelihoods(model, params, [pairs[i] for i in shuffled], 5)
    for place, index in enumerate(shuffled):
        assert again[place][0] == pytest.approx(together[index][0], rel=1e-5, abs=1e-5)


def test_chunks_of_logits_change_nothing(speaker, monkeypatch):
    pairs = draw_pairs(6, seed=3)
    want = loglikelihoods(speaker.model, speaker.params, pairs, 4)
    monkeypatch.setattr(likelihood, "_LOGITS", 16 * 262)
    found = loglikelihoods(speaker.model, speaker.params, pairs, 4)
    np.testing.assert_allclose([t for t, _ in found], [t for t, _ in want], rtol=1e-5)


def test_what_the_model_writes_greedily_is_greedy(speaker):
    prompt = [72, 101, 108]
    [new] = generate(*speaker.all[:2], [prompt], Config(max_new_tokens=9, temperature=0.0))
    other = [*new[:4], (new[4] + 1) % 262, *new[5:]]
    pairs = [(prompt, new), (prompt, other), (prompt, [])]
    greedy = [best for _, best in loglikelihoods(*speaker.all[:2], pairs)]
    assert greedy == [True, False, True]


def test_a_long_context_loses_its_left(speaker):
    rng = np.random.default_rng(4)
    context, continuation = rng.integers(0, 262, 200).tolist(), [5, 6, 7]
    [(total, _)] = loglikelihoods(*speaker.all[:2], [(context, continuation)])
    kept = context[-(MAX + 1 - 3) :]
    assert total == pytest.approx(speaker.by_hand(kept, continuation)[0], rel=1e-5)
    [(shorter, _)] = loglikelihoods(*speaker.all[:2], [(context, continuation)], max_length=10)
    assert shorter == pytest.approx(speaker.by_hand(context[-8:], continuation)[0], rel=1e-5)


def test_a_continuation_longer_than_the_model_reads_is_scored_whole(speaker):
    ids = np.random.default_rng(5).integers(0, 262, 2 * MAX + 10).tolist()
    [(total, _)] = loglikelihoods(*speaker.all[:2], [([7], ids)])
    want = speaker.by_hand([7], ids[:MAX])[0]
    want += speaker.by_hand(ids[MAX - 1 : MAX], ids[MAX : 2 * MAX])[0]
    want += speaker.by_hand(ids[MAX + 9 : 2 * MAX], ids[2 * MAX :])[0]  # with all that fits
    assert total == pytest.approx(want, rel=1e-5)


def test_few_programs_for_many_lengths(speaker):
    likelihood._hidden.clear_cache()
    loglikelihoods(*speaker.all[:2], draw_pairs(60, seed=6), 16)
    # Three lengths (16, 32, 48), each with full batches and at most one that is not.
    assert likelihood._hidden._cache_size() <= 6


@pytest.mark.parametrize("stride", [1, 7, MAX])
def test_rolling_scores_each_token_once_after_what_fits(speaker, stride):
    ids = np.random.default_rng(7).integers(0, 262, 100).tolist()
    total = rolling_loglikelihood(*speaker.all[:2], ids, [261], stride=stride)
    text, want, done = [261, *ids], 0.0, 1
    while done < len(text):
        end = min(len(text), MAX + 1 if done == 1 else done + stride)
        seen = max(0, end - 1 - MAX)
        want += speaker.by_hand(text[seen:done], text[done:end])[0]
        done = end
    assert total == pytest.approx(want, rel=1e-5)


def test_rolling_equals_the_windows_of_lm_eval(speaker):
    utils = pytest.importorskip("lm_eval.utils")
    ids = np.random.default_rng(8).integers(0, 262, 117).tolist()
    windows = utils.get_rolling_token_windows(ids, 261, MAX, 1)
    pairs = [utils.make_disjoint_window(window) for window in windows]
    want = sum(speaker.by_hand(*pair)[0] for pair in pairs)
    total = rolling_loglikelihood(*speaker.all[:2], ids, [261], stride=MAX)
    assert total == pytest.approx(want, rel=1e-5)


def test_more_context_by_a_smaller_stride_is_what_each_token_sees():
    """A model that copies from far back is sure only where its window reaches far enough."""
    windows = list(likelihood.windows_of(0, [9], list(range(30)), 10, 4))
    assert [(len(w.tokens) - 1, w.scored) for w in windows] == [(10, 10)] + [(10, 4)] * 5
    assert np.concatenate([w.tokens[-w.scored :] for w in windows]).tolist() == list(range(30))


def zeros(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)


def test_perplexity_of_a_uniform_model_is_its_vocabulary():
    tokenizer = ByteTokenizer()
    model = decoder.make(
        decoder.Config(vocab_size=262, num_layers=1, width=8, num_heads=2, max_length=16)
    )
    params = zeros(model)
    text = "ein schöner Tag\n zwei Tage"
    found = perplexity(model, params, tokenizer, text)
    num_bytes = len(text.encode())
    assert found["perplexity"] == pytest.approx(262, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(math.log2(262), rel=1e-5)
    assert found["word_perplexity"] == pytest.approx(262 ** (num_bytes / 5), rel=1e-4)
    assert (found["tokens"], found["words"], found["bytes"]) == (num_bytes, 5, num_bytes)
    # The same nats a byte of the text, though here a token is a character.
    characters = CharTokenizer("".join(sorted(set(text))), with_specials=True)
    V = characters.vocab_size
    small = decoder.make(model.config.__class__(**{**vars(model.config), "vocab_size": V}))
    other = perplexity(small, zeros(small), characters, text)
    assert other["tokens"] == len(text) and other["bytes"] == num_bytes
    assert other["bits_per_byte"] == pytest.approx(math.log2(V) * len(text) / num_bytes, rel=1e-5)


def test_perplexity_adds_up_to_the_likelihood(speaker):
    text = "the quick brown fox jumps over the lazy dog, and again over the lazy dog"
    ids = speaker.tokenizer.encode(text)
    found = perplexity(*speaker.all, text, 5)
    total = rolling_loglikelihood(*speaker.all[:2], ids, [261], stride=5)
    assert found["loss"] * len(ids) == pytest.approx(-total)
    assert math.log(found["word_perplexity"]) * 15 == pytest.approx(-total)
    assert found["bits_per_byte"] * len(text) * math.log(2) == pytest.approx(-total)


def test_perplexity_without_a_token_to_begin_after():
    """The first character is context only; neither it nor its byte is counted."""
    tokenizer = CharTokenizer("abc ")
    model = decoder.make(
        decoder.Config(vocab_size=4, num_layers=1, width=8, num_heads=2, max_length=16)
    )
    params = jax.jit(model.init)(jax.random.key(0))
    found = perplexity(model, params, tokenizer, "abc cab")
    assert (found["tokens"], found["bytes"], found["words"]) == (6, 6, 2)
    total = rolling_loglikelihood(model, params, tokenizer.encode("bc cab"), [0])
    assert found["loss"] == pytest.approx(-total / 6)


def test_unknown_tokens_are_told(speaker):
    tokenizer = CharTokenizer("abc ", with_specials=True)
    assert perplexity(*speaker.all[:2], tokenizer, "ab? c")["unknown"] == 1


class Merging(ByteTokenizer):
    """Bytes, but that "xy" is one token, as in a BPE vocabulary."""

    def encode_plain(self, texts):
        found = []
        for text in texts:
            ids = text.replace("xy", "\x01").encode()
            found.append(np.frombuffer(ids, np.uint8).astype(np.int32))
        return found


def test_encode_pair():
    tokenizer = ByteTokenizer()
    assert likelihood.encode_pair(tokenizer, "ab", " c") == ([97, 98], [32, 99])
    assert likelihood.encode_pair(tokenizer, "ab  ", "c") == ([97, 98], [32, 32, 99])
    assert likelihood.encode_pair(tokenizer, "", "c") == ([261], [99])
    assert likelihood.encode_pair(tokenizer, " ", "c") == ([261], [32, 99])
    assert likelihood.encode_pair(tokenizer, "a", "c", add_bos=True) == ([261, 97], [99])
    # A token across the border would put the context's end into what is scored.
    assert likelihood.encode_pair(Merging(), "ax", "yb") == ([97, 120], [121, 98])
    assert likelihood.encode_pair(Merging(), "a", "xyb") == ([97], [1, 98])
    with pytest.raises(UserError, match="no BOS or EOS"):
        likelihood.encode_pair(CharTokenizer("abc"), "", "c")


def test_mistakes_are_told_in_one_line(speaker):
    model, params = speaker.all[:2]
    for pairs, options, words in [
        ([([1], [2]), ([], [2])], {}, "pair 1 has an empty context"),
        ([([1], [2, 262])], {}, "pair 0 holds token 262"),
        ([([-1], [2])], {}, "pair 0 holds token -1"),
        ([([1], [2])], {"max_length": 49}, "max_length is 49; this model reads 1 to 48"),
        ([([1], [2])], {"stride": 60}, "stride is 60"),
    ]:
        with pytest.raises(UserError, match=words) as caught:
            loglikelihoods(model, params, pairs, **options)
        assert "\n" not in str(caught.value)
    sizes = dict(vocab_size=20, num_layers=1, width=8, num_heads=2)
    for family in (encoder, encoder_decoder):
        other = family.make(family.Config(**sizes))
        with pytest.raises(UserError, match="use a decoder"):
            loglikelihoods(other, None, [([1], [2])])
    with pytest.raises(UserError, match="no word to score"):
        perplexity(*speaker.all, "  ")


def test_batches_hold_every_row_once_in_few_shapes():
    lengths = np.random.default_rng(0).integers(0, 300, 500).tolist()
    seen, shapes = [], set()
    for length, chosen in batches_by_length(lengths, 16, 300):
        assert 1 <= len(chosen) <= 16 and max(lengths[i] for i in chosen) <= length <= 300
        seen += chosen
        shapes.add(pad_rows([[1] * lengths[i] for i in chosen], length, 16)[0].shape)
    assert sorted(seen) == list(range(500))
    assert {length for _, length in shapes} == {16, 32, 64, 128, 256, 300}
    assert len(shapes) <= 12
    assert padded_length(5, 7) == 7 and padded_length(129, 1000) == 256
    # 12 rows are as many as fit, though the next power of 2 is 16.
    assert pad_rows([[1]] * 9, 16, 12)[0].shape == (12, 16)
