"""Multi-head attention: the projections' parameters around one call of ops.attention.

B batch, T query time, S key time, N heads, K key/value heads, H head width, D model width.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax

from jaxformer import ops
from jaxformer.modules.config import TransformerConfig


class KeyValues(NamedTuple):
    """One layer's cache: keys and values of all positions so far, and where the next ones go.

    Heads stand before positions, so that the matmuls of a decode step read it as it lies.
    """

    k_BKSH: jax.Array
    v_BKSH: jax.Array
    index: jax.Array  # int32 scalar
    history_BPD: tuple[jax.Array, ...] = ()  # the last inputs of the block's short convolutions

    def append(self, k_BTKH: jax.Array, v_BTKH: jax.Array) -> KeyValues:
        """Returns the cache with T more positions written at `index`."""

        def write(old_BKSH: jax.Array, new_BTKH: jax.Array) -> jax.Array:
            new_BKTH = new_BTKH.swapaxes(1, 2).astype(old_BKSH.dtype)
            return jax.lax.dynamic_update_slice(old_BKSH, new_BKTH, (0, 0, self.index, 0))

        k_BKSH, v_BKSH = write(self.k_BKSH, k_BTKH), write(self.v_BKSH, v_BTKH)
        return self._replace(
            k_BKSH=k_BKSH, v_BKSH=v_BKSH, index=self.index + k_BTKH.shape[1]
        )


class Rotary(NamedTuple):
    """RoPE's inputs: positions [B|1, T] and inverse frequencies [H/2]."""

    positions_BT: jax.Array
    frequencies: jax.Array
    attention_factor: float = 1.0


class Attention(nn.Module):
    """Self-attention, or cross-attention where `kv_BSD` is given (Vaswani 2017, section 3.2)."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        *,
        kv_BSD: jax.Array | None = None,
        mask=None,
        bias=None,
        rotary: Rotary | None = None,
        cache: KeyValues | None = None,
        key: jax.Array | None = None,
        return_weights: bool = False,
    ) -> tuple[jax.Array, KeyValues | None, jax.Array | None]:
        """Returns (out_BTD, cache with these keys or None, weights_BNTS or None)."""
        c, D = self.config, x_BTD.shape[-1]
        N, K, H = c.num_heads, c.kv_heads, c.per_head
        normal = nn.initializers.normal(c.init_std)
        zeros = nn.initializers.zeros

        def project(name: str, x: jax.Array, heads: int) -> jax.Array:
            weight = self.param(name, normal, (D, heads, H))
            offset = self.param(f"{name}_bias", zeros, (heads, H)) if c.bias else None
            return ops.linear(x, weight, offset)

        source_BSD = x_BTD if kv_BSD is None else kv_BSD
        q_BTNH = project("q", x_BTD, N)
        k_BSKH = project("k", source_BSD, K)
        v_BSKH = project("v", source_BSD, K)
        if c.qk_norm:
            q_scale = self.param("q_norm", nn.initializers.ones, (H,)) if c.norm_scale else None
            k_scale = self.param("k_norm", nn.initializers.ones, (H,)) if c.norm_scale else None
            q_BTNH = ops.rms_norm(q_BTNH, q_scale, eps=c.norm_epsilon)
            k_BSKH = ops.rms_norm(k_BSKH, k_scale, eps=c.norm_epsilon)
        if rotary is not None:

            def turn(x: jax.Array) -> jax.Array:
                return ops.rope(
                    x, rotary.positions_BT, rotary.frequencies,
                    interleaved=c.positions == "rope_interleaved",
                    attention_factor=rotary.attention_factor,
                )  # fmt: skip

            q_BTNH, k_BSKH = turn(q_BTNH), turn(k_BSKH)
        if cache is not None:
            cache = cache.append(k_BSKH, v_BSKH)
            k_BSKH, v_BSKH = cache.k_BKSH.swapaxes(1, 2), cache.v_BKSH.swapaxes(1, 2)

        result = ops.attention(
            q_BTNH,
            k_BSKH.astype(q_BTNH.dtype),
            v_BSKH.astype(q_BTNH.dtype),
            mask=mask,
            bias=bias,
            scale=c.attention_scale or None,
            soft_cap=c.attention_soft_cap or None,
            dropout_rate=c.attention_dropout if key is not None else 0.0,
            key=key,
            backend=c.attention_backend,
            return_weights=return_weights,
        )
        out_BTNH, weights_BNTS = result if return_weights else (result, None)
        # As in GPT-2, outputs into the residual stream start smaller with depth.
        std = c.init_std / (2 * c.num_layers) ** 0.5
        start = zeros if c.zero_init_output else nn.initializers.normal(std)
        w_NHD = self.param("out", start, (N, H, D))
        out_bias = self.param("out_bias", zeros, (D,)) if c.bias else None
        return ops.linear(out_BTNH, w_NHD, out_bias, axes=2), cache, weights_BNTS
