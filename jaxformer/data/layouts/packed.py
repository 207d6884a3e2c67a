"""Whole documents, several in a row.

Shapes: R rows gathered, T tokens in a row, N tokens in the stream, J documents, P pieces of
documents (a document longer than a row is cut), S pieces in the rows gathered, I their tokens.
"""

from __future__ import annotations

import numpy as np

from jaxformer.data.cache import Corpus
from jaxformer.data.layouts.base import Batch
from jaxformer.data.packing import pack, pieces, ramp


class Packed:
    """Whole documents side by side in a row; `segment_ids` (1, 2, …) keep them apart.

    A document longer than a row is cut into pieces; the pieces that fill a row have it alone, the
    rest are packed by best fit, longest first, in the histogram's form whose cost does not grow
    with the number of documents (Krell et al. 2021, algorithm 1). Rows stand in the order of their
    first document.

    Args:
      corpus: the tokens.
      seq_len: T.
      pad: fills rows.
    """

    def __init__(self, corpus: Corpus, seq_len: int, pad: int):
        self.tokens_N, self.seq_len = corpus.tokens_N, seq_len
        self.pad = pad
        start_P, length_P, last_P, _ = pieces(corpus.offsets_J, seq_len)
        row_P, column_P = pack(length_P, seq_len)
        self.num_rows = int(row_P.max(initial=-1)) + 1
        # What is left of a row is one more piece, without a document: rows are then full.
        filled_R = np.bincount(row_P, length_P, self.num_rows).astype(np.int64)
        short_R = np.flatnonzero(filled_R < seq_len)
        row_P = np.concatenate([row_P, short_R])
        order_P = np.lexsort((np.concatenate([column_P, filled_R[short_R]]), row_P))
        self.length_P = np.concatenate([length_P, seq_len - filled_R[short_R]])[order_P]
        self.start_P = np.concatenate([start_P, np.full_like(short_R, -1)])[order_P]
        self.last_P = np.concatenate([last_P, np.ones(len(short_R), bool)])[order_P]
        self.first_piece = np.searchsorted(row_P[order_P], np.arange(self.num_rows + 1))
        self.max_shift = 0

    def gather(self, rows_R: np.ndarray, shifts_R: np.ndarray) -> Batch:
        """Returns the batch of these rows; shifts are not used."""
        shape = len(rows_R), self.seq_len
        count_R = self.first_piece[rows_R + 1] - self.first_piece[rows_R]
        number_S = ramp(count_R)  # S: the pieces of these rows, I: their tokens, one after another
        piece_S = np.repeat(self.first_piece[rows_R], count_R) + number_S
        start_S, length_S = self.start_P[piece_S], self.length_P[piece_S]
        stop_S = np.cumsum(length_S)
        empty_S = start_S < 0
        index_I = np.arange(len(rows_R) * self.seq_len)
        source_I = np.repeat(start_S - (stop_S - length_S), length_S)
        source_I += index_I
        tokens_I = self.tokens_N.take(source_I, mode="clip").astype(np.int32)
        source_I += 1
        targets_I = self.tokens_N.take(source_I, mode="clip").astype(np.int32)
        weights_I = np.ones(len(index_I), np.float32)
        # A document's last token has no next one; a cut piece's has, though in another row.
        ends_S = stop_S[self.last_P[piece_S]] - 1
        targets_I[ends_S], weights_I[ends_S] = self.pad, 0.0
        for start, stop in zip((stop_S - length_S)[empty_S].tolist(), stop_S[empty_S].tolist()):
            tokens_I[start:stop] = targets_I[start:stop] = self.pad
            weights_I[start:stop] = 0.0
        begin_S = np.where(empty_S, 0, stop_S - length_S).astype(np.int32)
        positions_I = index_I.astype(np.int32) - np.repeat(begin_S, length_S)
        segments_S = np.where(empty_S, 0, number_S + 1).astype(np.int32)
        segments_I = np.repeat(segments_S, length_S)
        positions_I *= segments_I > 0
        return {
            "tokens": tokens_I.reshape(shape),
            "targets": targets_I.reshape(shape),
            "weights": weights_I.reshape(shape),
            "segment_ids": segments_I.reshape(shape),
            "positions": positions_I.reshape(shape),
        }
