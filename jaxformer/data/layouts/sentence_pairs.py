"""Two stretches of sentences in a row: does the second follow the first, do they stand in order?

Shapes: R rows, T tokens in a row, N tokens in the stream, J sentences.
"""

from __future__ import annotations

import numpy as np

from jaxformer.data import order
from jaxformer.data.cache import Corpus
from jaxformer.data.layouts.base import Batch, Stretch, frame, shorten
from jaxformer.data.tokenizers import Template
from jaxformer.errors import UserError


class SentencePairs:
    """[CLS] a [SEP] b [SEP], where a and b are sentences of one document that fill a row.

    "next" (Devlin 2019, section 3.1): next_sentence [R] is 0, or 1 where b was replaced by
    sentences of another document. "order" (Lan 2020, section 3.1): order [R] is 0, or 1 where the
    two were exchanged. Where a row is cut in two, its label, and what replaces b, are drawn anew in
    each epoch. Documents of a single sentence serve as replacements only.

    Args:
      corpus: of the form "sentences".
      seq_len: T.
      template: around pairs.
      pad: fills rows.
      task: "next" or "order".
    """

    # Of an epoch: a number that, with a row's, decides all that is drawn for it.
    max_shift = 2**31 - 2

    def __init__(self, corpus: Corpus, seq_len: int, template: Template, pad: int, task: str):
        self.tokens_N, self.offsets_J = corpus.tokens_N, corpus.offsets_J
        self.seq_len, self.template, self.pad, self.task = seq_len, template, pad, task
        self.room = seq_len - template.length
        document_J = corpus.more["document_J"]
        edges = np.flatnonzero(np.diff(document_J)) + 1
        first_D = np.concatenate([[0], edges])
        stop_D = np.concatenate([edges, [len(document_J)]])
        if self.room < 2 or (task == "next" and len(first_D) < 2):
            raise UserError(
                f"data.layout='sentence_pairs' needs data.seq_len={template.length + 2} or more "
                f"and two documents (an empty line ends one), not {seq_len} and {len(first_D)}"
            )
        inverse_J = np.repeat(np.arange(len(first_D)), stop_D - first_D)
        self.first_J, self.stop_J = first_D[inverse_J], stop_D[inverse_J]  # of its document
        chunks = [c for f, s in zip(first_D.tolist(), stop_D.tolist()) for c in self._chunks(f, s)]
        self.chunk_R2 = np.array(chunks, np.int64).reshape(-1, 2)
        self.num_rows = len(chunks)

    def _chunks(self, first: int, stop: int) -> list[tuple[int, int]]:
        """Cuts a document into stretches of two or more sentences that fill a row."""
        chunks = []
        while stop - first >= 2:
            end = min(max(self._fitting(first, self.room), first + 2), stop)
            chunks.append((first, end))
            # A last sentence that would stand alone takes the one before with it.
            first = end - 1 if stop - end == 1 else end
        return chunks

    def _fitting(self, first, room):
        """Returns where the sentences from `first` on no longer fit the room."""
        limit = self.offsets_J[first] + room
        return np.searchsorted(self.offsets_J, limit, side="right") - 1

    def gather(self, rows_R: np.ndarray, shifts_R: np.ndarray) -> Batch:
        """Returns the batch of these rows, as drawn in the epochs of these shifts."""
        key_R = order.mix(order.mix(shifts_R) ^ np.asarray(rows_R, np.uint64))
        cut_R, coin_R, other_R = (order.mix(key_R ^ np.uint64(n)) for n in (1, 2, 3))
        first_R, end_R = self.chunk_R2[rows_R].T
        middle_R = first_R + 1 + (cut_R % (end_R - first_R - 1).astype(np.uint64)).astype(np.int64)
        label_R = (coin_R & np.uint64(1)).astype(np.int32)
        a_2R, b_2R = np.stack([first_R, middle_R]), np.stack([middle_R, end_R])
        if self.task == "order":
            name, swapped_R = "order", label_R == 1
            a_2R, b_2R = np.where(swapped_R, b_2R, a_2R), np.where(swapped_R, a_2R, b_2R)
        else:
            name = "next_sentence"
            b_2R = np.where(label_R == 1, self._elsewhere(other_R, a_2R), b_2R)
        a_start_R, a_stop_R = self.offsets_J[a_2R]
        b_start_R, b_stop_R = self.offsets_J[b_2R]
        a_R, b_R = shorten(a_stop_R - a_start_R, b_stop_R - b_start_R, self.room)
        batch = frame(
            self.tokens_N, self.template, self.seq_len, self.pad,
            Stretch(a_start_R, a_R), Stretch(b_start_R, b_R),
        ).batch  # fmt: skip
        return {**batch, name: label_R}

    def _elsewhere(self, drawn_R: np.ndarray, a_2R: np.ndarray) -> np.ndarray:
        """Returns sentences of other documents, as many as fit beside a."""
        first_R, stop_R = self.first_J[a_2R[0]], self.stop_J[a_2R[0]]
        others_R = len(self.first_J) - (stop_R - first_R)
        begin_R = (drawn_R % others_R.astype(np.uint64)).astype(np.int64)
        begin_R += np.where(begin_R >= first_R, stop_R - first_R, 0)
        taken_R = self.offsets_J[a_2R[1]] - self.offsets_J[a_2R[0]]
        end_R = self._fitting(begin_R, np.maximum(0, self.room - taken_R))
        return np.stack([begin_R, np.clip(end_R, begin_R + 1, self.stop_J[begin_R])])
