"""The stream of all documents, cut into rows.

Shapes: R rows gathered, T tokens in a row, N tokens in the stream.
"""

from __future__ import annotations

import numpy as np

from jaxformer.data.cache import Corpus
from jaxformer.data.layouts.base import Batch


class Windows:
    """The stream cut into rows of T tokens; every token is predicted from those before it.

    Args:
      corpus: the tokens.
      seq_len: T.
      stride: 0 for training: windows lie side by side, from a shift that the caller chooses. Else,
        for evaluation: windows begin every `stride` tokens, the last one ends at the stream's end,
        and a token that an earlier window scored has weight 0.
      pad: fills a stream shorter than a row.
      grid: windows begin at multiples of so many tokens, and shifts are counted in them; with more
        than 1 the last window for evaluation goes beyond the stream's end, and is filled up.
    """

    def __init__(self, corpus: Corpus, seq_len: int, stride: int, pad: int, grid: int = 1):
        self.tokens_N, self.seq_len, self.stride = corpus.tokens_N, seq_len, stride
        self.grid = grid
        self.real = len(self.tokens_N)
        scored = max(1, self.real - 1)
        if stride:
            self.num_rows = 1 + max(0, -(-(scored - seq_len) // stride))
            self.max_shift = 0
        else:
            # One row fewer than fit, so that there is room for any shift.
            self.num_rows = max((self.real - seq_len) // seq_len, scored // seq_len and 1)
            self.max_shift = min(seq_len - 1, scored - self.num_rows * seq_len) // grid
        ends = (self.num_rows - 1) * stride if stride and grid > 1 else 0
        missing = ends + seq_len + 1 - self.real
        if missing > 0:
            self.tokens_N = np.pad(self.tokens_N, (0, missing), constant_values=pad)
        self.windows = np.lib.stride_tricks.sliding_window_view(self.tokens_N, seq_len + 1)
        self.position_T = np.arange(seq_len, dtype=np.int32)

    def starts(self, rows_R: np.ndarray, shifts_R: np.ndarray) -> np.ndarray:
        """Returns where in the stream these rows begin."""
        start_R = rows_R * (self.stride or self.seq_len) + shifts_R * self.grid
        return np.minimum(start_R, len(self.windows) - 1)

    def gather(self, rows_R: np.ndarray, shifts_R: np.ndarray) -> Batch:
        """Returns the batch of these rows (int64), each window moved right by its shift.

        Full training windows come without segment_ids and positions: attention then needs the
        causal mask only, and positions are 0 … T-1 for all.
        """
        T, start_R = self.seq_len, self.starts(rows_R, shifts_R)
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
