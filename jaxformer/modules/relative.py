"""The block of Transformer-XL and XLNet: relative attention over a memory, feed-forward, norms.

B batch, T queries, P predictions, M memory, S = M + T keys, N heads, H head width, D model width,
F feed-forward width, L layers, R distances.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxformer import ops
from jaxformer.errors import UserError, one_of
from jaxformer.modules import stack
from jaxformer.modules.attention import KeyValues
from jaxformer.ops.attention.relative import relative_attention


@dataclasses.dataclass(frozen=True)
class RelativeConfig:
    """What Transformer-XL and XLNet both choose; 0 means "the usual value".

    Sizes: vocab_size (0: the tokenizer's), num_layers, width (D), num_heads (N), head_dim (H; 0:
    D / N), feed_forward (F; 0: 4 D), max_length (the longest text that is written or trained on; no
    parameter depends on it), memory_length (M, tokens of earlier segments that a token sees; the
    paper's mem_len), same_length (every token sees M tokens, itself included, and not its whole
    segment besides), clamp_length (distances beyond it count as it; 0: none).

    Running: dropout and attention_dropout rates; compute_dtype; attention_backend; unroll (layers
    per turn of the scan, 0: all); remat ("none", "full", "dots", "named"); see TransformerConfig.
    """

    vocab_size: int = 0
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    head_dim: int = 0
    feed_forward: int = 0
    max_length: int = 4096
    memory_length: int = 0
    same_length: bool = False
    clamp_length: int = 0
    norm_epsilon: float = 1e-5
    activation: str = "relu"
    tie_embeddings: bool = True
    init_std: float = 0.02
    logit_soft_cap: float = 0.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    compute_dtype: str = "float32"
    attention_backend: str = "auto"
    unroll: int = 0
    remat: str = "none"

    def __post_init__(self):
        for key in ("num_layers", "width", "num_heads", "max_length"):
            if getattr(self, key) < 1:
                raise UserError(f"model.{key} is {getattr(self, key)}; it must be at least 1")
        for key in ("memory_length", "clamp_length"):
            if getattr(self, key) < 0:
                raise UserError(f"model.{key} is {getattr(self, key)}; it must be 0 or above")
        if not self.head_dim and self.width % self.num_heads:
            raise UserError(
                f"model.num_heads={self.num_heads} does not divide model.width={self.width}; "
                "choose one that does, or set model.head_dim"
            )
        if self.width % 2:
            raise UserError(
                f"model.width={self.width} is odd, but distances are pairs of sine and cosine; "
                f"try --config.model.width={self.width + 1}"
            )
        if self.same_length and not self.memory_length:
            raise UserError("model.same_length=True needs model.memory_length, in tokens")
        one_of(self.activation, ops.ACTIVATIONS, "model.activation")
        one_of(self.attention_backend, ("auto", "dense", "chunked"), "model.attention_backend")
        one_of(self.remat, ("none", *stack.POLICIES), "model.remat")
        one_of(self.compute_dtype, ("float32", "bfloat16"), "model.compute_dtype")
        for key in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise UserError(f"model.{key}={getattr(self, key)} must be in [0, 1)")

    @property
    def per_head(self) -> int:
        """Width of a head, H."""
        return self.head_dim or self.width // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Every head has its own keys."""
        return self.num_heads

    @property
    def feed_forward_width(self) -> int:
        """Width of the feed-forward's hidden layer, F."""
        return self.feed_forward or 4 * self.width


class Reach(NamedTuple):
    """What all layers are given alike; see relative_attention."""

    waves_RD: jax.Array
    first: int
    offset: int | jax.Array
    mask: Any
    # Of the second stream (XLNet), if there is one: its place among the keys, its mask, and which
    # token each prediction is about (None: prediction p is about token p of the first stream).
    query_offset: int | jax.Array = 0
    query_mask: Any = None
    target_mapping_BPT: jax.Array | None = None
    q_types_BT: jax.Array | None = None
    k_types_BS: jax.Array | None = None
    shared_biases: Any = None  # {"r_w_bias", "r_r_bias"} [N, H], where layers have no own ones


class RelativeBlock(nn.Module):
    """Relative attention and feed-forward, each in a residual sum with its norm.

    norm_position: "post" (after the sum) or "pre" (before the sublayer). segments: XLNet's term.
    own_biases: each layer has its two biases of queries (Dai 2019's u and v).
    """

    config: RelativeConfig
    norm_position: str = "post"
    segments: bool = False
    own_biases: bool = True

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        reach: Reach,
        *,
        query_BPD: jax.Array | None = None,
        memory_BMD: jax.Array | None = None,
        cache: KeyValues | None = None,
        key: jax.Array | None = None,
        return_weights: bool = False,
    ) -> tuple[jax.Array, jax.Array | None, KeyValues | None, jax.Array | None]:
        """Returns (x_BTD, query_BPD or None, cache or None, the first stream's weights or None).

        Keys and values are of `memory_BMD` (which receives no gradient) and of x, or of what the
        cache holds and of x. The second stream, `query_BPD`, reads the first and has its weights.
        """
        c, T = self.config, x_BTD.shape[1]
        keys = [None] * 5 if key is None else list(jax.random.split(key, 5))
        # What both streams go through alike is done to both at once, one after the other in time.
        y = x_BTD if query_BPD is None else jnp.concatenate([x_BTD, query_BPD], axis=1)

        def norm(name: str, x: jax.Array) -> jax.Array:
            scale, bias = Affine(name=f"{name}_norm")(c.width)
            return ops.layer_norm(x, scale, bias, eps=c.norm_epsilon)

        def add(name: str, y: jax.Array, change: jax.Array, at: int) -> jax.Array:
            y = y + ops.dropout(change, c.dropout, keys[at])
            return norm(name, y) if self.norm_position == "post" else y

        pre = self.norm_position == "pre"
        if memory_BMD is not None:
            seen = jnp.concatenate([jax.lax.stop_gradient(memory_BMD).astype(y.dtype), y], axis=1)
            seen = norm("attention", seen) if pre else seen
            normed = seen[:, memory_BMD.shape[1] :]
        else:
            normed = seen = norm("attention", y) if pre else y
        attended, cache, weights = RelativeAttention(
            c, self.segments, self.own_biases, name="attention"
        )(
            normed, seen[:, : seen.shape[1] - (y.shape[1] - T)], T, reach,
            cache=cache, key=keys[0], return_weights=return_weights,
        )  # fmt: skip
        y = add("attention", y, checkpoint_name(attended, "attention"), 1)
        normed = norm("feed_forward", y) if pre else y
        fed = PlainFeedForward(c, name="feed_forward")(normed, keys[2])
        y = add("feed_forward", y, checkpoint_name(fed, "feed_forward"), 3)
        return y[:, :T], None if query_BPD is None else y[:, T:], cache, weights


class RelativeAttention(nn.Module):
    """The projections' parameters around ops.relative_attention, for one stream or two."""

    config: RelativeConfig
    segments: bool
    own_biases: bool

    @nn.compact
    def __call__(
        self, y: jax.Array, seen_BSD: jax.Array, T: int, reach: Reach, *, cache, key, return_weights
    ) -> tuple[jax.Array, KeyValues | None, jax.Array | None]:
        """Returns (out like y, cache or None, weights_BNTS or None); y is x, then the queries."""
        c, (B, _, D) = self.config, y.shape
        N, H = c.num_heads, c.per_head
        start = nn.initializers.normal(c.init_std)

        if self.has_variable("params", "qkv"):  # of attention.join_projections
            qkv_DNH = self.param("qkv", start, (D, 3 * N, H))
            q, k, v = jnp.split(ops.linear(y, qkv_DNH), 3, axis=2)
            k, v = k[:, :T], v[:, :T]
        else:
            w_q, w_k, w_v = (self.param(name, start, (D, N, H)) for name in "qkv")
            q = ops.linear(y, w_q)
            k, v = ops.linear(seen_BSD, w_k), ops.linear(seen_BSD, w_v)
        if cache is not None:
            cache = cache.append(k, v)
            k, v = (x.astype(q.dtype) for x in cache.read(B))
        biases = reach.shared_biases or {
            name: self.param(name, start, (N, H)) for name in ("r_w_bias", "r_r_bias")
        }
        of_segments = {}
        if self.segments:
            of_segments = {
                "segment_bias_NH": self.param("r_s_bias", start, (N, H)),
                "segment_2NH": self.param("segment_bias", start, (2, N, H)),
                "q_types_BT": reach.q_types_BT,
                "k_types_BS": reach.k_types_BS,
            }
        w_r = self.param("r", start, (D, N, H))
        keys = (None, None) if key is None else jax.random.split(key)

        def attend(q_BTNH, offset, mask, key, return_weights):
            return relative_attention(
                q_BTNH, k, v, waves_RD=reach.waves_RD, w_distance_DNH=w_r, first=reach.first,
                offset=offset, mask=mask,
                content_bias_NH=biases["r_w_bias"], distance_bias_NH=biases["r_r_bias"],
                dropout_rate=c.attention_dropout if key is not None else 0.0, key=key,
                backend=c.attention_backend, return_weights=return_weights, **of_segments,
            )  # fmt: skip

        out = attend(q[:, :T], reach.offset, reach.mask, keys[0], return_weights)
        out, weights = out if return_weights else (out, None)
        if y.shape[1] > T:
            q_BPNH, mapping = q[:, T:], reach.target_mapping_BPT
            if mapping is not None:  # to the places of the tokens that are predicted
                mapping = mapping.astype(q_BPNH.dtype)
                q_BPNH = ops.einsum("BPT,BPX->BTX", mapping, q_BPNH.reshape(B, -1, N * H))
                q_BPNH = q_BPNH.reshape(B, T, N, H)
            read = attend(q_BPNH, reach.query_offset, reach.query_mask, keys[1], False)
            if mapping is not None:
                read = ops.einsum("BPT,BTX->BPX", mapping, read.reshape(B, T, N * H))
                read = read.reshape(B, -1, N, H)
            out = jnp.concatenate([out, read], axis=1)
        return ops.linear(out, self.param("out", start, (N, H, D)), axes=2), cache, weights


class PlainFeedForward(nn.Module):
    """Two matmuls with biases, and dropout after the activation too."""

    config: RelativeConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array, key: jax.Array | None) -> jax.Array:
        c, D, F = self.config, x_BTD.shape[-1], self.config.feed_forward_width
        start, zeros = nn.initializers.normal(c.init_std), nn.initializers.zeros
        w_in_DF, b_in_F = self.param("in", start, (D, F)), self.param("in_bias", zeros, (F,))
        w_out_FD, b_out_D = self.param("out", start, (F, D)), self.param("out_bias", zeros, (D,))
        h_BTF = ops.ACTIVATIONS[c.activation](ops.linear(x_BTD, w_in_DF, b_in_F))
        return ops.linear(ops.dropout(h_BTF, c.dropout, key), w_out_FD, b_out_D)


class Affine(nn.Module):
    """A norm's gain and shift."""

    @nn.compact
    def __call__(self, width: int) -> tuple[jax.Array, jax.Array]:
        """Returns (scale_D, bias_D)."""
        scale = self.param("scale", nn.initializers.ones, (width,))
        return scale, self.param("bias", nn.initializers.zeros, (width,))
