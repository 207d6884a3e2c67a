"""Rows of the ledger: encoder-decoders, which translate."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.parity.case import Case
from tests.parity.published import V, case

_PAIR = dict(
    vocab_size=V, d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=40, decoder_ffn_dim=40, max_position_embeddings=40,
    eos_token_id=2, bos_token_id=None, forced_eos_token_id=None, decoder_start_token_id=0,
)  # fmt: skip
_T5 = dict(
    vocab_size=V, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4, eos_token_id=1,
    decoder_start_token_id=0,
)  # fmt: skip


def paper(**given: Any) -> Case:
    """Returns the case of the 2017 Transformer: Marian's class with the paper's table of waves."""
    name = given.pop("name")
    sizes = dict(scale_embedding=True, activation_function="relu")
    marian = case("Transformer 2017", name, "MarianMTModel", "MarianConfig",
                  {**_PAIR, **sizes, **given})  # fmt: skip

    def make() -> Any:
        import torch

        model = marian.make()
        for side in (model.model.encoder, model.model.decoder):
            table = side.embed_positions.weight
            P, D = table.shape
            angle = np.arange(P)[:, None] / 10000 ** (np.arange(0, D, 2) / D)
            # Vaswani 2017, section 3.5: sine in the even channels, cosine in the odd ones.
            waves = np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(P, D)
            table.data.copy_(torch.tensor(waves))
        return model

    return Case(
        marian.family, name, make, kind="seq2seq", eos_id=2,
        changes={"positions": "sinusoidal_interleaved"},
        quirk="Marian's class with the paper's waves in its table; no class has them of itself, so "
        "none is written",
    )  # fmt: skip


SEQ2SEQ = [
    paper(name="four heads"),
    paper(name="deeper encoder, two heads", encoder_layers=3, decoder_layers=1,
          encoder_attention_heads=2, decoder_attention_heads=2),
    paper(name="the base's ratios: eight heads, 4 D", d_model=32, encoder_ffn_dim=128,
          decoder_ffn_dim=128, encoder_layers=3, decoder_layers=3, encoder_attention_heads=8,
          decoder_attention_heads=8),
    *(
        case("Marian", name, "MarianMTModel", "MarianConfig",
             {**_PAIR, "scale_embedding": True, "activation_function": "swish", **changes},
             kind="seq2seq", eos_id=2)
        for name, changes in (
            ("small", {}),
            ("deeper encoder, two heads", dict(
                encoder_layers=3, decoder_layers=1, encoder_attention_heads=2,
                decoder_attention_heads=2)),
            ("own vocabularies", dict(
                share_encoder_decoder_embeddings=False, decoder_vocab_size=53,
                scale_embedding=False, activation_function="gelu")),
        )
    ),
    *(
        case("BART", name, "BartForConditionalGeneration", "BartConfig",
             {**_PAIR, "pad_token_id": 1, "decoder_start_token_id": 3, **changes},
             kind="seq2seq", pad_id=1, eos_id=2)
        for name, changes in (
            ("small", {}),
            ("scaled embedding, deeper decoder", dict(scale_embedding=True, decoder_layers=3)),
            ("relu, three heads", dict(
                activation_function="relu", encoder_attention_heads=3, decoder_attention_heads=3)),
        )
    ),
    *(
        case(family, name, "T5ForConditionalGeneration", "T5Config", {**_T5, **changes},
             kind="seq2seq", eos_id=1, untie=family == "T5 1.1",
             quirk="ties the head at its making" if family == "T5 1.1" else
             "cannot generate with more decoder than encoder layers")
        for family, name, changes in (
            ("T5", "small", {}),
            ("T5", "wide heads, few buckets", dict(
                d_kv=10, relative_attention_num_buckets=8, relative_attention_max_distance=10)),
            ("T5", "shallower decoder", dict(num_decoder_layers=1, num_heads=3, d_kv=8)),
            ("T5 1.1", "gated, untied", dict(
                feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
            ("T5 1.1", "three heads", dict(
                feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_heads=3)),
            ("T5 1.1", "gated silu, one layer", dict(
                feed_forward_proj="gated-silu", tie_word_embeddings=False, num_layers=1,
                num_decoder_layers=1)),
        )
    ),
]  # fmt: skip
