"""What a recurrent encoder-decoder chooses. E embedding width, H hidden width."""

from __future__ import annotations

import dataclasses

from jaxformer.errors import UserError, one_of

GATES = {"lstm": 4, "gru": 3}
FORGET = 1  # the place of the forget gate among an LSTM's
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class RecurrentConfig:
    """A recurrent encoder, and a decoder that attends to it; 0 means "the usual value".

    Sizes: vocab_size (0: the tokenizer's), num_layers (of the encoder, and of the decoder), width
    (H; of both directions of a bidirectional encoder together), embedding_size (E; 0: H),
    max_length (the longest text; no parameter depends on it).

    Computation: cell "lstm" or "gru"; bidirectional: the encoder reads both ways, with H / 2 units
    each; attention "luong" (Luong 2015: the new state, times a matrix, times the source's states)
    or "bahdanau" (Bahdanau 2015: a tanh layer of attention_width units (0: H) sees the state before
    and each of the source's); input_feeding (luong; section 3.3): the step before hands on what it
    read from the source. Without it all steps attend at once, which is faster.

    Tables: tie_embeddings shares the target's with the head; share_embeddings, source and target
    have one; without it the source's has source_vocab_size rows (0: vocab_size); head_bias adds a
    bias to the logits; start_id: the token that a target begins with (-1: the tokenizer's).

    Beginning: matrices uniform in 1 / sqrt(inputs) (torch's default), tables uniform in init_range
    (Luong 2015, section 4.1), biases 0 but for the forget gate's (Jozefowicz 2015: 1).

    Running: dropout between layers, on embeddings and on what the head reads; compute_dtype;
    unroll: steps of the loop over time that are compiled together.
    """

    vocab_size: int = 0
    num_layers: int = 2
    width: int = 256
    embedding_size: int = 0
    max_length: int = 1024
    cell: str = "lstm"
    bidirectional: bool = True
    attention: str = "luong"
    attention_width: int = 0
    input_feeding: bool = True
    tie_embeddings: bool = True
    share_embeddings: bool = True
    source_vocab_size: int = 0
    head_bias: bool = False
    start_id: int = -1
    init_range: float = 0.1
    forget_bias: float = 1.0
    logit_soft_cap: float = 0.0
    dropout: float = 0.0
    compute_dtype: str = "float32"
    unroll: int = 1

    def __post_init__(self):
        for key in ("num_layers", "width", "max_length", "unroll"):
            if getattr(self, key) < 1:
                raise UserError(f"model.{key} is {getattr(self, key)}; it must be at least 1")
        one_of(self.cell, GATES, "model.cell")
        one_of(self.attention, ("luong", "bahdanau"), "model.attention")
        one_of(self.compute_dtype, DTYPES, "model.compute_dtype")
        if self.bidirectional and self.width % 2:
            raise UserError(
                f"model.width={self.width} is odd: each direction of a bidirectional encoder has "
                f"half of it; try --config.model.width={self.width + 1}"
            )
        if self.tie_embeddings and self.embedding_width != self.width:
            raise UserError(
                f"model.embedding_size={self.embedding_size} is not model.width={self.width}: the "
                "head cannot share the table; set --config.model.tie_embeddings=False"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.dropout={self.dropout} must be in [0, 1)")

    @property
    def embedding_width(self) -> int:
        """Width of the embeddings, E."""
        return self.embedding_size or self.width

    @property
    def num_heads(self) -> int:
        """The one attention: nothing here is split by heads."""
        return 1

    @property
    def kv_heads(self) -> int:
        """See num_heads."""
        return 1
