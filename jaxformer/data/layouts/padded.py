"""One text, or pair of texts, in a row, between the tokenizer's special tokens, then padding.

Shapes: R rows gathered, T tokens in a row, N tokens in the stream, J documents, P their pieces.
"""

from __future__ import annotations

import numpy as np

from jaxformer.data.cache import Corpus
from jaxformer.data.layouts.base import Batch, Stretch, frame, shorten
from jaxformer.data.packing import pieces, ramp
from jaxformer.data.tokenizers import Template
from jaxformer.errors import UserError


class Padded:
    """One text, or pair of texts, in a row: [CLS] a [SEP] or [CLS] a [SEP] b [SEP], then padding.

    Args:
      corpus: the tokens; with more["tags_N"] rows have tags.
      seq_len: T.
      template: the ids around texts; around pairs if `pairs`.
      pad: fills rows.
      pairs: whether documents have two texts; too long ones lose the longer text's end first.
      cut: whether a long document becomes several rows; otherwise it is truncated.
      left: whether the padding stands first.

    Attributes:
      document_R: which document a row is (a piece) of.
    """

    def __init__(
        self,
        corpus: Corpus,
        seq_len: int,
        template: Template,
        pad: int,
        pairs: bool = False,
        cut: bool = False,
        left: bool = False,
    ):
        self.tokens_N, self.tags_N = corpus.tokens_N, corpus.more.get("tags_N")
        self.seq_len, self.template, self.pad = seq_len, template, pad
        self.pairs, self.left = pairs, left
        room = seq_len - template.length
        if room < 1 + pairs:
            raise UserError(
                f"data.seq_len={seq_len} leaves no room for text beside the tokenizer's "
                f"{template.length} special tokens"
            )
        if cut and not pairs:
            start_P, length_P, _, self.document_R = pieces(corpus.offsets_J, room)
            self.second = Stretch(start_P, np.zeros_like(length_P))
        else:
            a_J = corpus.first_J.astype(np.int64)
            b_J = np.diff(corpus.offsets_J) - a_J
            start_P = corpus.offsets_J[:-1]
            length_P, b_P = shorten(a_J, b_J, room) if pairs else (np.minimum(a_J, room), b_J)
            self.second = Stretch(start_P + a_J, b_P)
            self.document_R = np.arange(len(start_P))
        self.first = Stretch(start_P, length_P)
        self.labels_R = corpus.labels_J[self.document_R]
        self.num_rows, self.max_shift = len(start_P), 0

    def gather(self, rows_R: np.ndarray, shifts_R: np.ndarray) -> Batch:
        """Returns the batch of these rows; shifts are not used."""
        first, second = (
            Stretch(text.start_R[rows_R], text.length_R[rows_R])
            for text in (self.first, self.second)
        )
        framed = frame(
            self.tokens_N, self.template, self.seq_len, self.pad, first,
            second if self.pairs else None, left=self.left,
        )  # fmt: skip
        batch = {**framed.batch, "labels": self.labels_R[rows_R]}
        if self.tags_N is not None:
            batch["tags"] = np.full((len(rows_R), self.seq_len), -1, np.int32)
            row_I = np.repeat(np.arange(len(rows_R)), first.length_R)
            within_I = ramp(first.length_R)
            source_I = np.repeat(first.start_R, first.length_R) + within_I
            batch["tags"][row_I, framed.first_R[row_I] + within_I] = self.tags_N[source_I]
        return batch
