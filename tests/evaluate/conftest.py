"""A tiny language model over bytes, far from uniform, and its log-probabilities by hand."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from jaxformer.data.tokenizers import ByteTokenizer
from jaxformer.models import decoder

MAX_LENGTH = 48


@functools.partial(jax.jit, static_argnums=0)
def _log_probabilities(model, params, tokens_BT):
    logits_BTV = model.logits(params, model.apply(params, {"tokens": tokens_BT}).hidden_BTD)
    return jax.nn.log_softmax(logits_BTV)


class Speaker:
    """A model, its parameters and its tokenizer."""

    def __init__(self, **options):
        self.tokenizer = ByteTokenizer()
        config = decoder.Config(
            vocab_size=self.tokenizer.vocab_size, num_layers=2, width=16, num_heads=4,
            max_length=MAX_LENGTH, init_std=0.4, **options,
        )  # fmt: skip
        self.model = decoder.make(config)
        self.params = jax.jit(self.model.init)(jax.random.key(0))
        self.all = (self.model, self.params, self.tokenizer)

    def by_hand(self, context, continuation):
        """(log-probability, greedy) of one pair alone, without padding that a token could see."""
        ids = [*context, *continuation]
        tokens_BT = np.zeros((1, MAX_LENGTH), np.int32)  # padded on the right: nobody sees it
        tokens_BT[0, : len(ids) - 1] = ids[:-1]
        logp_TV = np.asarray(_log_probabilities(self.model, self.params, tokens_BT))[0]
        places = range(len(context) - 1, len(ids) - 1)
        total = sum(float(logp_TV[t, ids[t + 1]]) for t in places)
        return total, all(logp_TV[t].argmax() == ids[t + 1] for t in places)


@pytest.fixture(scope="session")
def speaker():
    return Speaker()


@pytest.fixture(scope="session")
def rope_speaker():
    return Speaker(positions="rope", num_kv_heads=2, bias=False, tie_embeddings=False)
