"""Exact attention to a part of the keys, as a model's choice: see ops/attention for each.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, H head width, D model width,
I inner blocks, R random blocks, L layers.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.modules.variants.base import (
    Attended,
    Given,
    Valid,
    Variant,
    attended,
    refused,
    without_packing,
)  # fmt: skip
from jaxformer.modules.variants.bigbird_plan import blocks_before, random_blocks
from jaxformer.ops.attention.bigbird import bigbird
from jaxformer.ops.attention.block_local import block_local
from jaxformer.ops.attention.longformer import longformer
from jaxformer.ops.attention.sliding_window import sliding_window
from jaxformer.ops.indices import in_place


class SlidingWindow(Variant):
    """A window around each token; see ops.attention's sliding_window.

    left, right: tokens seen before and after the own one (a decoder sees none after, whatever right
    says); dilation: the gaps between them; sinks: first tokens that stay visible; learned_sink: a
    learned logit of each head in the denominator (gpt-oss).
    """

    left: int = 127
    right: int = 0
    dilation: int = 1
    sinks: int = 0
    learned_sink: bool = False

    VALID: ClassVar[Valid] = {"left": 0, "right": 0, "sinks": 0}

    def bound_to_places(self) -> bool:
        """Sinks are the first places of the row."""
        return self.sinks > 0

    @nn.compact
    def __call__(self, q_BTNH, k_BSKH, v_BSKH, given: Given) -> Attended:
        sink_N = None
        if self.learned_sink:
            sink_N = self.param("sink", nn.initializers.zeros, (q_BTNH.shape[2],))
        result = sliding_window(
            q_BTNH, k_BSKH, v_BSKH, left=self.left, right=self.right, dilation=self.dilation,
            sinks=self.sinks, sink_logits_N=sink_N,
            **given.options("soft_cap", "dropout_rate", "key", "offset"),
        )  # fmt: skip
        return attended(result, given)


class BlockLocal(Variant):
    """Each block of tokens for itself, or with `look_back` earlier ones (Llama 4's chunks)."""

    block: int = 128
    look_back: int = 0

    VALID: ClassVar[Valid] = {"look_back": 0}

    def bound_to_places(self) -> bool:
        """Blocks begin at the row's first place."""
        return True

    @nn.compact
    def __call__(self, q_BTNH, k_BSKH, v_BSKH, given: Given) -> Attended:
        result = block_local(
            q_BTNH, k_BSKH, v_BSKH, block=self.block, look_back=self.look_back,
            **given.options("soft_cap", "dropout_rate", "key", "offset"),
        )  # fmt: skip
        return attended(result, given)


class Longformer(Variant):
    """A window and global tokens, which have projections of their own (Beltagy 2020).

    window: tokens seen around the own one, half of them on each side (a decoder sees none after).
    global_tokens: which are global where the batch does not say ("global_tokens"): "given": none,
    "first": each text's first. max_global: room for so many in a row; a row with more comes out as
    NaN.
    """

    window: int = 512
    global_tokens: str = "given"
    max_global: int = 64

    HONOURS = frozenset({"dropout"})
    RUNNING = frozenset({"max_global"})
    VALID: ClassVar[Valid] = {"global_tokens": ("given", "first"), "max_global": 0}

    def complaint(self, config: Any) -> str:
        """Returns what it cannot have, or ""."""
        return "has a window of two sides; give it an even number" if self.window % 2 else ""

    @nn.compact
    def __call__(self, q_BTNH, k_BSKH, v_BSKH, given: Given) -> Attended:
        D, H = given.x_BTD.shape[-1], q_BTNH.shape[-1]

        def project(name: str, heads: int) -> Any:
            weight = self.param(f"{name}_global", nn.initializers.normal(0.02), (D, heads, H))
            biased = given.config.bias or given.config.qkv_bias
            zeros = nn.initializers.zeros
            bias = self.param(f"{name}_global_bias", zeros, (heads, H)) if biased else None
            return ops.linear(given.x_BTD, weight, bias)

        room, (S, K) = self.max_global, k_BSKH.shape[1:3]
        own = {
            f"global_{name}_B{axes}H": project(name, heads)
            for name, axes, heads in (("q", "TN", q_BTNH.shape[2]), ("k", "SK", K), ("v", "SK", K))
        }
        if not in_place(q_BTNH.shape[1], S, given.offset):
            # The keys are a cache's, of one text, whose first token is global if any is. It sees
            # no other, so that of the past nothing is needed in its own projection.
            room = min(room, 1)
            for name in ("global_k_BSKH", "global_v_BSKH"):
                past_BSKH = jnp.zeros_like(k_BSKH)
                new_BTKH = own[name].astype(past_BSKH.dtype)
                own[name] = jax.lax.dynamic_update_slice_in_dim(
                    past_BSKH, new_BTKH, given.offset, 1
                )
        result = longformer(
            q_BTNH, k_BSKH, v_BSKH, window=self.window, is_global_BS=given.global_BT,
            max_global=room, **own, **given.options("dropout_rate", "key", "offset"),
        )  # fmt: skip
        return attended(result, given)


class BigBird(Variant):
    """Blocks of keys: a window, the ends of the line, and random ones (Zaheer 2020).

    block: tokens of a block. num_random: random blocks that a block sees. random: "published" (the
    plan of the published programs, seeded by the layer's number) or "zero" (all are block 0, as
    transformers computes it in evaluation). Up to (5 + 2 num_random) blocks all see all. A decoder,
    which the paper does not have, draws among the blocks before, and has no last one.
    """

    block: int = 64
    num_random: int = 3
    random: str = "published"

    PACKS = False
    HONOURS = frozenset({"dropout"})
    RUNNING = frozenset({"random"})
    VALID: ClassVar[Valid] = {"num_random": 0, "random": ("published", "zero")}

    def bound_to_places(self) -> bool:
        """Blocks begin at the row's first place, and its first and last are seen by all."""
        return True

    @nn.compact
    def __call__(self, q_BTNH, k_BSKH, v_BSKH, given: Given) -> Attended:
        given, packed_B = without_packing(given)
        return refused(self.attend(q_BTNH, k_BSKH, v_BSKH, given), packed_B)

    def attend(self, q_BTNH, k_BSKH, v_BSKH, given: Given) -> Attended:
        """Attends to rows of one text."""
        N, S = q_BTNH.shape[2], k_BSKH.shape[1]
        causal = ops.masks.is_causal(given.mask)
        options = given.options("dropout_rate", "key")
        if not causal and (5 + 2 * self.num_random) * self.block >= S:
            return attended(ops.attention(q_BTNH, k_BSKH, v_BSKH, **options), given)
        n, c = -(-S // self.block), given.config

        def drawn(layer: int):
            if causal:
                return blocks_before(n, self.num_random, N, layer)
            return random_blocks(
                n * self.block, self.block, self.num_random, N, layer, longest=c.max_length
            )

        plan: dict[str, Any] = {"repeat_first": self.num_random}
        if self.random == "published":
            plans_LNIR = jnp.stack([drawn(layer) for layer in range(c.num_layers)])
            plan = {"random_NIR": plans_LNIR[given.layer]}
        result = bigbird(
            q_BTNH, k_BSKH, v_BSKH, block=self.block, offset=given.offset, **plan, **options
        )
        return attended(result, given)
