"""Multi-head attention: the projections' parameters around one call of ops.attention.

B batch, T query time, S key time, N heads, K key/value heads, H head width, D model width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.errors import UserError
from jaxformer.modules import initial, variants
from jaxformer.modules.config import TransformerConfig


class KeyValues(NamedTuple):
    """One layer's cache: keys and values of all positions so far, and where the next ones go.

    They lie as the two matmuls of a decode step read them, C = B * K matrices each: otherwise XLA
    copies and transposes the whole cache at every step. Keys and values may differ in width.
    """

    k_CSH: jax.Array
    v_CHS: jax.Array
    index: jax.Array  # int32 scalar
    history_BPD: tuple[jax.Array, ...] = ()  # the last inputs of the block's short convolutions
    state: Any = ()  # of a variant that keeps one instead of keys and values

    def append(self, k_BTKH: jax.Array, v_BTKH: jax.Array) -> KeyValues:
        """Returns the cache with T more positions written at `index`."""
        B, T, K, H = k_BTKH.shape
        k_CTH = k_BTKH.transpose(0, 2, 1, 3).reshape(B * K, T, H).astype(self.k_CSH.dtype)
        v_CHT = v_BTKH.transpose(0, 2, 3, 1).reshape(B * K, v_BTKH.shape[3], T)
        v_CHT = v_CHT.astype(self.v_CHS.dtype)
        write = jax.lax.dynamic_update_slice
        return self._replace(
            k_CSH=write(self.k_CSH, k_CTH, (0, self.index, 0)),
            v_CHS=write(self.v_CHS, v_CHT, (0, 0, self.index)),
            index=self.index + T,
        )

    def read(self, batch_size: int) -> tuple[jax.Array, jax.Array]:
        """Returns (k_BSKH, v_BSKH)."""
        S, H = self.k_CSH.shape[1:]
        k_BSKH = self.k_CSH.reshape(batch_size, -1, S, H).transpose(0, 2, 1, 3)
        v_BSKH = self.v_CHS.reshape(batch_size, -1, self.v_CHS.shape[1], S).transpose(0, 3, 1, 2)
        return k_BSKH, v_BSKH


def join_projections(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns self-attention's parameters with q, k and v as one "qkv", of N + 2K heads.

    One matmul instead of three: worth it where a decode step has but one row to multiply.
    """
    joined = {
        name: x for name, x in params.items() if name.removesuffix("_bias") not in tuple("qkv")
    }
    for end, axis in (("", 1), ("_bias", 0)):
        if f"q{end}" in params:
            parts = [params[f"{name}{end}"] for name in "qkv"]
            joined[f"qkv{end}"] = jnp.concatenate(parts, axis=axis)
    return joined


def project_memory(params: dict[str, jax.Array], source_BSD: jax.Array) -> KeyValues:
    """Returns the keys and values of a cross-attention over `source_BSD`, for all decode steps."""
    k_BSKH = ops.linear(source_BSD, params["k"], params.get("k_bias"))
    v_BSKH = ops.linear(source_BSD, params["v"], params.get("v_bias"))
    B, S, K, H = k_BSKH.shape
    empty = KeyValues(
        jnp.zeros((B * K, S, H), k_BSKH.dtype),
        jnp.zeros((B * K, H, S), k_BSKH.dtype),
        jnp.zeros((), jnp.int32),
    )
    return empty.append(k_BSKH, v_BSKH)


class Maps(NamedTuple):
    """Which attention weights are wanted, instead of all: () is all layers, heads or queries."""

    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()


class Rotary(NamedTuple):
    """RoPE's inputs: positions [B|1, T] and inverse frequencies [H/2]."""

    positions_BT: jax.Array
    frequencies: jax.Array
    attention_factor: float = 1.0

    def turn(self, x_BTNH: jax.Array, *, interleaved: bool) -> jax.Array:
        """Returns queries or keys at these positions."""
        return ops.rope(
            x_BTNH, self.positions_BT, self.frequencies, interleaved=interleaved,
            attention_factor=self.attention_factor,
        )  # fmt: skip


class Attention(nn.Module):
    """Self-attention, or `cross`-attention over kv_BSD or memory (Vaswani 2017, section 3.2).

    `variant` is how a family attends that has a way of its own; else the config says it.
    """

    config: TransformerConfig
    cross: bool = False
    variant: type[variants.Variant] | None = None

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
        memory: KeyValues | None = None,
        offset: int | jax.Array = 0,
        layer: int | jax.Array = 0,
        global_BT: jax.Array | None = None,
        key: jax.Array | None = None,
        return_weights: bool | Maps = False,
    ) -> tuple[jax.Array, KeyValues | None, jax.Array | None]:
        """Returns (out_BTD, cache with these keys or None, weights_BNTS or None).

        Of Maps, only the weights of its heads and queries ever exist.

        `memory` holds the keys and values of cross-attention, from `project_memory`. `offset` is
        the position of query 0 among the keys, `layer` this layer's number from 0, and `global_BT`
        says which tokens all may see: for the variants of self-attention (see `variants`).
        """
        c, D = self.config, x_BTD.shape[-1]
        N, K, H = c.num_heads, c.kv_heads, c.per_head

        def project(name: str, x: jax.Array, heads: int) -> jax.Array:
            weight = self.param(name, initial.inner(c, D), (D, heads, H))
            biased = c.bias or c.qkv_bias
            offset = self.param(f"{name}_bias", initial.zeros, (heads, H)) if biased else None
            return ops.linear(x, weight, offset)

        def normed(name: str, x_BTNH: jax.Array) -> jax.Array:
            width = x_BTNH.shape[2] * H if c.qk_norm_all_heads else H
            plus_one = c.norm == "rms_norm_plus_one"
            start = initial.zeros if plus_one else initial.ones
            scale = self.param(name, start, (width,)) if c.norm_scale else None
            x = x_BTNH.reshape(*x_BTNH.shape[:2], -1, width)
            x = ops.rms_norm(x, scale, eps=c.norm_epsilon, offset=float(plus_one))
            return x.reshape(x_BTNH.shape)

        def turn(x: jax.Array) -> jax.Array:
            if rotary is None:
                return x
            return rotary.turn(x, interleaved=c.positions == "rope_interleaved")

        variant = None if self.cross else variants.parse(c.attention)
        if self.variant is not None:
            variant = variants.Choice(self.variant, {})
        attend = None if variant is None else variant.make("variant")
        own = None if attend is None else attend.projections(c, "projections")
        if own is not None:
            q_BTNH, k_BSKH, v_BSKH = own(x_BTD, turn)
        elif memory is not None:  # the source's keys and values, projected once
            q_BTNH = project("q", x_BTD, N)
            k_BSKH, v_BSKH = memory.read(x_BTD.shape[0])
        elif self.has_variable("params", "qkv"):  # from join_projections
            q_BTNH, k_BSKH, v_BSKH = jnp.split(project("qkv", x_BTD, N + 2 * K), (N, N + K), axis=2)
        else:
            source_BSD = x_BTD if kv_BSD is None else kv_BSD
            q_BTNH = project("q", x_BTD, N)
            k_BSKH = project("k", source_BSD, K)
            v_BSKH = project("v", source_BSD, K)
        if c.qk_norm:
            q_BTNH = normed("q_norm", q_BTNH)
            k_BSKH = normed("k_norm", k_BSKH) if memory is None else k_BSKH
        if c.qk_scale:
            factor_N = self.param("qk_scale", nn.initializers.constant(c.qk_scale), (N,))
            q_BTNH = q_BTNH * factor_N[:, None].astype(q_BTNH.dtype)
        if own is None:
            q_BTNH, k_BSKH = turn(q_BTNH), turn(k_BSKH)
        state: Any = ()
        if cache is not None and variant is not None and variant.kind.HAS_STATE:
            state = cache.state
        elif cache is not None:
            cache = cache.append(k_BSKH, v_BSKH)
            k_BSKH, v_BSKH = cache.read(x_BTD.shape[0])
        k_BSKH, v_BSKH = k_BSKH.astype(q_BTNH.dtype), v_BSKH.astype(q_BTNH.dtype)
        part = return_weights if isinstance(return_weights, Maps) else None
        if part is not None and variant is not None:
            raise UserError(
                f"model.attention={c.attention} gives the weights of all its heads and queries "
                "alone; ask for all of them"
            )
        whole = bool(return_weights) and part is None
        given = variants.Given(
            x_BTD, mask, bias, c.attention_scale or None, c.attention_soft_cap or None,
            c.attention_dropout if key is not None else 0.0, key, c.attention_backend, offset,
            layer, global_BT, c, state, whole,
        )  # fmt: skip
        if attend is None:
            usual = given.options("soft_cap", "dropout_rate", "key", "backend")
            result = ops.attention(q_BTNH, k_BSKH, v_BSKH, **usual)
            out_BTNH, weights_BNTS = result if whole else (result, None)
            if part is not None:
                weights_BNTS = ops.attention_weights(
                    q_BTNH, k_BSKH, heads=part.heads or None, rows=part.rows or None, mask=mask,
                    bias=bias, scale=given.scale, soft_cap=given.soft_cap,
                )  # fmt: skip
        else:
            out_BTNH, weights_BNTS, state = attend(q_BTNH, k_BSKH, v_BSKH, given)
            cache = None if cache is None else cache._replace(state=state)
        w_NHD = self.param("out", initial.output(c, N * H), (N, H, D))
        biased = c.bias or c.attention_out_bias
        out_bias = self.param("out_bias", initial.zeros, (D,)) if biased else None
        return ops.linear(out_BTNH, w_NHD, out_bias, axes=2), cache, weights_BNTS
