"""Traps of the 2017 Transformer, Marian, BART and T5; see traps.py."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import ops
from jaxformer.models import encoder_decoder
from jaxformer.modules import stack
from jaxformer.modules.block import Block
from tests.parity.case import LOGITS, array, randomise, relative
from tests.parity.traps import (
    TARGET,
    TOKENS,
    Subject,
    Trap,
    V,
    edit,
    edits,
    fresh_norm,
    hold,
    published,
    shrunk,
)

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.slow  # together nearly a minute

D, N, F, L = 16, 4, 24, 2
_PAIR = dict(
    vocab_size=V, d_model=D, encoder_layers=L, decoder_layers=L, encoder_attention_heads=N,
    decoder_attention_heads=N, encoder_ffn_dim=F, decoder_ffn_dim=F, max_position_embeddings=20,
    eos_token_id=2, bos_token_id=None, forced_eos_token_id=None, decoder_start_token_id=0,
)  # fmt: skip
_T5 = dict(
    vocab_size=V, d_model=D, d_kv=4, d_ff=F, num_layers=L, num_heads=N, eos_token_id=1,
    decoder_start_token_id=0, relative_attention_num_buckets=8, relative_attention_max_distance=6,
)  # fmt: skip
_T5_1_1 = dict(_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
BATCH = {"source": TOKENS, "tokens": TARGET}


def both(model, tokens):
    import torch

    return model(tokens, decoder_input_ids=torch.tensor(TARGET).long()).logits


def pair(cls: str, config: str, **keys) -> Subject:
    return published(cls, config, **{"scale": 0.3, **keys}, ask=both, batch=BATCH)


def with_logit_bias(model):
    import torch

    model.final_logits_bias += torch.randn(1, V)  # a buffer, and zeros where nobody trained it


def untied(model):
    import torch

    model.lm_head.weight = torch.nn.Parameter(torch.randn(V, D))


def gates_in_the_tail(model):
    """As `in_the_tail`, where there are no biases: a channel of the stream stands for one."""
    untied(model)
    model.shared.weight[:, 0] = 10.0
    for name, parameter in model.named_parameters():
        if name.endswith("wi_0.weight"):
            parameter[:, 0] = -0.65
        if name.endswith("DenseReluDense.wo.weight"):
            parameter *= 30.0


@functools.cache
def torch_transformer(final_norm: bool) -> tuple[np.ndarray, dict]:
    """The logits of torch.nn.Transformer between the paper's embedding and head, and its weights.

    Args:
      final_norm: with the norms that it adds to the end of both stacks.
    """
    import torch

    torch.manual_seed(0)
    body = torch.nn.Transformer(D, N, L, L, F, dropout=0.0, batch_first=True)
    table = torch.randn(V, D)
    randomise(body)
    angles = np.arange(9)[:, None] / 10000.0 ** (np.arange(0, D, 2) / D)
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(9, D)
    waves = torch.tensor(waves, dtype=torch.float32)  # sine, cosine, sine, ... (section 3.5)
    weights = {name: array(p) for name, p in body.named_parameters()}
    if not final_norm:
        body.encoder.norm = body.decoder.norm = None
    source, target = (table[torch.tensor(x).long()] * D**0.5 for x in (TOKENS, TARGET))
    causal = torch.nn.Transformer.generate_square_subsequent_mask(9)
    with torch.no_grad():
        out = body(source + waves, target + waves, tgt_mask=causal, tgt_is_causal=True)
    return array(out @ table.T), {**weights, "table": array(table)}


def vaswani() -> Subject:
    expected, weights = torch_transformer(final_norm=False)

    def attention(at: str) -> dict[str, np.ndarray]:
        ours = {"out": weights[f"{at}.out_proj.weight"].T.reshape(N, D // N, D),
                "out_bias": weights[f"{at}.out_proj.bias"]}  # fmt: skip
        three = np.split(weights[f"{at}.in_proj_weight"], 3)
        biases = np.split(weights[f"{at}.in_proj_bias"], 3)
        for name, w, b in zip("qkv", three, biases, strict=True):
            ours[name], ours[f"{name}_bias"] = w.T.reshape(D, N, -1), b.reshape(N, -1)
        return ours

    def layers(side: str, parts: tuple[str, ...]) -> dict:
        found = []
        for i in range(L):
            at = f"{side}.layers.{i}"
            layer = {parts[0]: attention(f"{at}.self_attn"), "feed_forward": {
                "in": weights[f"{at}.linear1.weight"].T, "in_bias": weights[f"{at}.linear1.bias"],
                "out": weights[f"{at}.linear2.weight"].T, "out_bias": weights[f"{at}.linear2.bias"],
            }}  # fmt: skip
            if len(parts) > 2:
                layer[parts[1]] = attention(f"{at}.multihead_attn")
            for number, part in enumerate(parts, 1):
                norm = {"scale": weights[f"{at}.norm{number}.weight"],
                        "bias": weights[f"{at}.norm{number}.bias"]}  # fmt: skip
                layer[f"{part}_norm"] = norm
            found.append(layer)
        return jax.tree.map(lambda *leaves: np.stack(leaves), *found)

    parts = ("attention", "cross_attention", "feed_forward")
    params = {
        "embed": {"tokens": weights["table"]},
        "encoder": {"layers": layers("encoder", parts[::2])},
        "decoder": {"layers": layers("decoder", parts)},
    }
    # Sizes aside, the defaults of our Config are the paper's model.
    config = encoder_decoder.Config(
        vocab_size=V, num_layers=L, width=D, num_heads=N, feed_forward=F, start_id=0
    )
    return Subject(expected, config, params, {name: jnp.asarray(x) for name, x in BATCH.items()})


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "Transformer": vaswani,
    "Marian": lambda: pair("MarianMTModel", "MarianConfig", **_PAIR, scale_embedding=True,
                           prepare=with_logit_bias),
    "BART": lambda: pair("BartForConditionalGeneration", "BartConfig",
                         **{**_PAIR, "pad_token_id": 1}, prepare=with_logit_bias),
    "BART, small variance": lambda: pair(
        "BartForConditionalGeneration", "BartConfig", **{**_PAIR, "pad_token_id": 1}, scale=0.1,
        prepare=shrunk,
    ),
    "T5": lambda: pair("T5ForConditionalGeneration", "T5Config", **_T5),
    "T5, small variance": lambda: pair(
        "T5ForConditionalGeneration", "T5Config", **_T5, scale=0.1, prepare=shrunk
    ),
    "T5 1.1": lambda: pair("T5ForConditionalGeneration", "T5Config", **_T5_1_1, prepare=untied),
    "T5 1.1, GELU": lambda: pair(
        "T5ForConditionalGeneration", "T5Config", **_T5_1_1, scale=0.1, prepare=gates_in_the_tail
    ),
}  # fmt: skip
subject = functools.cache(lambda name: SUBJECTS[name]())

FRESH_NORMS = edits(fresh_norm("encoder/final_norm", D), fresh_norm("decoder/final_norm", D))


def bias_of_first_layer_only(true, block, params, x, *, bias=None, **given):
    """Runs the first layer with the bias of distances and the others without."""
    alone = Block(dataclasses.replace(block.config, num_layers=1), cross=block.cross)
    rest = Block(dataclasses.replace(block.config, num_layers=L - 1), cross=block.cross)
    first = jax.tree.map(lambda leaf: leaf[:1], params)
    others = jax.tree.map(lambda leaf: leaf[1:], params)
    x = true(alone, first, x, bias=bias, **given).x_BTD
    return true(rest, others, x, **given)


def one_way(true, *args, bidirectional, **keys):
    return true(*args, bidirectional=False, **keys)


def both_ways(true, *args, bidirectional, **keys):
    return true(*args, bidirectional=True, **keys)


TRAPS = [
    Trap("Transformer", "norms before the sublayers", "Transformer", {"norm_position": "pre"},
         FRESH_NORMS),
    Trap("Transformer", "sines before cosines", "Transformer", {"positions": "sinusoidal"}),
    Trap("Transformer", "embeddings as they are", "Transformer", {"embed_scale": False}),
    Trap("Transformer", "a source's table of its own", "Transformer", {"share_embeddings": False},
         edit("encoder/embed/tokens", lambda _: np.random.default_rng(0).normal(size=(V, D)))),
    Trap("Transformer", "a head's table of its own", "Transformer", {"tie_embeddings": False},
         edit("head/table", lambda _: np.random.default_rng(0).normal(size=(V, D)))),
    Trap("Marian", "sines and cosines in turn", "Marian", {"positions": "sinusoidal_interleaved"}),
    Trap("Marian", "embeddings as they are", "Marian", {"embed_scale": False}),
    Trap("Marian", "norms before the sublayers", "Marian", {"norm_position": "pre"}, FRESH_NORMS),
    Trap("Marian", "no bias of the logits", "Marian", params=edit("head/bias", np.zeros_like)),
    Trap("BART", "positions from row 0", "BART", {"position_offset": 0, "max_length": 22}),
    Trap("BART", "norms before the sublayers", "BART", {"norm_position": "pre"}, FRESH_NORMS),
    Trap("BART", "no bias of the logits", "BART", params=edit("head/bias", np.zeros_like)),
    Trap("BART", "no norm of the embedding", "BART", {"embed_norm": False}),
    Trap("BART", "embeddings scaled", "BART", {"embed_scale": True}),
    Trap("BART", "epsilon 1e-12", "BART, small variance", {"norm_epsilon": 1e-12}),
    Trap("T5", "attention scaled", "T5", {"attention_scale": 0.0}),
    Trap("T5", "distances in the first layer only", "T5",
         patch=(stack, "apply", bias_of_first_layer_only)),
    Trap("T5", "an encoder's buckets of one way", "T5",
         patch=(ops, "t5_relative_bias", one_way)),
    Trap("T5", "a decoder's buckets of two ways", "T5",
         patch=(ops, "t5_relative_bias", both_ways)),
    Trap("T5", "norms that take the mean off", "T5",
         {"norm": "layer_norm", "norm_bias": False}),
    Trap("T5", "tied logits as they are", "T5", {"logit_scale": 0.0}),
    Trap("T5", "embeddings scaled", "T5", {"embed_scale": True}),
    Trap("T5", "epsilon 1e-5", "T5, small variance", {"norm_epsilon": 1e-5}),
    Trap("T5 1.1", "logits scaled though not tied", "T5 1.1", {"logit_scale": D**-0.5}),
    Trap("T5 1.1", "a tied head", "T5 1.1", {"tie_embeddings": True}),
    Trap("T5 1.1", "exact GELU, as its config says", "T5 1.1, GELU",
         {"activation": "gelu"}),
]  # fmt: skip


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.id)
def test_trap(trap):
    hold(trap, subject(trap.subject))


def test_torchs_transformer_ends_in_norms_that_the_paper_lacks():
    plain, normed = torch_transformer(False)[0], torch_transformer(True)[0]
    assert subject("Transformer").right <= LOGITS
    assert relative(plain, normed) > 100 * LOGITS
