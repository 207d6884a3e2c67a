"""Pairs of a source and a target, one or several in a row.

Shapes: R rows gathered, S tokens of sources in a row, T of targets, N tokens in the stream, J pairs
in all, P the same in the order of rows, Q pairs in the rows gathered.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxformer.data.cache import Corpus
from jaxformer.data.layouts.base import Batch, Stretch, write_ids
from jaxformer.data.packing import pack_pairs, ramp
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import UserError


class Ends(NamedTuple):
    """The special tokens around sources and targets, and the one that the decoder begins with."""

    source_prefix: tuple[int, ...]
    source_suffix: tuple[int, ...]
    target_prefix: tuple[int, ...]
    target_suffix: tuple[int, ...]
    start: int

    @property
    def source_length(self) -> int:
        """How many special tokens a source has."""
        return len(self.source_prefix) + len(self.source_suffix)

    @property
    def target_length(self) -> int:
        """How many special tokens a target has."""
        return len(self.target_prefix) + len(self.target_suffix)


def ends_of(tokenizer: Tokenizer, start_id: int = -1) -> Ends:
    """Returns what a tokenizer puts around sources and targets: what its file says (BART:
    <s> … </s>; T5 and Marian: … </s>), else … <eos>. A target always has an end.

    Args:
      tokenizer: of both languages.
      start_id: what a target begins with; -1: the tokenizer's bos, else eos, else pad.

    Raises:
      UserError: no such token, or none to end with.
    """
    choices = (start_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    start = next((index for index in choices if index >= 0), -1)
    single = tokenizer.templates[0] if tokenizer.templates else None
    end = (tokenizer.eos_id,) if tokenizer.eos_id >= 0 else ()
    prefix, suffix = (single.prefix, single.suffix) if single else ((), end)
    if not 0 <= start < tokenizer.vocab_size or not (suffix or end):
        raise UserError(
            f"data.start_id={start_id}: sequence to sequence needs a token to begin and one to end "
            f"a target with, and the tokenizer has ids 0 to {tokenizer.vocab_size - 1}, specials "
            f"{', '.join(tokenizer.specials) or 'none'}; take one with <eos> or </s>"
        )
    # A target whose first token is the start token anyway (Llama's, not BART's) has it once.
    shared = prefix[1:] if prefix[:1] == (start,) else prefix
    return Ends(prefix, suffix, shared, suffix or end, start)


class Seq2Seq:
    """Sources and targets; in each, pair 1, 2, … of a row has segment_ids 1, 2, ….

    Too long texts lose their ends.

    Args:
      corpus: first texts are sources, the rest of a document is its target.
      source_len: S.
      seq_len: T.
      ends: special tokens.
      pad: fills rows.
      packed: whether pairs share a row.

    Attributes:
      truncated: how many pairs lost something.
    """

    def __init__(
        self,
        corpus: Corpus,
        source_len: int,
        seq_len: int,
        ends: Ends,
        pad: int,
        packed: bool = False,
    ):
        self.tokens_N, self.ends, self.pad = corpus.tokens_N, ends, pad
        self.source_len, self.seq_len = source_len, seq_len
        rooms = source_len - ends.source_length, seq_len - ends.target_length
        if min(rooms) < 1:
            raise UserError(
                f"data.source_len={source_len} and data.seq_len={seq_len} leave no room for text "
                f"beside {ends.source_length} and {ends.target_length} special tokens"
            )
        a_J = corpus.first_J.astype(np.int64)
        b_J = np.diff(corpus.offsets_J) - a_J
        self.truncated = int(((a_J > rooms[0]) | (b_J > rooms[1])).sum())
        self.source = Stretch(corpus.offsets_J[:-1], np.minimum(a_J, rooms[0]))
        self.target = Stretch(corpus.offsets_J[:-1] + a_J, np.minimum(b_J, rooms[1]))
        row_J = np.arange(len(a_J))
        if packed:
            row_J = pack_pairs(
                self.source.length_R + ends.source_length,
                self.target.length_R + ends.target_length,
                source_len,
                seq_len,
            )
        self.pair_P = np.argsort(row_J, kind="stable")
        self.num_rows, self.max_shift = int(row_J.max(initial=-1)) + 1, 0
        self.first_pair = np.searchsorted(row_J[self.pair_P], np.arange(self.num_rows + 1))

    def gather(self, rows_R: np.ndarray, shifts_R: np.ndarray) -> Batch:
        """Returns the batch of these rows; shifts are not used."""
        count_R = self.first_pair[rows_R + 1] - self.first_pair[rows_R]
        number_Q = ramp(count_R)
        row_Q = np.repeat(np.arange(len(rows_R)), count_R)
        pair_Q = self.pair_P[self.first_pair[rows_R][row_Q] + number_Q]
        ends, R = self.ends, len(rows_R)

        def lay(text: Stretch, width: int, *around: tuple[tuple[int, ...], tuple[int, ...]]):
            """Returns an array of tokens for each choice of special tokens, then where they are."""
            text = Stretch(text.start_R[pair_Q], text.length_R[pair_Q])
            length_Q = text.length_R + sum(map(len, around[0]))
            before_Q = np.cumsum(length_Q) - length_Q
            first_R = before_Q[np.cumsum(count_R) - count_R]  # every row has a pair
            where_Q = row_Q * width + before_Q - first_R[row_Q]
            within_I = ramp(length_Q)
            index_I = np.repeat(where_Q, length_Q) + within_I
            segments, positions = np.zeros((2, R * width), np.int32)
            segments[index_I], positions[index_I] = np.repeat(number_Q + 1, length_Q), within_I
            flats = []
            for prefix, suffix in around:
                flat = np.full(R * width, self.pad, np.int32)
                end_Q = text.write(flat, write_ids(flat, where_Q, prefix), self.tokens_N)
                write_ids(flat, end_Q, suffix)
                flats.append(flat)
            return [x.reshape(R, width) for x in (*flats, segments, positions)]

        source, source_segments, _ = lay(
            self.source, self.source_len, (ends.source_prefix, ends.source_suffix)
        )
        targets, tokens, segments, positions = lay(
            self.target, self.seq_len, (ends.target_prefix, ends.target_suffix),
            ((ends.start, *ends.target_prefix), ends.target_suffix[:-1]),
        )  # fmt: skip
        return {
            "source": source,
            "source_segment_ids": source_segments,
            "tokens": tokens,
            "targets": targets,
            "weights": (segments > 0).astype(np.float32),
            "segment_ids": segments,
            "positions": positions,
        }
