"""Windows whose chunks come with what was found for each.

Shapes: R rows gathered, T tokens in a row, L chunks of m tokens in a row, K neighbours, r tokens of
a neighbour.
"""

from __future__ import annotations

import numpy as np

from jaxformer.data.cache import Corpus
from jaxformer.data.layouts.base import Batch
from jaxformer.data.layouts.windows import Windows
from jaxformer.data.neighbours import Neighbours


class Retrieved:
    """Rows of the stream that begin where a chunk does, with "neighbours" [R, L, K, r] int32.

    Args:
      corpus, seq_len, stride, pad: see Windows; T and the stride are multiples of m.
      found: the neighbours of each chunk of the stream, -1 where there is no token.
      most_overlap: tokens of chunks that share more than this with a neighbour have weight 0
        (Borgeaud 2022, section 2.6); 1: all count.
    """

    def __init__(
        self, corpus: Corpus, seq_len: int, stride: int, pad: int, found: Neighbours,
        most_overlap: float = 1.0,
    ):  # fmt: skip
        self.windows = Windows(corpus, seq_len, stride, pad, grid=found.chunk)
        self.found, self.most_overlap = found, most_overlap
        self.num_rows, self.max_shift = self.windows.num_rows, self.windows.max_shift

    def gather(self, rows_R: np.ndarray, shifts_R: np.ndarray) -> Batch:
        """Returns the batch of these rows (int64), each moved right by its shift, in chunks."""
        batch, m = self.windows.gather(rows_R, shifts_R), self.found.chunk
        start_R, T = self.windows.starts(rows_R, shifts_R), self.windows.seq_len
        chunk_RL = start_R[:, None] // m + np.arange(T // m)
        batch["neighbours"] = self.found.tokens(chunk_RL)
        if self.most_overlap < 1:
            target_RT = (start_R[:, None] + 1 + np.arange(T)) // m
            last = len(self.found.overlap_C) - 1
            seen_RT = self.found.overlap_C[np.minimum(target_RT, last)] > self.most_overlap
            batch["weights"] = np.where(seen_RT, 0, batch["weights"]).astype(np.float32)
        return batch
