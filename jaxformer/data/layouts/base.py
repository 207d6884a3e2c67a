"""What every layout is, and one text or a pair of texts set between special tokens.

Shapes: R rows gathered, T tokens in a row, N tokens in the stream, I tokens written.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from jaxformer.data.packing import ramp
from jaxformer.data.tokenizers import Template

Batch = dict[str, np.ndarray]


class Layout(Protocol):
    """Rows out of a token stream: knows how many it has, and gathers any of them at once."""

    num_rows: int
    max_shift: int  # the largest shift of an epoch

    def gather(self, rows_R: np.ndarray, shifts_R: np.ndarray) -> Batch:
        """Returns the batch of these rows (int64), as they are in an epoch of this shift."""
        ...


class Stretch(NamedTuple):
    """Where texts stand in the stream: the first token of each, and how many there are."""

    start_R: np.ndarray
    length_R: np.ndarray

    def write(self, flat: np.ndarray, where_R: np.ndarray, tokens_N: np.ndarray) -> np.ndarray:
        """Copies the texts to these places of `flat`; returns the places behind them."""
        within_I = ramp(self.length_R)
        target_I = np.repeat(where_R, self.length_R) + within_I
        flat[target_I] = tokens_N[np.repeat(self.start_R, self.length_R) + within_I]
        return where_R + self.length_R


class Framed(NamedTuple):
    """Rows with special tokens; the columns are those where the texts begin."""

    batch: Batch
    first_R: np.ndarray
    second_R: np.ndarray


def write_ids(flat: np.ndarray, where_R: np.ndarray, ids: tuple[int, ...]) -> np.ndarray:
    """Writes the same few ids at these places of `flat`; returns the places behind them."""
    for index in ids:
        flat[where_R] = index
        where_R = where_R + 1
    return where_R


def shorten(a_J: np.ndarray, b_J: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns lengths of pairs that fit the room: the longer text loses its end first."""
    a_J = np.minimum(a_J, np.maximum(room - b_J, room - room // 2))
    return a_J, np.minimum(b_J, room - a_J)


def frame(
    tokens_N: np.ndarray,
    template: Template,
    seq_len: int,
    pad: int,
    first: Stretch,
    second: Stretch | None = None,
    *,
    left: bool = False,
) -> Framed:
    """Sets texts between the special tokens of a template, and pads.

    Args:
      tokens_N: the stream.
      template: of pairs if there is a `second` text, else of single texts.
      seq_len: T; the texts fit.
      pad: fills rows.
      first: the texts.
      second: their pairs.
      left: whether the padding stands first.

    Returns:
      tokens, targets, weights (of the next token), segment_ids, positions [R, T], and token_types
      [R, T] if they tell anything.
    """
    R, T = len(first.start_R), seq_len
    length_R = first.length_R + len(template.prefix) + len(template.suffix)
    if second is not None:
        length_R = length_R + second.length_R + len(template.middle)
    begin_R = np.arange(R) * T
    real_R = begin_R + (T - length_R if left else 0)
    flat, types = np.full(R * T, pad, np.int32), np.zeros(R * T, np.int32)

    def put(where_R: np.ndarray, ids: tuple[int, ...], kinds: tuple[int, ...]) -> np.ndarray:
        write_ids(types, where_R, kinds)
        return write_ids(flat, where_R, ids)

    def put_text(where_R: np.ndarray, text: Stretch, kind: int) -> np.ndarray:
        end_R = text.write(flat, where_R, tokens_N)
        if kind:
            types[np.repeat(where_R, text.length_R) + ramp(text.length_R)] = kind
        return end_R

    first_R = second_R = put(real_R, template.prefix, template.prefix_types)
    end_R = put_text(first_R, first, template.first_type)
    if second is not None:
        second_R = put(end_R, template.middle, template.middle_types)
        end_R = put_text(second_R, second, template.second_type)
    end_R = put(end_R, template.suffix, template.suffix_types)

    column_RT = np.arange(T) - (real_R - begin_R)[:, None]
    real_RT = (column_RT >= 0) & (column_RT < length_R[:, None])
    next_RT = real_RT[:, :-1] & real_RT[:, 1:]
    tokens_RT = flat.reshape(R, T)
    targets_RT = np.full((R, T), pad, np.int32)
    targets_RT[:, :-1] = np.where(next_RT, tokens_RT[:, 1:], pad)
    weights_RT = np.zeros((R, T), np.float32)
    weights_RT[:, :-1] = next_RT
    batch = {
        "tokens": tokens_RT,
        "targets": targets_RT,
        "weights": weights_RT,
        "segment_ids": real_RT.astype(np.int32),
        "positions": np.where(real_RT, column_RT, 0).astype(np.int32),
    }
    if template.typed:
        batch["token_types"] = types.reshape(R, T)
    return Framed(batch, first_R - begin_R, second_R - begin_R)
