"""Rows of the ledger whose oracle is a torch module of ours: transformers 5 has none.

Transformer-XL's left transformers with version 5; recurrent models never were there.
"""

from __future__ import annotations

import functools
from typing import Any

from tests.parity.case import Case, randomise

V = 71
XL = dict(
    model_type="transfo-xl", vocab_size=V, cutoffs=[], d_model=24, d_embed=24, n_head=3, d_head=8,
    d_inner=40, div_val=1, n_layer=2, mem_len=6, clamp_len=-1, same_length=False, untie_r=True,
    tie_projs=[False], pre_lnorm=False, tie_word_embeddings=True,
)  # fmt: skip
XL_CASES: dict[str, dict[str, Any]] = {
    "own biases": {},
    "shared biases, same length, clamped": dict(untie_r=False, same_length=True, clamp_len=4),
    "pre-norm, narrow embedding, odd heads": dict(
        pre_lnorm=True, n_head=2, d_head=5, d_embed=20, n_layer=3
    ),
    "adaptive softmax": dict(
        vocab_size=17, cutoffs=[5, 11], div_val=2, d_embed=32, tie_projs=[False, True, True]
    ),
    "adaptive softmax, nothing shared": dict(
        vocab_size=17, cutoffs=[5, 9, 13], div_val=2, tie_projs=[False] * 4,
        tie_word_embeddings=False, untie_r=False,
    ),
    "clusters of one width": dict(
        vocab_size=19, cutoffs=[8], d_embed=16, tie_projs=[False, True], mem_len=0
    ),
}  # fmt: skip
RNN = dict(
    model_type="rnn-seq2seq", cell="lstm", vocab_size=V, embedding_size=12, hidden_size=12,
    num_layers=2, max_length=64, bidirectional=True, attention="luong", input_feeding=True,
    tie_word_embeddings=True, share_embeddings=True, output_bias=False, decoder_start_token_id=2,
    dropout=0.0,
)  # fmt: skip
_UNTIED = dict(tie_word_embeddings=False, embedding_size=10)
_BAHDANAU: dict[str, Any] = dict(attention="bahdanau", attention_size=7)
RNN_CASES: dict[str, dict[str, Any]] = {
    "LSTM, Luong": {},
    "LSTM, Luong, no input feeding": dict(input_feeding=False, **_UNTIED),
    "LSTM, Bahdanau, two vocabularies": dict(
        share_embeddings=False, source_vocab_size=V, output_bias=True, **_BAHDANAU
    ),
    "GRU, Luong, one direction": dict(
        cell="gru", bidirectional=False, num_layers=3, output_bias=True
    ),
    "GRU, Luong, no input feeding": dict(cell="gru", input_feeding=False, num_layers=1),
    "GRU, Bahdanau": dict(cell="gru", num_layers=1, **_BAHDANAU, **_UNTIED),
}


def transformer_xl(**changes: Any) -> Any:
    """Returns the torch module with random weights."""
    import torch

    from tests.parity.torch_transformer_xl import TransformerXL

    torch.manual_seed(0)
    return randomise(TransformerXL(**{**XL, **changes}))


def by_memory(model: Any, ids: list[int], first: int) -> Any:
    """Returns the logits of what comes after ids[: first], ids[: first + 1], ... and ids."""
    import torch

    return torch.stack(list(model.following(ids, first)))


def recurrent(**changes: Any) -> Any:
    """Returns the torch module with random weights."""
    import torch

    from tests.parity.torch_recurrent import RNNSeq2Seq

    torch.manual_seed(0)
    return randomise(RNNSeq2Seq(**{**RNN, **changes}), scale=0.3)


OTHERS = [
    *(
        Case("Transformer-XL", name, functools.partial(transformer_xl, **changes),
             following=by_memory,
             quirk="left transformers with 5; 4.57 begins with a memory of zeros, and sees it")
        for name, changes in XL_CASES.items()
    ),
    *(
        Case(name.partition(", ")[0], name.partition(", ")[2],
             functools.partial(recurrent, **changes), kind="seq2seq",
             quirk="transformers has none: torch.nn's layers")
        for name, changes in RNN_CASES.items()
    ),
]  # fmt: skip
