"""Cross-entropy, and the head matmul with cross-entropy in chunks that never holds all logits.

Shapes: B batch, T time, C chunk of T, D model width, V vocabulary; `..` any leading axes.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Elements of the logits that one chunk holds by default. On a CPU 2**24 (64 MiB in float32) is as
# fast as any larger chunk; an accelerator wants matmuls of 2k tokens and more at V = 50k.
_CHUNK_ELEMENTS_CPU = 2**24
_CHUNK_ELEMENTS = 2**27


def cross_entropy(
    logits_V: jax.Array,
    labels: jax.Array,
    *,
    weights: jax.Array | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy, summed over tokens, with statistics in float32.

    Label smoothing: Szegedy et al. (2016), section 7: the target is (1 - e) one-hot + e / V.
    z-loss: Chowdhery et al. (2022, PaLM), section 5: adds `z_loss` * log(Z)^2.

    Args:
      logits_V: [.., V].
      labels: int [..]. A label outside [0, V) gives NaN, unless its weight is 0.
      weights: [..] weight of each token; None for ones. A token of weight 0 contributes exactly
        nothing, whatever its logits and label hold.
      z_loss: coefficient of the z-loss.
      label_smoothing: e in [0, 1).

    Returns:
      (loss_sum, weight_sum): float32 scalars; the mean loss is their quotient.

    Raises:
      ValueError: shapes that do not fit.
    """
    if logits_V.shape[:-1] != labels.shape:
        raise ValueError(f"logits {logits_V.shape} do not fit labels {labels.shape}")
    weights = _weights(weights, labels)
    options = _Options(z_loss, label_smoothing, None)
    logits_V = logits_V.astype(_statistics_dtype(logits_V))
    logits_V = jnp.where(weights[..., None] != 0, logits_V, 0)
    log_z = jax.nn.logsumexp(logits_V, axis=-1)
    loss = _token_loss(options, logits_V, log_z, labels)
    effective = _effective_weights(weights, labels, logits_V.shape[-1])
    return jnp.sum(loss * effective), jnp.sum(weights)


def linear_cross_entropy(
    x_D: jax.Array,
    table_VD: jax.Array,
    labels: jax.Array,
    *,
    bias_V: jax.Array | None = None,
    weights: jax.Array | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    soft_cap: float | None = None,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cross-entropy of `x @ table.T + bias`, in chunks of tokens: the full logits never exist.

    When a gradient is asked for, the gradients of x, table and bias are made in the forward pass,
    chunk by chunk, so the head matmul is not repeated; the backward pass only scales them. Without
    a gradient that work is not done. Matmuls take operands in x's dtype (bf16 stays bf16, in both
    directions) and accumulate in float32. The loss options are those of `cross_entropy`.

    Sharding under jit: chunks are cut along the last token axis (T), all of B at once, so with B
    sharded and T whole every device scans its own rows and nothing is gathered; with V sharded
    only maxima, sums and label logits cross devices. The table's gradient is reduced over B once
    per chunk, so on many devices make `chunk`, which counts the tokens of all devices, larger.
    Tokens flattened to one sharded axis would be gathered: give [B, T, D].

    Args:
      x_D: [.., D] features, bf16 or float32; [B, T, D] where it is sharded.
      table_VD: [V, D]; cast to x's dtype.
      labels: int [..]. A label outside [0, V) gives NaN, unless its weight is 0.
      bias_V: [V], added to the logits in float32, or None.
      weights: [..] weight of each token; None for ones. A token of weight 0 contributes exactly
        nothing to the sums and the gradients.
      z_loss: coefficient of the z-loss.
      label_smoothing: e in [0, 1).
      soft_cap: logits become soft_cap * tanh(logits / soft_cap) (Gemma Team, 2024, section 2).
      chunk: most tokens whose logits exist at once (when B exceeds it, one column of B tokens);
        None chooses by V and platform. When all tokens fit in one chunk there is no loop.

    Returns:
      (loss_sum, weight_sum, correct_sum): float32 scalars. correct_sum adds up the weights of
      tokens whose label is the argmax (the lowest index among equals) and has no gradient.

    Raises:
      ValueError: shapes that do not fit, or a chunk below 1.
    """
    vocab_size, width = table_VD.shape
    if x_D.shape != (*labels.shape, width) or labels.ndim == 0:
        raise ValueError(
            f"x {x_D.shape}, table {table_VD.shape} and labels {labels.shape} do not fit"
        )
    if chunk is None:
        elements = _CHUNK_ELEMENTS_CPU if jax.default_backend() == "cpu" else _CHUNK_ELEMENTS
        chunk = max(1, elements // vocab_size)
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1")
    length = labels.shape[-1]
    weights_BT = _weights(weights, labels).reshape(-1, length)
    labels_BT = labels.reshape(-1, length)
    x_BTD = x_D.reshape(-1, length, width)
    num_chunks = -(-length // max(1, chunk // max(1, labels_BT.shape[0]))) if length else 1
    padding = -length % num_chunks
    if padding:  # padded tokens have weight 0
        x_BTD = jnp.pad(x_BTD, ((0, 0), (0, padding), (0, 0)))
        labels_BT = jnp.pad(labels_BT, ((0, 0), (0, padding)))
        weights_BT = jnp.pad(weights_BT, ((0, 0), (0, padding)))
    options = _Options(z_loss, label_smoothing, soft_cap)
    loss_sum, correct_sum = _linear_cross_entropy(
        options, num_chunks, x_BTD, table_VD, bias_V, labels_BT, weights_BT
    )
    return loss_sum, jnp.sum(weights_BT), correct_sum


class _Options(NamedTuple):
    z_loss: float
    label_smoothing: float
    soft_cap: float | None


def _statistics_dtype(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _weights(weights: jax.Array | None, labels: jax.Array) -> jax.Array:
    if weights is None:
        return jnp.ones(labels.shape, jnp.float32)
    if weights.shape != labels.shape:
        raise ValueError(f"weights {weights.shape} do not fit labels {labels.shape}")
    return weights.astype(_statistics_dtype(weights))


def _effective_weights(weights: jax.Array, labels: jax.Array, vocab_size: int) -> jax.Array:
    """NaN where a token that counts has a label outside the vocabulary: never silently clamped."""
    valid = (labels >= 0) & (labels < vocab_size) | (weights == 0)
    return jnp.where(valid, weights, jnp.nan)


def _label_logit(logits_V: jax.Array, labels: jax.Array) -> jax.Array:
    clipped = jnp.clip(labels, 0, logits_V.shape[-1] - 1)
    return jnp.take_along_axis(logits_V, clipped[..., None], axis=-1)[..., 0]


def _token_loss(
    options: _Options, logits_V: jax.Array, log_z: jax.Array, labels: jax.Array
) -> jax.Array:
    smoothing = options.label_smoothing
    loss = log_z - (1 - smoothing) * _label_logit(logits_V, labels)
    if smoothing:
        loss -= smoothing * jnp.mean(logits_V, axis=-1)
    if options.z_loss:
        loss += options.z_loss * log_z**2
    return loss


def _chunk_logits(
    options: _Options, x_BCD: jax.Array, table_VD: jax.Array, bias_V: jax.Array | None
) -> jax.Array:
    logits_BCV = jnp.einsum(
        "bcd,vd->bcv", x_BCD, table_VD, preferred_element_type=_statistics_dtype(x_BCD)
    )
    if bias_V is not None:
        logits_BCV += bias_V.astype(logits_BCV.dtype)
    if options.soft_cap is not None:
        logits_BCV = options.soft_cap * jnp.tanh(logits_BCV / options.soft_cap)
    return logits_BCV


def _chunk_forward(options, x_BCD, table_VD, bias_V, labels_BC, weights_BC):
    """Returns the chunk's (token losses, hits, logits, log_z, effective weights)."""
    logits_BCV = _chunk_logits(options, x_BCD, table_VD, bias_V)
    index_V = jnp.arange(logits_BCV.shape[-1], dtype=jnp.int32)
    largest_BC = jnp.max(logits_BCV, axis=-1)
    sum_BC = jnp.sum(jnp.exp(logits_BCV - largest_BC[..., None]), axis=-1)
    log_z_BC = largest_BC + jnp.log(sum_BC)
    loss_BC = _token_loss(options, logits_BCV, log_z_BC, labels_BC)
    # The label is the argmax if it is the largest and nothing before it is: two maxima are several
    # times faster on CPU than an argmax.
    is_before_BCV = index_V < labels_BC[..., None]
    before_BC = jnp.max(jnp.where(is_before_BCV, logits_BCV, -jnp.inf), axis=-1)
    hit_BC = (_label_logit(logits_BCV, labels_BC) == largest_BC) & (before_BC < largest_BC)
    hit_BC = hit_BC.astype(loss_BC.dtype)
    effective_BC = _effective_weights(weights_BC, labels_BC, index_V.size)
    return loss_BC, hit_BC, logits_BCV, log_z_BC, effective_BC


def _chunk_gradients(options, x_BCD, table_VD, bias_V, labels_BC, logits_BCV, log_z_BC, weight_BC):
    """Returns the gradients of the chunk's loss sum wrt x, table and bias."""
    vocab_size = table_VD.shape[0]
    smoothing = options.label_smoothing
    scale_BC = weight_BC
    if options.z_loss:
        scale_BC = scale_BC * (1 + 2 * options.z_loss * log_z_BC)
    is_label_BCV = labels_BC[..., None] == jnp.arange(vocab_size, dtype=labels_BC.dtype)
    d_logits_BCV = scale_BC[..., None] * jnp.exp(logits_BCV - log_z_BC[..., None])
    d_logits_BCV -= jnp.where(is_label_BCV, ((1 - smoothing) * weight_BC)[..., None], 0)
    if smoothing:
        d_logits_BCV -= (smoothing / vocab_size * weight_BC)[..., None]
    if options.soft_cap is not None:
        d_logits_BCV *= 1 - (logits_BCV / options.soft_cap) ** 2
    d_bias_V = None if bias_V is None else jnp.sum(d_logits_BCV, axis=(0, 1))
    accumulate = d_logits_BCV.dtype
    # The operands stay in x's dtype: in float32 both matmuls would run at a fraction of the speed.
    d_logits_BCV = d_logits_BCV.astype(x_BCD.dtype)
    d_x_BCD = jnp.einsum("bcv,vd->bcd", d_logits_BCV, table_VD, preferred_element_type=accumulate)
    d_table_VD = jnp.einsum("bcv,bcd->vd", d_logits_BCV, x_BCD, preferred_element_type=accumulate)
    return d_x_BCD, d_table_VD, d_bias_V


def _chunk(options, with_gradient, x_BCD, table_VD, bias_V, labels_BC, weights_BC):
    """One chunk: (loss sum, correct sum), per-token (loss, hit), gradients or None."""
    # 0 * NaN is NaN: features of tokens that do not count must not meet the matmuls.
    x_BCD = jnp.where(weights_BC[..., None] != 0, x_BCD, 0)
    loss_BC, hit_BC, logits_BCV, log_z_BC, effective_BC = _chunk_forward(
        options, x_BCD, table_VD, bias_V, labels_BC, weights_BC
    )
    sums = jnp.sum(loss_BC * effective_BC), jnp.sum(hit_BC * weights_BC)
    if not with_gradient:
        return sums, (loss_BC, hit_BC), None
    gradients = _chunk_gradients(
        options, x_BCD, table_VD, bias_V, labels_BC, logits_BCV, log_z_BC, effective_BC
    )
    return sums, (loss_BC, hit_BC), gradients


def _slice(array_BT: jax.Array, index: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array_BT, index * size, size, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _linear_cross_entropy(options, num_chunks, x_BTD, table_VD, bias_V, labels_BT, weights_BT):
    table_VD = table_VD.astype(x_BTD.dtype)
    if num_chunks == 1:
        return _chunk(options, False, x_BTD, table_VD, bias_V, labels_BT, weights_BT)[0]
    size = x_BTD.shape[1] // num_chunks

    def body(sums, index):
        x_BCD, labels_BC, weights_BC = (
            _slice(array, index, size) for array in (x_BTD, labels_BT, weights_BT)
        )
        new, _, _ = _chunk(options, False, x_BCD, table_VD, bias_V, labels_BC, weights_BC)
        return jax.tree.map(jnp.add, sums, new), None

    zero = jnp.zeros((), _statistics_dtype(x_BTD))
    return jax.lax.scan(body, (zero, zero), jnp.arange(num_chunks))[0]


def _forward(options, num_chunks, x_BTD, table_VD, bias_V, labels_BT, weights_BT):
    cast_VD = table_VD.astype(x_BTD.dtype)
    if num_chunks == 1:
        sums, tokens, (d_x, d_table, d_bias) = _chunk(
            options, True, x_BTD, cast_VD, bias_V, labels_BT, weights_BT
        )
        return sums, (d_x.astype(x_BTD.dtype), d_table, d_bias, tokens, table_VD, bias_V)
    size = x_BTD.shape[1] // num_chunks
    dtype = _statistics_dtype(x_BTD)

    def body(carry, index):
        sums, d_x_BTD, d_table_VD, d_bias_V = carry
        x_BCD, labels_BC, weights_BC = (
            _slice(array, index, size) for array in (x_BTD, labels_BT, weights_BT)
        )
        new, tokens, (d_x_BCD, d_table, d_bias) = _chunk(
            options, True, x_BCD, cast_VD, bias_V, labels_BC, weights_BC
        )
        d_x_BTD = jax.lax.dynamic_update_slice_in_dim(
            d_x_BTD, d_x_BCD.astype(d_x_BTD.dtype), index * size, axis=1
        )
        d_bias_V = None if d_bias is None else d_bias_V + d_bias
        return (jax.tree.map(jnp.add, sums, new), d_x_BTD, d_table_VD + d_table, d_bias_V), tokens

    zero = jnp.zeros((), dtype)
    start = (
        (zero, zero),
        jnp.zeros_like(x_BTD),
        jnp.zeros(table_VD.shape, dtype),
        None if bias_V is None else jnp.zeros(bias_V.shape, dtype),
    )
    (sums, d_x, d_table, d_bias), tokens = jax.lax.scan(body, start, jnp.arange(num_chunks))
    tokens = jax.tree.map(lambda a_NBC: jnp.moveaxis(a_NBC, 0, 1).reshape(labels_BT.shape), tokens)
    return sums, (d_x, d_table, d_bias, tokens, table_VD, bias_V)


def _backward(options, num_chunks, residuals, cotangents):
    del options, num_chunks
    d_x, d_table, d_bias, (loss_BT, hit_BT), table_VD, bias_V = residuals
    scale, scale_correct = cotangents
    d_bias = None if d_bias is None else (scale * d_bias).astype(bias_V.dtype)
    return (
        (scale * d_x).astype(d_x.dtype),
        (scale * d_table).astype(table_VD.dtype),
        d_bias,
        None,
        scale * loss_BT + scale_correct * hit_BT,
    )


_linear_cross_entropy.defvjp(_forward, _backward)
