"""How the layer attends that has a memory (Wu 2022, section 3.1), and all layers beside it.

B batch, T queries, S keys, N heads, K key/value heads, H head width, M memory entries.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxformer import ops
from jaxformer.modules.attention import Rotary
from jaxformer.modules.variants import Attended, Given, Variant
from jaxformer.modules.variants.base import attended
from jaxformer.ops import masks
from jaxformer.ops.attention.memory import gated, memory_attention
from jaxformer.ops.masks import Index, Mask


@masks.pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Turn:
    """RoPE of near queries and keys, at positions [B, T] and [B, S]."""

    q_BT: jax.Array
    k_BS: jax.Array
    frequencies: jax.Array
    attention_factor: float
    interleaved: bool

    def __call__(self, x_BTNH: jax.Array, positions_BT: jax.Array) -> jax.Array:
        rotary = Rotary(positions_BT, self.frequencies, self.attention_factor)
        return rotary.turn(x_BTNH, interleaved=self.interleaved)


@masks.pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Remembering(Mask):
    """What tokens of the layer with a memory see: `near` as in all layers, `far` by search.

    near and far are masks: of the keys, and of what is searched, which has no position. gate_N is
    of each head.
    """

    near: Any
    far: Any
    gate_N: jax.Array
    top_k: int
    approximate: bool
    turn: Any = None

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        return self.near.block(q_index_t, k_index_s)


class Searching(Variant):
    """Softmax; under a Remembering mask also a search of the same keys and values."""

    def __call__(self, q_BTNH, k_BSKH, v_BSKH, given: Given) -> Attended:
        if not isinstance(given.mask, Remembering):
            return _near(q_BTNH, k_BSKH, v_BSKH, given)
        near = _near(q_BTNH, k_BSKH, v_BSKH, given)
        return near._replace(out_BTNH=_with_far(near, q_BTNH, k_BSKH, v_BSKH, given))


class ReadingOn(Variant):
    """As Searching, for one segment: the search is in {"k", "v"} [B, M, K, H] of those before.

    Its new state is what the segment adds to that.
    """

    HAS_STATE = True

    def __call__(self, q_BTNH, k_BSKH, v_BSKH, given: Given) -> Attended:
        if not isinstance(given.mask, Remembering):
            return _near(q_BTNH, k_BSKH, v_BSKH, given)
        near = _near(q_BTNH, k_BSKH, v_BSKH, given)
        out_BTNH = _with_far(near, q_BTNH, given.state["k"], given.state["v"], given)
        return near._replace(out_BTNH=out_BTNH, state={"k": k_BSKH, "v": v_BSKH})


def _near(q_BTNH, k_BSKH, v_BSKH, given: Given) -> Attended:
    if isinstance(given.mask, Remembering):
        turn, given = given.mask.turn, given._replace(mask=given.mask.near)
        if turn is not None:
            q_BTNH, k_BSKH = turn(q_BTNH, turn.q_BT), turn(k_BSKH, turn.k_BS)
    usual = given.options("soft_cap", "dropout_rate", "key", "backend")
    return attended(ops.attention(q_BTNH, k_BSKH, v_BSKH, **usual), given)


def _with_far(near: Attended, q_BTNH, k_BMKH, v_BMKH, given: Given) -> jax.Array:
    sees: Remembering = given.mask
    found_BTNH = memory_attention(
        q_BTNH, k_BMKH, v_BMKH, top_k=sees.top_k, mask=sees.far, scale=given.scale,
        approximate=sees.approximate,
    )  # fmt: skip
    return gated(near.out_BTNH, found_BTNH, sees.gate_N)
