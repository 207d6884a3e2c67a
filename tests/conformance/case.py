"""The cells of the matrix: what each asks of a variant, as shapes and as a mask, twice.

Each case says who sees whom as a spec of `jaxformer.ops.masks` and, for the reference, as a boolean
array that numpy builds from the definition.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, H head width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxformer.ops import masks

# Name -> (what it asks, whether it is in the fast set).
CELLS = {
    "padding": ("a row's last keys are hidden", True),
    "packing": ("segments in one row do not see each other", True),
    "causal": ("no query sees a later key", True),
    "bidirectional": ("without any mask", False),
    "GQA": ("4 query heads on 2 key/value heads", False),
    "cross": ("queries on the keys of another source, which has padding", False),
    "T ≠ S": ("9 queries that stand at the end of 17 keys, causal where it may be", False),
    "decode": ("token by token, by cache or state, equals the full pass", False),
    "gradients": ("of queries, keys, values and own arrays, against float64", False),
    "bf16": ("values and gradients near float64 on the same rounded inputs", False),
    "empty row": ("a query that sees nothing gets exactly 0, and gradients are 0 there", True),
    "jit": ("equals the same call without jit", False),
    "vmap": ("over a new axis, equals one call for each", False),
    "scan": ("as the body of a scan, equals one call for each", False),
    "remat": ("in jax.checkpoint, has the same gradients", False),
    "shard_map": ("the batch over 8 devices, check_vma=True, with gradients", False),
    "8 devices": ("the batch over 8 devices by jit and NamedSharding, with gradients", False),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """Shapes, and who sees whom. Query t stands at key t + offset."""

    B: int = 2
    T: int = 20
    S: int = 20
    N: int = 2
    K: int = 2
    H: int = 8
    offset: int = 0
    causal: bool = False
    lengths_B: Any = None
    q_ids_BT: Any = None
    k_ids_BS: Any = None

    def mask(self) -> masks.Mask | None:
        parts: list[masks.Mask] = []
        if self.causal:
            parts.append(masks.causal(self.offset))
        if self.lengths_B is not None:
            parts.append(masks.lengths(jnp.asarray(self.lengths_B, jnp.int32)))
        if self.q_ids_BT is not None:
            # One array for both where there is one, as a packed batch has it.
            q_ids = jnp.asarray(self.q_ids_BT, jnp.int32)
            same = self.k_ids_BS is self.q_ids_BT
            parts.append(masks.segments(q_ids, None if same else jnp.asarray(self.k_ids_BS)))
        whole = None
        for part in parts:
            whole = part if whole is None else whole & part
        return whole

    def seen(self) -> np.ndarray:
        """Returns bool [B, 1, T, S]: what the mask allows."""
        t, s = np.arange(self.T)[:, None] + self.offset, np.arange(self.S)
        seen_BTS = np.ones((self.B, self.T, self.S), bool)
        if self.causal:
            seen_BTS &= s <= t
        if self.lengths_B is not None:
            seen_BTS &= s < np.asarray(self.lengths_B)[:, None, None]
        if self.q_ids_BT is not None:
            q, k = np.asarray(self.q_ids_BT)[:, :, None], np.asarray(self.k_ids_BS)[:, None]
            seen_BTS &= (q == k) & (k != 0)
        return seen_BTS[:, None]

    def keys_seen(self) -> np.ndarray:
        """Returns bool [B, S]: the keys that are no padding."""
        if self.lengths_B is None:
            return np.ones((self.B, self.S), bool)
        return np.arange(self.S) < np.asarray(self.lengths_B)[:, None]

    def distance(self) -> np.ndarray:
        """Returns int [T, S]: how far after the query a key stands."""
        return np.arange(self.S) - (np.arange(self.T)[:, None] + self.offset)


def padded(B: int, S: int) -> np.ndarray:
    """Returns lengths [B] of which the first is S and the others are not."""
    return np.array([S - 3 * (b % 5) for b in range(B)], np.int32)


def packed(B: int, T: int) -> np.ndarray:
    """Returns segment ids [B, T]: segments side by side, others in each row, then padding."""
    ids_BT = np.zeros((B, T), np.int32)
    for b in range(B):
        stop = T - 2 * (b % 3)
        ids_BT[b, :stop] = 1 + np.arange(stop) // (5 + b % 3)
    return ids_BT


def case_for(cell: str, causal: str, S: int = 20) -> Case:
    """Returns what a cell asks of a variant that is causal "always", "never" or in "either" way.

    One whose causality is "built in" needs no mask for it, and takes none.

    Args:
      cell: a key of `CELLS`.
      causal: the variant's; a cell about something else is causal only if that is "always".
      S: keys, where the cell leaves it open.
    """
    always, able = causal == "always", causal in ("always", "either")
    base = Case(S=S, causal=always)
    change: dict[str, Any] = {"lengths_B": padded(2, S)}
    if cell == "packing":
        ids_BT = packed(2, 20)
        # Keys that are not the queries' own tokens have ids of their own.
        change = {"q_ids_BT": ids_BT, "k_ids_BS": ids_BT if S == 20 else packed(2, S)}
    elif cell == "causal" or (cell == "decode" and causal != "built in"):
        change = {"causal": True}
    elif cell == "decode":
        change = {}
    elif cell == "bidirectional":
        change = {"causal": False}
    elif cell == "GQA":
        change = {"N": 4, "causal": able}
    elif cell == "cross":
        S = 17 if S == 20 else S
        change = {"T": 9, "S": S, "lengths_B": padded(2, S), "causal": False}
    elif cell == "T ≠ S":
        change = {"T": 9, "S": 17 if S == 20 else S, "offset": 8, "causal": able}
    elif cell == "empty row":
        change = {"lengths_B": np.array([S, 0], np.int32)}
    elif cell in ("shard_map", "8 devices"):
        change = {"B": 8, "lengths_B": padded(8, S)}
    return dataclasses.replace(base, **change)
