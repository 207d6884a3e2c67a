"""Questions with windows of their contexts: [CLS] question [SEP] context [SEP].

Shapes: R rows (windows), T tokens in a row, N tokens in the stream, J questions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxformer.data.cache import Corpus
from jaxformer.data.layouts.base import Batch, Stretch, frame
from jaxformer.data.packing import ramp
from jaxformer.data.tokenizers import Template
from jaxformer.errors import UserError


class Feature(NamedTuple):
    """What turns a row's predictions into text.

    Attributes:
      document: number of the question in Dataset.documents(split).
      first: index, in its whole context, of the window's first token of the context.
      spans_T2: where in the context each token stands, its first character and one more than its
        last; -1 for the tokens that are not of the context.
    """

    document: int
    first: int
    spans_T2: np.ndarray


class Questions:
    """A question and a window of its context a row (Devlin 2019, section 4.2).

    Windows begin every `stride` tokens of the context, the last one ends at its end or after.
    start and end [R] are the columns of the answer's first and last token, both 0 if the window
    does not hold all of it.

    Args:
      corpus: of the form "qa".
      seq_len: T.
      template: around pairs.
      pad: fills rows.
      stride: tokens from one window's beginning to the next one's.
      max_question: tokens of a question; the rest is cut off.

    Attributes:
      document_R: the question of each row.
    """

    def __init__(
        self,
        corpus: Corpus,
        seq_len: int,
        template: Template,
        pad: int,
        stride: int,
        max_question: int,
    ):
        self.tokens_N, self.spans_N2 = corpus.tokens_N, corpus.more["spans_N2"]
        self.seq_len, self.template, self.pad = seq_len, template, pad
        question_J = np.minimum(corpus.first_J, max_question).astype(np.int64)
        room_J = seq_len - template.length - question_J
        if room_J.min(initial=1) < 1:
            raise UserError(
                f"data.seq_len={seq_len} leaves no room for a context beside a question of "
                f"data.max_question={max_question} tokens and {template.length} special tokens"
            )
        owner_J = corpus.more["context_J"]
        begin_J = corpus.offsets_J[owner_J] + corpus.first_J[owner_J]
        length_J = corpus.offsets_J[owner_J + 1] - begin_J
        step_J = np.minimum(stride, room_J)
        count_J = 1 + np.maximum(0, -(-(length_J - room_J) // step_J))
        J_R = self.document_R = np.repeat(np.arange(len(count_J)), count_J)
        skipped_R = self.skipped_R = ramp(count_J) * step_J[J_R]
        self.question = Stretch(corpus.offsets_J[:-1][J_R], question_J[J_R])
        self.window = Stretch(
            begin_J[J_R] + skipped_R, np.minimum(room_J[J_R], length_J[J_R] - skipped_R)
        )
        answer_J2 = _answer_tokens(self.spans_N2, begin_J, length_J, corpus.more["answer_J2"])
        answer_R2 = answer_J2[J_R] - skipped_R[:, None]
        inside_R = (answer_R2[:, 0] >= 0) & (answer_R2[:, 1] < self.window.length_R)
        inside_R &= (answer_J2[J_R] >= 0).all(axis=1)
        self.answer_R2 = np.where(inside_R[:, None], answer_R2, -1)
        self.num_rows, self.max_shift = len(J_R), 0

    def _stretches(self, rows_R: np.ndarray) -> list[Stretch]:
        return [Stretch(text.start_R[rows_R], text.length_R[rows_R])
                for text in (self.question, self.window)]  # fmt: skip

    def gather(self, rows_R: np.ndarray, shifts_R: np.ndarray) -> Batch:
        """Returns the batch of these rows; shifts are not used."""
        question, window = self._stretches(rows_R)
        batch, question_R, context_R = frame(
            self.tokens_N, self.template, self.seq_len, self.pad, question, window
        )
        # What Longformer's authors let everybody see: all up to the question's end.
        ends_R1 = (question_R + question.length_R)[:, None]
        batch["global_tokens"] = (np.arange(self.seq_len) < ends_R1).astype(np.int32)
        answer_R2 = self.answer_R2[rows_R]
        columns_R2 = np.where(answer_R2 >= 0, answer_R2 + context_R[:, None], 0).astype(np.int32)
        return {**batch, "start": columns_R2[:, 0], "end": columns_R2[:, 1]}

    def features(self, row: int) -> Feature:
        """Returns what the row's columns mean."""
        rows_R = np.array([row])
        question, window = self._stretches(rows_R)
        _, _, context_R = frame(
            self.tokens_N, self.template, self.seq_len, self.pad, question, window
        )
        spans_T2 = np.full((self.seq_len, 2), -1, np.int32)
        start, length, column = window.start_R[0], window.length_R[0], context_R[0]
        spans_T2[column : column + length] = self.spans_N2[start : start + length]
        return Feature(int(self.document_R[row]), int(self.skipped_R[row]), spans_T2)


def _answer_tokens(
    spans_N2: np.ndarray, begin_J: np.ndarray, length_J: np.ndarray, answer_J2: np.ndarray
) -> np.ndarray:
    """Returns the first and last token, within its context, of each answer; -1 without one."""
    tokens_J2 = np.full(answer_J2.shape, -1, np.int64)
    for j in np.flatnonzero(answer_J2[:, 0] >= 0).tolist():
        spans = spans_N2[begin_J[j] : begin_J[j] + length_J[j]]
        first = int(np.searchsorted(spans[:, 1], answer_J2[j, 0], side="right"))
        last = int(np.searchsorted(spans[:, 0], answer_J2[j, 1], side="left")) - 1
        if first <= last:
            tokens_J2[j] = first, last
    return tokens_J2
