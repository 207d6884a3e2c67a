"""Rows out of a token stream: windows, packed documents, padded documents.

A layout knows how many rows it has and gathers any of them, all at once, by numpy.

Shapes: R rows gathered, T tokens in a row, N tokens in the stream, J documents, P pieces of
documents (a document longer than a row is cut), I tokens gathered.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxformer.data.cache import Corpus
from jaxformer.data.packing import pack, pieces, ramp

Batch = dict[str, np.ndarray]


class Special(NamedTuple):
    """The ids that a layout writes; -1 = the tokenizer has none (pad: 0 is written)."""

    pad: int = -1
    cls: int = -1
    sep: int = -1


class Windows:
    """The stream cut into rows of T tokens; every token is predicted from those before it.

    Args:
      corpus: the tokens.
      seq_len: T.
      stride: 0 for training: windows lie side by side, from a shift that the caller chooses. Else,
        for evaluation: windows begin every `stride` tokens, the last one ends at the stream's end,
        and a token that an earlier window scored has weight 0.
      special: for a stream shorter than a row.
    """

    def __init__(self, corpus: Corpus, seq_len: int, stride: int, special: Special):
        self.tokens_N, self.seq_len, self.stride = corpus.tokens_N, seq_len, stride
        self.real = len(self.tokens_N)
        if self.real <= seq_len:
            missing = seq_len + 1 - self.real
            self.tokens_N = np.pad(self.tokens_N, (0, missing), constant_values=max(0, special.pad))
        scored = max(1, self.real - 1)
        if stride:
            self.num_rows = 1 + max(0, -(-(scored - seq_len) // stride))
            self.max_shift = 0
        else:
            # One row fewer than fit, so that there is room for any shift.
            self.num_rows = max((self.real - seq_len) // seq_len, scored // seq_len and 1)
            self.max_shift = min(seq_len - 1, scored - self.num_rows * seq_len)
        self.windows = np.lib.stride_tricks.sliding_window_view(self.tokens_N, seq_len + 1)
        self.position_T = np.arange(seq_len, dtype=np.int32)

    def gather(self, rows_R: np.ndarray, shifts_R: np.ndarray) -> Batch:
        """Returns the batch of these rows (int64), each window moved right by its shift.

        Full training windows come without segment_ids and positions: attention then needs the
        causal mask only, and positions are 0 … T-1 for all.
        """
        T = self.seq_len
        start_R = np.minimum(rows_R * (self.stride or T) + shifts_R, len(self.windows) - 1)
        window_RT = self.windows[start_R]
        batch = {
            "tokens": window_RT[:, :-1].astype(np.int32),
            "targets": window_RT[:, 1:].astype(np.int32),
        }
        if self.stride == 0 and self.real > T:
            return {**batch, "weights": np.ones((len(rows_R), T), np.float32)}
        index_RT = start_R[:, None] + self.position_T
        weight_RT = index_RT < self.real - 1
        if self.stride:
            scored_R = np.where(rows_R > 0, (rows_R - 1) * self.stride + T, 0)
            weight_RT &= index_RT >= scored_R[:, None]
        return {
            **batch,
            "weights": weight_RT.astype(np.float32),
            "segment_ids": (index_RT < self.real).astype(np.int32),
            "positions": np.broadcast_to(self.position_T, (len(rows_R), T)),
        }


class Packed:
    """Whole documents side by side in a row; `segment_ids` (1, 2, …) keep them apart.

    A document longer than a row is cut into pieces; the pieces that fill a row have it alone, the
    rest are packed by best fit, longest first, in the histogram's form whose cost does not grow
    with the number of documents (Krell et al. 2021, algorithm 1). Rows stand in the order of their
    first document.

    Args:
      corpus: the tokens.
      seq_len: T.
      special: the padding.
    """

    def __init__(self, corpus: Corpus, seq_len: int, special: Special):
        self.tokens_N, self.seq_len = corpus.tokens_N, seq_len
        self.pad = max(0, special.pad)
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


class Padded:
    """One text, or pair of texts, in a row: [CLS] a [SEP] or [CLS] a [SEP] b [SEP], then padding.

    Args:
      corpus: the tokens.
      seq_len: T.
      special: the ids around texts; those that the tokenizer lacks are left out.
      pairs: whether documents have two texts; too long ones lose the longer text's end first.
      cut: whether a long document becomes several rows; otherwise it is truncated.
    """

    def __init__(self, corpus: Corpus, seq_len: int, special: Special, pairs: bool, cut: bool):
        self.tokens_N, self.seq_len, self.pairs = corpus.tokens_N, seq_len, pairs
        self.special, self.pad = special, max(0, special.pad)
        room = seq_len - (special.cls >= 0) - (special.sep >= 0) * (1 + pairs)
        if cut and not pairs:
            self.start_P, self.length_P, _, document_P = pieces(corpus.offsets_J, room)
            self.labels_P = corpus.labels_J[document_P]
            self.second_P = np.zeros_like(self.length_P)
            self.second_start_P = self.start_P
        else:
            whole_J = np.diff(corpus.offsets_J)
            a, b = corpus.first_J.astype(np.int64), whole_J - corpus.first_J
            self.length_P = np.minimum(a, np.maximum(room - b, room - room // 2))
            self.second_P = np.minimum(b, room - self.length_P)
            self.start_P = corpus.offsets_J[:-1]
            self.second_start_P = self.start_P + a
            self.labels_P = corpus.labels_J
        self.num_rows, self.max_shift = len(self.start_P), 0

    def gather(self, rows_R: np.ndarray, shifts_R: np.ndarray) -> Batch:
        """Returns the batch of these rows; shifts are not used."""
        R, T, special = len(rows_R), self.seq_len, self.special
        batch = _empty(R, T, self.pad)
        begin_R = np.arange(R) * T
        end_R = begin_R
        types = np.zeros((R, T), np.int32)
        if special.cls >= 0:
            batch["tokens"].ravel()[end_R] = special.cls
            end_R = end_R + 1
        for start_P, length_P in (
            (self.start_P, self.length_P),
            (self.second_start_P, self.second_P),
        )[: 1 + self.pairs]:
            length_R = length_P[rows_R]
            within_I = ramp(length_R)
            target_I = np.repeat(end_R, length_R) + within_I
            source_I = np.repeat(start_P[rows_R], length_R) + within_I
            batch["tokens"].ravel()[target_I] = self.tokens_N[source_I]
            end_R = end_R + length_R
            if special.sep >= 0:
                batch["tokens"].ravel()[end_R] = special.sep
                end_R = end_R + 1
            if start_P is self.start_P:
                types[np.arange(T) >= (end_R - begin_R)[:, None]] = 1
        real_RT = np.arange(T) < (end_R - begin_R)[:, None]
        batch["segment_ids"][real_RT] = 1
        batch["positions"] = np.where(real_RT, np.arange(T, dtype=np.int32), 0).astype(np.int32)
        batch["targets"][:, :-1] = np.where(real_RT[:, 1:], batch["tokens"][:, 1:], self.pad)
        batch["weights"][:, :-1] = real_RT[:, 1:]
        batch["labels"] = self.labels_P[rows_R].astype(np.int32)
        if self.pairs:
            batch["token_types"] = types * real_RT
        return batch


def _empty(rows: int, seq_len: int, pad: int) -> Batch:
    shape = (rows, seq_len)
    return {
        "tokens": np.full(shape, pad, np.int32),
        "targets": np.full(shape, pad, np.int32),
        "weights": np.zeros(shape, np.float32),
        "segment_ids": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
    }
