"""Batches changed on the host: spans taken out (T5), text infilled (BART), orders drawn (XLNet).

`make` returns a transform for `Dataset.transformed`. It is pure: a row of its result depends on the
row and on 64 random bits, which depend on (seed, step, row) alone; in validation on the row alone.

What it makes of layouts "windows" and "padded":

span_corruption, text_infilling: source, source_segment_ids [B, S]; tokens, targets, weights,
  segment_ids, positions [B, T]; as layout "seq2seq".
permutation: tokens [B, N], and segment_ids, positions, token_types where they are; perm_mask
  [B, N, N] bool (True: the row may *not* see the column); target_mapping [B, P, N] float32 (1 at
  the token that is predicted); targets [B, P] int32, weights [B, P] float32.

Shapes: B rows, N tokens of a row of the data, S of a source, T of a target, P predictions.
"""

from __future__ import annotations

from typing import Any

from jaxformer.data.config import Config
from jaxformer.data.corruption.infilling import text_infilling
from jaxformer.data.corruption.permutation import permutation
from jaxformer.data.corruption.spans import raw_length, span_corruption
from jaxformer.data.layouts import ends_of
from jaxformer.data.pipeline import Transform
from jaxformer.data.tokenizers import Template, Tokenizer
from jaxformer.errors import UserError, one_of

__all__ = ["KINDS", "make", "permutation", "raw_length", "span_corruption", "text_infilling"]

KINDS = ("span_corruption", "text_infilling", "permutation")


def make(kind: str, tokenizer: Tokenizer, config: Config, **options: Any) -> Transform:
    """Returns the transform of a kind for the data of a config.

    Args:
      kind: one of KINDS.
      tokenizer: of the data.
      config: of the data: the layout, seq_len and start_id.
      **options: of that kind's function: rate and mean_span; rate, mean_span and permute; share and
        max_span.

    Raises:
      UserError: a layout that it does not read, or a tokenizer without the special tokens it needs.
    """
    one_of(kind, KINDS, "kind")
    if config.layout not in ("windows", "padded") or config.text_pair_field or config.pad_left:
        raise UserError(
            f"data.layout={config.layout!r}: {kind} reads 'windows', or 'padded' with one text a "
            "row and the padding at the right"
        )
    frame = tokenizer.template() if config.layout == "padded" else Template()
    pad = max(0, tokenizer.pad_id)
    if kind == "permutation":
        return permutation(config.seq_len, tokenizer.special_ids, pad, **options)
    ends = ends_of(tokenizer, config.start_id)
    if kind == "span_corruption":
        return span_corruption(config.seq_len, frame, ends, tokenizer.sentinel_ids, pad, **options)
    if tokenizer.mask_id < 0:
        raise UserError(
            "text infilling needs a tokenizer with a mask token; use data.tokenizer=bpe:8000, "
            "wordpiece:8000, or a tokenizer.json that has one"
        )
    return text_infilling(
        config.seq_len, frame, ends, tokenizer.mask_id, tokenizer.ends_of_sentences(), pad,
        **options,
    )  # fmt: skip
