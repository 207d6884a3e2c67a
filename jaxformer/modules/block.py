"""One Transformer block: attention, perhaps cross-attention, feed-forward, norms, residuals."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxformer import ops
from jaxformer.modules.attention import Attention, KeyValues, Rotary
from jaxformer.modules.config import TransformerConfig
from jaxformer.modules.feedforward import FeedForward
from jaxformer.modules.norm import Norm


class Block(nn.Module):
    """Pre-norm (Xiong 2020), post-norm (Vaswani 2017) or parallel residual (Wang 2021).

    `cross` adds attention over `memory_BSD` between the two.
    """

    config: TransformerConfig
    cross: bool = False

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        *,
        mask=None,
        bias=None,
        rotary: Rotary | None = None,
        cache: KeyValues | None = None,
        memory_BSD: jax.Array | None = None,
        memory_mask=None,
        segment_ids_BT: jax.Array | None = None,
        key: jax.Array | None = None,
        return_weights: bool = False,
    ) -> tuple[jax.Array, KeyValues | None, jax.Array | None]:
        """Returns (x_BTD, cache or None, self-attention weights_BNTS or None)."""
        c = self.config
        keys = [None] * 5 if key is None else list(jax.random.split(key, 5))
        pre = c.norm_position == "pre"
        past = () if cache is None else cache.history_BPD
        recent: list[jax.Array] = []

        def before(name: str, x: jax.Array) -> jax.Array:
            x = Norm(c, name=f"{name}_norm")(x) if pre else x
            return convolve(name, x) if c.short_conv else x

        def convolve(name: str, x: jax.Array) -> jax.Array:
            shape = (c.short_conv, x.shape[-1])
            kernel_WD = self.param(f"{name}_conv", _present_only, shape)
            if cache is None:
                return ops.short_conv(x, kernel_WD, segment_ids_BT=segment_ids_BT)
            if segment_ids_BT is not None:  # left padding
                x = jnp.where(segment_ids_BT[..., None] != 0, x, 0)
            history_BPD = past[len(recent)]
            seen = jnp.concatenate([history_BPD, x.astype(history_BPD.dtype)], axis=1)
            recent.append(seen[:, x.shape[1] :])
            return ops.short_conv(x, kernel_WD, history_BPD=history_BPD)

        def after(name: str, x: jax.Array) -> jax.Array:
            return x if pre else Norm(c, name=f"{name}_norm")(x)

        def drop(x: jax.Array, at: int) -> jax.Array:
            return ops.dropout(x, c.dropout, keys[at])

        normed = before("attention", x_BTD)
        attended, cache, weights = Attention(c, name="attention")(
            normed, mask=mask, bias=bias, rotary=rotary, cache=cache, key=keys[0],
            return_weights=return_weights,
        )  # fmt: skip
        attended = drop(checkpoint_name(attended, "attention"), 1)

        if c.parallel_residual:
            fed = checkpoint_name(FeedForward(c, name="feed_forward")(normed), "feed_forward")
            x_BTD = after("attention", x_BTD + attended + drop(fed, 2))
            return x_BTD, _remember(cache, recent), weights

        x_BTD = after("attention", x_BTD + attended)
        if self.cross:
            looked, _, _ = Attention(c, name="cross_attention")(
                before("cross_attention", x_BTD), kv_BSD=memory_BSD, mask=memory_mask, key=keys[3]
            )
            x_BTD = after("cross_attention", x_BTD + drop(looked, 4))
        fed = FeedForward(c, name="feed_forward")(before("feed_forward", x_BTD))
        fed = drop(checkpoint_name(fed, "feed_forward"), 2)
        return after("feed_forward", x_BTD + fed), _remember(cache, recent), weights


def _present_only(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A convolution that begins as the identity."""
    return jnp.zeros(shape, jnp.float32).at[0].set(1.0)


def _remember(cache: KeyValues | None, recent: list[jax.Array]) -> KeyValues | None:
    return None if cache is None else cache._replace(history_BPD=tuple(recent))
