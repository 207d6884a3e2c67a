"""What every way to attend is given, gives, and says about itself.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, H head width, D model width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import ops

Valid = Mapping[str, int | tuple[str, ...]]
_OF_FLAX = ("parent", "name")


class Given(NamedTuple):
    """What a variant is given besides queries, keys and values.

    offset is the position of query 0 among the keys, layer the number of the layer from 0. With a
    `state`, of `init_state`, the mask is that of the new tokens alone; the rest is in the state.
    """

    x_BTD: jax.Array
    mask: Any = None
    bias: Any = None
    scale: float | None = None
    soft_cap: float | None = None
    dropout_rate: float = 0.0
    key: jax.Array | None = None
    backend: str = "auto"
    offset: int | jax.Array = 0
    layer: int | jax.Array = 0
    global_BT: jax.Array | None = None
    config: Any = None
    state: Any = ()
    return_weights: bool = False

    def options(self, *names: str) -> dict[str, Any]:
        """Returns these as keyword arguments, and those that all functions have."""
        always = ("mask", "bias", "scale", "return_weights")
        return {name: getattr(self, name) for name in (*always, *names)}


class Attended(NamedTuple):
    """What a variant returns."""

    out_BTNH: jax.Array
    weights_BNTS: jax.Array | None = None
    state: Any = ()


class Variant(nn.Module):
    """A way to attend. What a kind cannot do is said by its class, and asked before training.

    CAUSAL and BIDIRECTIONAL: may stand in a decoder, in an encoder. HONOURS: which of "bias",
    "soft_cap" and "dropout" it takes. HAS_STATE: a decode step reads `state`, not a cache of keys.
    PACKS: rows may hold several texts. RUNNING: fields that change how it is computed, not which
    function of the parameters it is. VALID: the words that a field may be, or the least number,
    where that is not 1 (of a float: anything above 0).
    """

    CAUSAL = True
    BIDIRECTIONAL = True
    HONOURS = frozenset({"bias", "soft_cap", "dropout"})
    HAS_STATE = False
    PACKS = True
    RUNNING: ClassVar[frozenset[str]] = frozenset()
    VALID: ClassVar[Valid] = {}

    def complaint(self, config: Any) -> str:
        """Returns what it cannot have, of its own fields or a model's config, after its name; or
        ""."""
        return ""

    def bound_to_places(self) -> bool:
        """Whether what a token sees depends on its place in the row: what stands before its text,
        padding or another text, then makes it another."""
        return False

    def rotary_width(self, config: Any) -> int:
        """Returns how many channels of a head RoPE turns."""
        return config.per_head

    def cached(self, config: Any) -> tuple[int, int, int]:
        """Returns how many matrices a row's cache of keys holds, and keys' and values' widths."""
        return config.kv_heads, config.per_head, config.per_head

    @nn.nowrap
    def projections(self, config: Any, name: str) -> nn.Module | None:
        """Returns what makes queries, keys and values of (x_BTD, turn), where it is not the usual
        three matrices; `turn` is RoPE."""
        return None

    def init_state(self, config: Any, batch_size: int, max_length: int) -> Any:
        """Returns what the layer knows before the first token; leaves have rows in front."""
        return ()

    def __call__(
        self, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, given: Given
    ) -> Attended:
        """Attends; each kind has its own."""
        raise NotImplementedError


class Choice(NamedTuple):
    """A kind of variant, with its arguments."""

    kind: type[Variant]
    arguments: dict[str, Any]

    def make(self, name: str | None = None) -> Variant:
        """Returns the module."""
        return self.kind(**self.arguments, name=name)

    def get(self, argument: str) -> Any:
        """Returns an argument's value, given or by default; None if the kind has no such one."""
        return self.arguments.get(argument, getattr(self.kind, argument, None))

    def function(self) -> tuple[Any, ...]:
        """Returns what says which function of the parameters this is: equal where that is."""
        fields = (f.name for f in dataclasses.fields(self.kind) if f.name not in _OF_FLAX)
        return (self.kind.__name__, *(self.get(x) for x in fields if x not in self.kind.RUNNING))


def attended(result: Any, given: Given) -> Attended:
    """Returns what a function of the one signature gave, with or without weights."""
    return Attended(*result) if given.return_weights else Attended(result)


def without_packing(given: Given) -> tuple[Given, jax.Array | None]:
    """Returns what is given, segments read as padding, and which rows hold several texts."""
    kept, seen_BS, packed_B = None, None, None
    for part in ops.masks.parts(given.mask):
        if isinstance(part, ops.masks.Segments):
            seen_BS, packed_B = part.kv_segment_ids_BS != 0, (part.kv_segment_ids_BS > 1).any(1)
            part = ops.masks.explicit(seen_BS[:, None, None, :])
        kept = part if kept is None else kept & part
    return given._replace(mask=kept), packed_B


def refused(result: Attended, packed_B: jax.Array | None) -> Attended:
    """Returns NaN for rows of several texts: these would see each other, and nobody would know."""
    if packed_B is None:
        return result
    out_BTNH = jnp.where(packed_B[:, None, None, None], jnp.nan, result.out_BTNH)
    return result._replace(out_BTNH=out_BTNH)
