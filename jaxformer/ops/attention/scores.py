"""What the backends share: products per head, and the logits of one block, masked.

Shapes: B batch, N heads, K key/value heads, G = N/K, H head width, t queries and s keys of a block.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.ops import masks
from jaxformer.ops.linear import einsum
from jaxformer.ops.masks import Index, Mask


@masks.pytree
@dataclasses.dataclass(frozen=True, eq=False)
class ArrayBias:
    """An array that broadcasts to [B, N, T, S], with the interface of a bias spec."""

    bias_BNTS: jax.Array

    def block(self, q_index_t: Index, k_index_s: Index) -> jax.Array:
        return masks.block_of_array(self.bias_BNTS, q_index_t, k_index_s)


def as_bias(bias: Any) -> Any:
    """Returns a bias spec for a spec, an array that broadcasts to [B, N, T, S], or None."""
    if bias is None or hasattr(bias, "block"):
        return bias
    return ArrayBias(masks.four_axes(jnp.asarray(bias), "bias"))


def block_logits(
    q_BtKGH: jax.Array,
    k_BsKH: jax.Array,
    bias_BNts: jax.Array | None,
    mask_BNts: jax.Array | None,
    *,
    scale: float,
    soft_cap: float | None,
) -> jax.Array:
    """Returns float32 logits [B, K, G, t, s]: scaled, capped, biased, and -inf where masked.

    The order (cap, then bias, then mask) is that of Gemma 2 (Gemma Team, 2024, section 2).
    """
    raw_BKGts = scale * einsum("BtKGH,BsKH->BKGts", q_BtKGH, k_BsKH, out_dtype=jnp.float32)
    return finish(raw_BKGts, bias_BNts, mask_BNts, soft_cap)


def dot(a_BKmc: jax.Array, b: jax.Array, *, transposed: bool = False) -> jax.Array:
    """Product per head, in the accumulator's dtype; b is [B, K, c, n], or transposed [B, K, n, c].

    These two orientations run at full speed on a CPU; a contraction over a's third axis does not.
    """
    dims = (((3,), (3 if transposed else 2,)), ((0, 1), (0, 1)))
    accumulate = jnp.promote_types(a_BKmc.dtype, jnp.float32)
    return jax.lax.dot_general(a_BKmc, b, dims, preferred_element_type=accumulate)


def transposed(x: jax.Array, order: tuple[int, ...]) -> jax.Array:
    """Transposes into memory. Left to itself XLA only relabels the axes, and computes bf16 matmuls
    of such operands in float32 on a CPU; the barrier keeps the reshape, whose result has the
    default layout, from being simplified away."""
    x = jax.lax.transpose(x, order)
    return jax.lax.optimization_barrier(x[None]).reshape(x.shape)


def finish(
    logits_BKGts: jax.Array,
    bias_BNts: jax.Array | None,
    mask_BNts: jax.Array | None,
    soft_cap: float | None,
) -> jax.Array:
    """Caps, biases and masks scaled logits."""
    num_kv_heads = logits_BKGts.shape[1]
    if soft_cap is not None:
        logits_BKGts = soft_cap * jnp.tanh(logits_BKGts / soft_cap)
    if bias_BNts is not None:
        logits_BKGts += split_heads(bias_BNts, num_kv_heads).astype(jnp.float32)
    if mask_BNts is not None:
        logits_BKGts = jnp.where(split_heads(mask_BNts, num_kv_heads), logits_BKGts, -jnp.inf)
    return logits_BKGts


def softmax(logits_s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the softmax's numerators [..., s] and its denominator [...], 1 where a row sees
    nothing: divided by it, such a row is 0."""
    # Shifting by the maximum changes nothing in exact arithmetic, so it needs no gradient. A row
    # that is masked everywhere has maximum -inf: shifted by 0, its terms are all exp(-inf) = 0.
    top_1 = jax.lax.stop_gradient(logits_s.max(axis=-1, keepdims=True, initial=-jnp.inf))
    p_s = jnp.exp(logits_s - jnp.where(top_1 == -jnp.inf, 0.0, top_1))
    total = p_s.sum(axis=-1)
    return p_s, jnp.where(total == 0.0, 1.0, total)


def weights(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    lse_BNT: jax.Array,
    *,
    mask: Mask | None,
    bias: Any,
    scale: float,
    soft_cap: float | None,
) -> jax.Array:
    """Returns the exact weights [B, N, T, S] from the rows' log-sum-exp, at the cost of O(T S)."""
    (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    whole = range(T), range(S)
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    added, seen = bias_block(bias, *whole), mask_block(mask, *whole)
    logits_BKGTS = block_logits(q_BTKGH, k_BSKH, added, seen, scale=scale, soft_cap=soft_cap)
    finite_BNT = jnp.where(lse_BNT == -jnp.inf, 0.0, lse_BNT)
    return jnp.exp(logits_BKGTS.reshape(B, N, T, S) - finite_BNT[..., None])


def split_heads(x_BNts: jax.Array, num_kv_heads: int) -> jax.Array:
    """Returns [B, K|1, G|1, t, s]: query head n belongs to key/value head n // G."""
    batch, heads, *rest = x_BNts.shape
    groups = (1, 1) if heads == 1 else (num_kv_heads, heads // num_kv_heads)
    return x_BNts.reshape(batch, *groups, *rest)


def padded_bias(bias: Any, num_queries: int, num_keys: int) -> Any:
    """Returns the bias with its array, if it is one, as long as this; a spec has no length."""
    if not isinstance(bias, ArrayBias):
        return bias
    return ArrayBias(masks.lengthen_array(bias.bias_BNTS, num_queries, num_keys))


def zeros(shape: tuple[int, ...], like: jax.Array) -> jax.Array:
    """Float32 zeros that, inside shard_map, vary over the mesh axes of `like`, as carries must."""
    return vary(jnp.zeros(shape, jnp.float32), varying_axes(like))


def varying_axes(x: jax.Array) -> frozenset[str]:
    """Returns the mesh axes of an enclosing shard_map over which `x` differs by device."""
    kind = getattr(jax.typeof(x), "manual_axis_type", None)
    return frozenset() if kind is None else frozenset(kind.varying)


def vary(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    """Returns `x` marked as varying over these mesh axes too; the mark's transpose is a psum."""
    missing = axes - varying_axes(x)
    return jax.lax.pcast(x, tuple(missing), to="varying") if missing else x


def no_bias_gradient(bias: Any) -> list[jax.Array]:
    """Returns float32 zeros for each array of floats in the bias."""
    return [zeros(x.shape, x) for x in _float_leaves(bias)]


def add_bias_gradient(
    total: list[jax.Array], bias: Any, indices: tuple[Index, Index], d_bias_BNts: jax.Array
) -> list[jax.Array]:
    """Returns the gradient so far plus that of one block."""
    if isinstance(bias, ArrayBias):
        # What jax.vjp would do too, but it would make an array of the whole bias for every block.
        starts = [
            0,
            0,
            *(index[0] if n > 1 else 0 for index, n in zip(indices, total[0].shape[2:])),
        ]
        so_far = jax.lax.dynamic_slice(total[0], starts, d_bias_BNts.shape)
        return [jax.lax.dynamic_update_slice(total[0], so_far + d_bias_BNts, starts)]
    if not total:
        return total
    _, backward = jax.vjp(lambda bias: bias.block(*indices), bias)
    return [a + b for a, b in zip(total, _float_leaves(backward(d_bias_BNts)[0]), strict=True)]


def bias_cotangent(bias: Any, gradient: list[jax.Array]) -> Any:
    """Returns the gradient in the bias's own structure, where it has integers that of integers."""
    leaves, structure = jax.tree.flatten(bias)
    given = iter(gradient)
    # None would not do: in a spec's structure it is no leaf.
    no_gradient = jax.custom_derivatives.zero_from_primal
    return structure.unflatten(
        [next(given).astype(x.dtype) if _is_float(x) else no_gradient(x) for x in leaves]
    )


def _float_leaves(tree: Any) -> list[jax.Array]:
    return [x for x in jax.tree.leaves(tree) if _is_float(x)]


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def mask_block(mask: Mask | None, q_index_t: Index, k_index_s: Index) -> jax.Array | None:
    """Returns the mask's block, or None for no mask."""
    return None if mask is None else mask.block(q_index_t, k_index_s)


def bias_block(bias: Any, q_index_t: Index, k_index_s: Index) -> jax.Array | None:
    """Returns the bias's block, or None for no bias."""
    return None if bias is None else bias.block(q_index_t, k_index_s)
