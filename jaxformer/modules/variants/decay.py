"""Linear attention as a model's choice: plain, RetNet's fading, or with gates from the data (GLA).

Shapes: B batch, T queries, S keys, N heads, K key/value heads, H head width, D model width,
R rank of the gate's projection.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.modules.variants.base import Attended, Given, Variant, attended
from jaxformer.ops.attention import linear_attention as linear


class LinearAttention(Variant):
    """phi(q) phi(k), phi = elu + 1, in place of the softmax (Katharopoulos 2020)."""

    HONOURS = frozenset()
    HAS_STATE = True

    def init_state(self, config: Any, batch_size: int, max_length: int) -> Any:
        """Returns the sums over no key."""
        return _state(config, batch_size, decayed=False)

    @nn.compact
    def __call__(self, q_BTNH, k_BSKH, v_BSKH, given: Given) -> Attended:
        return _attend(q_BTNH, k_BSKH, v_BSKH, given)


class Retention(Variant):
    """RetNet's: a fixed decay of each head, a norm of each head, a gate (Sun 2023, section 2.2).

    gate: swish(x W) multiplies the normalised heads, as published.
    """

    gate: bool = True

    BIDIRECTIONAL = False
    HONOURS = frozenset()
    HAS_STATE = True

    def init_state(self, config: Any, batch_size: int, max_length: int) -> Any:
        """Returns the sums over no key."""
        return _state(config, batch_size, decayed=True)

    @nn.compact
    def __call__(self, q_BTNH, k_BSKH, v_BSKH, given: Given) -> Attended:
        decay_N = linear.retention_log_decay(q_BTNH.shape[2])
        result = _attend(q_BTNH, k_BSKH, v_BSKH, given, log_decay=decay_N, kernel="identity")
        return _gated(self, result, given, self.gate)


class GatedLinear(Variant):
    """GLA: each channel of the state fades as the token says (Yang 2024, section 4).

    rank: of the projection that the decay comes from; temperature: sigmoid(x W)^(1 / temperature).
    """

    rank: int = 16
    temperature: float = 16.0
    gate: bool = True

    BIDIRECTIONAL = False
    HONOURS = frozenset()
    HAS_STATE = True

    def init_state(self, config: Any, batch_size: int, max_length: int) -> Any:
        """Returns the sums over no key."""
        return _state(config, batch_size, decayed=True)

    @nn.compact
    def __call__(self, q_BTNH, k_BSKH, v_BSKH, given: Given) -> Attended:
        (N, H), D = q_BTNH.shape[2:], given.x_BTD.shape[-1]
        w_DR = self.param("decay_in", nn.initializers.normal(D**-0.5), (D, self.rank))
        w_RNH = self.param("decay_out", nn.initializers.normal(self.rank**-0.5), (self.rank, N, H))
        bias_NH = self.param("decay_bias", nn.initializers.zeros, (N, H))
        logit_BTNH = ops.linear(ops.linear(given.x_BTD, w_DR), w_RNH, bias_NH)
        decay_BTNH = jax.nn.log_sigmoid(logit_BTNH.astype(jnp.float32)) / self.temperature
        result = _attend(q_BTNH, k_BSKH, v_BSKH, given, log_decay=decay_BTNH, kernel="identity")
        return _gated(self, result, given, self.gate)


def _state(config: Any, batch_size: int, *, decayed: bool) -> Any:
    return linear.init_state(
        batch_size, config.num_heads, config.kv_heads, config.per_head, decayed=decayed
    )


def _attend(q_BTNH, k_BSKH, v_BSKH, given: Given, **more: Any) -> Attended:
    if not given.state:
        result = linear.linear_attention(q_BTNH, k_BSKH, v_BSKH, **given.options(), **more)
        return attended(result, given)
    out_BTNH, state = linear.linear_attention(
        q_BTNH, k_BSKH, v_BSKH, **given.options(), state=given.state, return_state=True, **more
    )
    return Attended(out_BTNH, None, state)


def _gated(module: Variant, result: Attended, given: Given, gate: bool) -> Attended:
    """Normalises each head, for sums grow with the text, and multiplies by the gate."""
    (N, H), D = result.out_BTNH.shape[2:], given.x_BTD.shape[-1]
    out_BTNH = ops.rms_norm(result.out_BTNH, eps=1e-6)
    if gate:
        w_DNH = module.param("gate", nn.initializers.normal(D**-0.5), (D, N, H))
        out_BTNH = out_BTNH * jax.nn.silu(ops.linear(given.x_BTD, w_DNH))
    return result._replace(out_BTNH=out_BTNH)
