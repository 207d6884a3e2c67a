"""Attention in linear time, as a model's choice: see ops/attention/performer.py and its neighbours.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, H head width, M features.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax

from jaxformer.modules.variants.base import (
    Attended,
    Given,
    Valid,
    Variant,
    attended,
    refused,
    without_packing,
)
from jaxformer.ops.attention import performer as favor
from jaxformer.ops.attention.linformer import linformer
from jaxformer.ops.attention.nystromformer import nystromformer


class Performer(Variant):
    """Random features in place of the softmax (Choromanski 2021).

    num_features: M. kernel: "softmax" or "relu". redraw: in training the features are drawn anew at
    each step; else, and without training, they are those of `seed`. regularised: rows of one norm.
    """

    num_features: int = 256
    kernel: str = "softmax"
    redraw: bool = True
    regularised: bool = False
    seed: int = 0

    HONOURS = frozenset()
    HAS_STATE = True
    RUNNING = frozenset({"redraw"})
    VALID: ClassVar[Valid] = {"kernel": favor.KERNELS, "seed": 0}

    def init_state(self, config: Any, batch_size: int, max_length: int) -> Any:
        """Returns the sums over no key, and nothing else: features are drawn again."""
        K, H = config.kv_heads, config.per_head
        return favor.init_state(batch_size, K, self.num_features, H)

    @nn.compact
    def __call__(self, q_BTNH, k_BSKH, v_BSKH, given: Given) -> Attended:
        key = jax.random.fold_in(jax.random.key(self.seed), given.layer)
        if self.redraw and given.key is not None:
            key = jax.random.fold_in(given.key, 1)
        features_MH = favor.orthogonal_features(
            key, self.num_features, q_BTNH.shape[-1], regularised=self.regularised
        )
        options = given.options() | {"features_MH": features_MH, "kernel": self.kernel}
        if not given.state:
            return attended(favor.performer(q_BTNH, k_BSKH, v_BSKH, **options), given)
        out_BTNH, state = favor.performer(
            q_BTNH, k_BSKH, v_BSKH, state=given.state, return_state=True, **options
        )
        return Attended(out_BTNH, None, state)


class Linformer(Variant):
    """Keys and values of a projected, shorter line (Wang 2020); up to model.max_length tokens.

    projected: C, the length that is left. sharing: "headwise" (one projection of keys and one of
    values for all heads of a layer), "key_value" (one for both), "none" (each head its own two).
    """

    projected: int = 256
    sharing: str = "headwise"

    CAUSAL = False
    PACKS = False
    HONOURS = frozenset({"dropout"})
    VALID: ClassVar[Valid] = {"sharing": ("headwise", "key_value", "none")}

    @nn.compact
    def __call__(self, q_BTNH, k_BSKH, v_BSKH, given: Given) -> Attended:
        shape: tuple[int, ...] = (given.config.max_length, self.projected)
        shape = (q_BTNH.shape[2], *shape) if self.sharing == "none" else shape
        start = nn.initializers.normal(self.projected**-0.5)
        keys = self.param("keys", start, shape)
        values = None if self.sharing == "key_value" else self.param("values", start, shape)
        given, packed_B = without_packing(given)
        options = given.options("dropout_rate", "key")
        result = linformer(q_BTNH, k_BSKH, v_BSKH, keys_NLC=keys, values_NLC=values, **options)
        return refused(attended(result, given), packed_B)


class Nystromformer(Variant):
    """Attention through landmarks (Xiong 2021).

    num_landmarks: parts of the line. convolution: width of the depthwise convolution of values that
    is added (0: none; the paper has 33). iterations: of the pseudo-inverse. start: see
    ops.attention's nystromformer.
    """

    num_landmarks: int = 64
    convolution: int = 0
    iterations: int = 6
    start: str = "matrix"

    VALID: ClassVar[Valid] = {"convolution": 0, "start": ("matrix", "global")}

    CAUSAL = False
    PACKS = False
    HONOURS = frozenset()

    @nn.compact
    def __call__(self, q_BTNH, k_BSKH, v_BSKH, given: Given) -> Attended:
        kernel_NW = None
        if self.convolution:
            shape = (q_BTNH.shape[2], self.convolution)
            kernel_NW = self.param("kernel", nn.initializers.normal(0.02), shape)
        given, packed_B = without_packing(given)
        result = nystromformer(
            q_BTNH, k_BSKH, v_BSKH, num_landmarks=self.num_landmarks, kernel_NW=kernel_NW,
            iterations=self.iterations, start=self.start, **given.options(),
        )  # fmt: skip
        return refused(attended(result, given), packed_B)
