"""Differential attention as a model's choice: see ops/attention/differential.py.

Shapes: B batch, T queries, S keys, N heads, n = N/2 pairs, K key/value heads, H head width.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from jaxformer import ops
from jaxformer.modules.variants.base import Attended, Given, Variant
from jaxformer.ops.attention.differential import (
    differential_attention,
    differential_factor,
    differential_start,
)


class Differential(Variant):
    """The difference of two softmaxes (Ye 2025): num_heads makes half as many pairs.

    A model has as many parameters as with softmax, and four vectors and a norm's scale more.
    """

    epsilon: float = 1e-5

    def complaint(self, config: Any) -> str:
        """Returns what of a model's config this cannot have, or ""."""
        if config.num_heads % 2 or config.kv_heads % 2:
            return (
                f"pairs heads, and {config.num_heads} heads with {config.kv_heads} keys do not "
                "pair; set model.num_heads and model.num_kv_heads to even numbers"
            )
        return ""

    @nn.compact
    def __call__(self, q_BTNH, k_BSKH, v_BSKH, given: Given) -> Attended:
        (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
        start = differential_start(given.layer)
        q1_H, k1_H, q2_H, k2_H = (
            self.param(f"lambda_{name}", nn.initializers.normal(0.1), (H,))
            for name in ("q1", "k1", "q2", "k2")
        )
        result = differential_attention(
            q_BTNH, k_BSKH, v_BSKH.reshape(B, S, K // 2, 2 * H),
            factor=differential_factor(q1_H, k1_H, q2_H, k2_H, start),
            **given.options("soft_cap", "dropout_rate", "key", "backend"),
        )  # fmt: skip
        out, weights_BnTS = result if given.return_weights else (result, None)
        scale = self.param("scale", nn.initializers.ones, (2 * H,))
        out = ops.rms_norm(out, scale, eps=self.epsilon) * (1.0 - start).astype(out.dtype)
        return Attended(out.reshape(B, T, N, H), weights_BnTS)
