"""Performer: softmax attention through positive random features, in linear time (FAVOR+).

Choromanski et al., 2021, "Rethinking Attention with Performers". exp(q·k) is the mean over random
w of phi_w(q) phi_w(k), phi_w(x) = exp(w·x - |x|²/2) (lemma 1), so that the sum over keys can be
taken before a query comes. As the published code, queries and keys are scaled by H^(-1/4) each.

The exponents are made safe in a way of its own. The published code subtracts the largest exponent
of all keys and adds an epsilon: then a far or future key changes what the others weigh, and small
features vanish. Here each feature has a running maximum, which moves into the query's exponent and
so cancels exactly: no epsilon is needed, and nothing depends on chunks, padding or later tokens.

Shapes: B batch, T queries, S keys, N heads, K key/value heads, G = N/K, H head width, M features,
C places of a chunk, n chunks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops.attention.kernel_sums import LOWEST, SumState, init_sums, kernel_attention
from jaxformer.ops.attention.plain_mask import plain_mask
from jaxformer.ops.linear import einsum
from jaxformer.ops.masks import Mask

KERNELS = ("softmax", "relu")
CHUNK = 128


def performer(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    features_MH: jax.Array,
    mask: Mask | None = None,
    bias: Any = None,
    scale: float | jax.Array | None = None,
    kernel: str = "softmax",
    epsilon: float | None = None,
    chunk: int = CHUNK,
    state: SumState | None = None,
    return_state: bool = False,
    return_weights: bool = False,
) -> Any:
    """FAVOR+: attention whose weights are products of features (Choromanski et al., 2021, eq. 4).

    Time and memory are O((T + S) M), forward and backward.

    Args:
      q_BTNH: queries.
      k_BSKH: keys; K divides N.
      v_BSKH: values.
      features_MH: the random directions, of `orthogonal_features`, the same for all heads.
      mask: None or parts joined by `&`: `masks.causal`, `lengths`, `segments`, and `explicit` that
        hides keys or queries. With T == S and one array of segment ids, the tokens of a segment
        must stand side by side, as packing puts them.
      bias: must be None: the weight of a single pair is never computed.
      scale: that of the softmax to approximate; 1/sqrt(H) if None (for "relu": 1).
      kernel: "softmax", or "relu": phi(x) = relu(w·x) + epsilon (Performer-ReLU, section 4).
      epsilon: added to every feature; 0 for "softmax" and 0.001 for "relu" if None.
      chunk: tokens that meet in one matrix; changes nothing but speed and memory.
      state: what came before (of `init_state` or of an earlier call); needs a causal mask, T == S.
      return_state: return the state after these tokens too; needs the same.
      return_weights: return the weights float32 [B, N, T, S] too, at O(T S); rows sum to 1.

    Returns:
      out_BTNH in the dtype of the queries, then the weights and the state, where asked for.

    Raises:
      ValueError: a bias, a mask or an argument that cannot be honoured; what is valid is said.
    """
    if bias is not None:
        raise ValueError("performer: cannot honour a bias, for no pair is weighed; give bias=None")
    if kernel not in KERNELS:
        raise ValueError(f"performer: kernel {kernel!r} is not one of {', '.join(KERNELS)}")
    if features_MH.ndim != 2 or features_MH.shape[1] != q_BTNH.shape[-1]:
        raise ValueError(
            f"performer: features_MH must be [features, {q_BTNH.shape[-1]}], the head width, not "
            f"{features_MH.shape}"
        )
    default = q_BTNH.shape[-1] ** -0.5 if kernel == "softmax" else 1.0
    root = jnp.sqrt(jnp.asarray(default if scale is None else scale, jnp.float32))
    floor = {"softmax": 0.0, "relu": 1e-3}[kernel] if epsilon is None else epsilon
    plain = plain_mask(mask, "performer", q_BTNH.shape[1], k_BSKH.shape[1])
    return kernel_attention(
        "performer", q_BTNH, k_BSKH, v_BSKH, plain,
        (_Softmax if kernel == "softmax" else _Relu)(root * features_MH, root, floor),
        chunk=chunk, state=state, return_state=return_state, return_weights=return_weights,
    )  # fmt: skip


def init_state(
    batch_size: int, num_kv_heads: int, num_features: int, head_dim: int, kernel: str = "softmax"
) -> SumState:
    """Returns what a layer knows before the first token: O(M H) a head, whatever the length."""
    rows_MH = jnp.zeros((num_features, head_dim))
    of = (_Softmax if kernel == "softmax" else _Relu)(rows_MH, jnp.ones(()), 0.0)
    return init_sums(batch_size, num_kv_heads, head_dim, of)


def orthogonal_features(
    key: jax.Array, num_features: int, head_dim: int, *, regularised: bool = False
) -> jax.Array:
    """Draws Gaussian directions that are orthogonal by blocks (Choromanski et al., 2021, sec. 2.4).

    Each row alone is Gaussian, so that the estimate stays unbiased, and its variance is lower than
    with independent rows. Drawing anew now and then (with a key folded with the step) keeps a model
    from relying on one draw (section 4).

    Args:
      key: random key.
      num_features: M, rows; those of one block of `head_dim` rows are orthogonal.
      head_dim: H.
      regularised: give all rows the norm sqrt(H) (the kernel SMREG of section 3), biased but of
        lower variance, instead of norms as Gaussian rows have them.

    Returns:
      float32 [M, H].

    Raises:
      ValueError: fewer than 1 feature.
    """
    if num_features < 1:
        raise ValueError(f"orthogonal_features: num_features must be >= 1, not {num_features}")
    blocks = -(-num_features // head_dim)
    of_blocks, of_norms = jax.random.split(key)
    gaussian = jax.random.normal(of_blocks, (blocks, head_dim, head_dim))
    q, r = jnp.linalg.qr(gaussian)
    # QR leaves the signs to the algorithm; with those of r's diagonal q is uniform (Mezzadri 2007).
    q *= jnp.sign(jnp.diagonal(r, axis1=-2, axis2=-1))[:, None]
    rows_MH = q.swapaxes(-1, -2).reshape(-1, head_dim)[:num_features]
    if regularised:
        return rows_MH * head_dim**0.5
    norms_M = jnp.linalg.norm(jax.random.normal(of_norms, (num_features, head_dim)), axis=-1)
    return rows_MH * norms_M[:, None]


class _Softmax(NamedTuple):
    """phi(x) = exp(w·x - |x|²/2) + floor, kept as its exponent."""

    rows_MH: jax.Array
    root: jax.Array
    floor: float
    lowest: float = LOWEST

    @property
    def num_features(self) -> int:
        return self.rows_MH.shape[0]

    def prepare(self, x_CH):
        a_CM = einsum("...CH,MH->...CM", x_CH, self.rows_MH, out_dtype=jnp.float32)
        a_CM -= 0.5 * jnp.square(self.root * x_CH.astype(jnp.float32)).sum(-1, keepdims=True)
        return jnp.logaddexp(a_CM, jnp.log(self.floor)) if self.floor else a_CM

    def of_keys(self, a_CM, shown_C, top_M):
        a_CM = jnp.where(shown_C[..., None], a_CM, -jnp.inf)
        # The tops cancel between queries and keys, so that they need no gradient.
        top_M = jnp.maximum(top_M, jax.lax.stop_gradient(a_CM.max(axis=-2)))
        return jnp.exp(a_CM - top_M[..., None, :]), top_M

    def of_queries(self, a_CM, top_M):
        a_CM += top_M[..., None, :]
        return jnp.exp(a_CM - jax.lax.stop_gradient(a_CM.max(axis=-1, keepdims=True)))


class _Relu(NamedTuple):
    """phi(x) = relu(w·x) + floor."""

    rows_MH: jax.Array
    root: jax.Array
    floor: float
    lowest: float = 0.0

    @property
    def num_features(self) -> int:
        return self.rows_MH.shape[0]

    def prepare(self, x_CH):
        a_CM = einsum("...CH,MH->...CM", x_CH, self.rows_MH, out_dtype=jnp.float32)
        return jax.nn.relu(a_CM) + self.floor

    def of_keys(self, a_CM, shown_C, top_M):
        return jnp.where(shown_C[..., None], a_CM, 0.0), top_M

    def of_queries(self, a_CM, top_M):
        return a_CM
