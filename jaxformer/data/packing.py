"""Documents cut into pieces, and pieces put into rows with as little padding as possible.

Shapes: J documents (or pairs), P pieces of them, R rows.
"""

from __future__ import annotations

import bisect
import itertools

import numpy as np


def ramp(length_S: np.ndarray) -> np.ndarray:
    """Returns 0 … length-1 for each length, joined: [3, 2] → [0, 1, 2, 0, 1]."""
    total = int(length_S.sum())
    return np.arange(total) - np.repeat(np.cumsum(length_S) - length_S, length_S)


def pieces(offsets_J: np.ndarray, seq_len: int) -> tuple[np.ndarray, ...]:
    """Cuts documents into pieces of at most `seq_len` tokens.

    Returns:
      start_P in the stream, length_P, last_P (whether the document ends there), document_P.
    """
    whole_J = np.diff(offsets_J)
    count_J = -(-whole_J // seq_len)
    document_P = np.repeat(np.arange(len(whole_J)), count_J)
    within_P = ramp(count_J) * seq_len
    length_P = np.minimum(seq_len, whole_J[document_P] - within_P)
    last_P = within_P + length_P == whole_J[document_P]
    return offsets_J[document_P] + within_P, length_P, last_P, document_P


def pack(length_P: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts pieces of 1 … seq_len tokens into rows of seq_len tokens.

    Returns:
      row_P and column_P: where each piece goes. Rows count from 0 in the order of their first
      piece; none overflows.
    """
    by_length_P = np.argsort(length_P, kind="stable")
    counts = np.bincount(length_P, minlength=seq_len + 1)
    # Rows that look alike are handled together: room left → [(how many rows, their pieces)],
    # where pieces are (length, copies, the pieces before).
    open_rows: dict[int, list[tuple[int, tuple]]] = {}
    rooms: list[int] = []  # the keys of open_rows, sorted
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            place = bisect.bisect_left(rooms, length)
            if place == len(rooms):
                room, parts = seq_len, ()
                rows = -(-left // (room // length))
            else:
                room = rooms[place]
                rows, parts = open_rows[room].pop()
                if not open_rows[room]:
                    del open_rows[room], rooms[place]
            # Best fit goes on with the row that it chose until that is full.
            most = room // length
            for copies in (most, left % most):
                used = min(rows, left // copies) if copies else 0
                if used:
                    left -= used * copies
                    rows -= used
                    part = (length, copies, parts)
                    _put(open_rows, rooms, room - copies * length, (used, part))
            if rows:
                _put(open_rows, rooms, room, (rows, parts))

    next_of = np.concatenate([[0], np.cumsum(counts)])[:-1]  # by length: the next piece to take
    row_P, column_P = np.empty_like(length_P), np.empty_like(length_P)
    total = 0
    for rows, linked in itertools.chain.from_iterable(open_rows.values()):
        column, parts = 0, linked
        while parts:
            length, copies, parts = parts
            taken = by_length_P[next_of[length] : next_of[length] + rows * copies]
            next_of[length] += rows * copies
            row_P[taken] = np.repeat(np.arange(total, total + rows), copies)
            column_P[taken] = column + np.tile(np.arange(copies) * length, rows)
            column += length * copies
        total += rows
    return _by_first(row_P), column_P


def _by_first(row_P: np.ndarray) -> np.ndarray:
    """Renumbers rows in the order of their first piece."""
    total = int(row_P.max(initial=-1)) + 1
    first_R = np.full(total, len(row_P))
    np.minimum.at(first_R, row_P, np.arange(len(row_P)))
    rank_R = np.empty(total, row_P.dtype)
    rank_R[np.argsort(first_R)] = np.arange(total)
    return rank_R[row_P]


def _put(open_rows: dict, rooms: list[int], room: int, group: tuple[int, tuple]) -> None:
    if room not in open_rows:
        open_rows[room] = []
        bisect.insort(rooms, room)
    open_rows[room].append(group)


CELLS = 128  # lengths of pairs are told apart to so many parts of a row


def pack_pairs(
    source_J: np.ndarray, target_J: np.ndarray, source_len: int, target_len: int
) -> np.ndarray:
    """Puts pairs of a source and a target into rows that have room for both.

    Best fit, the largest pairs first, in two dimensions: a pair goes to the open row of which it
    leaves the least. Pairs of equal sizes and rows of equal room are handled together, so the cost
    hardly grows with their number.

    Args:
      source_J: tokens of each source, 1 … source_len.
      target_J: tokens of each target, 1 … target_len.
      source_len: tokens of sources in a row.
      target_len: tokens of targets in a row.

    Returns:
      The row of each pair. Rows count from 0 in the order of their first pair; none overflows.
    """
    units = [-(-length // CELLS) for length in (source_len, target_len)]
    S, T = source_len // units[0], target_len // units[1]
    size_J = np.minimum(-(-source_J // units[0]), S), np.minimum(-(-target_J // units[1]), T)
    cells_C, inverse_J, counts_C = np.unique(
        size_J[0] * (T + 1) + size_J[1], return_inverse=True, return_counts=True
    )
    s_C, t_C = np.divmod(cells_C, T + 1)
    members = np.split(np.argsort(inverse_J, kind="stable"), np.cumsum(counts_C)[:-1])
    rows_ST = np.zeros((S + 1, T + 1), np.int64)  # open rows by what room they have left
    numbers: dict[tuple[int, int], list[np.ndarray]] = {}  # which they are
    row_J = np.zeros(len(source_J), np.int64)
    total = 0
    for c in np.argsort(-(s_C * T + t_C * S), kind="stable").tolist():
        s, t, waiting = int(s_C[c]), int(t_C[c]), members[c]
        while len(waiting):
            rooms_ST = rows_ST[s:, t:]
            fitting = np.flatnonzero(rooms_ST)
            if len(fitting):
                left_S, left_T = np.divmod(fitting, rooms_ST.shape[1])
                best = int(np.argmin(left_S * T + left_T * S))
                left = int(left_S[best]), int(left_T[best])
                room = left[0] + s, left[1] + t
                rows = np.concatenate(numbers.pop(room))
            else:
                left, room = (S - s, T - t), (S, T)
                rows = np.arange(total, total - (-len(waiting) // min(S // s, T // t)))
                total += len(rows)
            used = min(len(rows), len(waiting))
            row_J[waiting[:used]] = rows[:used]
            waiting = waiting[used:]
            rows_ST[room] = len(rows) - used
            if used < len(rows):
                numbers[room] = [rows[used:]]
            rows_ST[left] += used
            numbers.setdefault(left, []).append(rows[:used])
    return _by_first(row_J)
