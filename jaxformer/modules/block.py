"""One Transformer block: attention, perhaps cross-attention, feed-forward, norms, residuals."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxformer import ops
from jaxformer.modules.attention import Attention, KeyValues, Maps, Rotary
from jaxformer.modules.config import TransformerConfig
from jaxformer.modules.feedforward import Experts, FeedForward
from jaxformer.modules.norm import Norm
from jaxformer.modules.variants import Variant


class Block(nn.Module):
    """Attention and feed-forward, each with its norms and residual sum (see TransformerConfig).

    `cross` adds attention over a source between the two: over `source_BSD`, or over the keys and
    values in `memory` that were made of it before; `look` is the module that does so.
    `variant`: see Attention.
    """

    config: TransformerConfig
    cross: bool = False
    look: Callable[..., nn.Module] = functools.partial(Attention, cross=True)
    variant: type[Variant] | None = None

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        *,
        mask=None,
        bias=None,
        rotary: Rotary | None = None,
        cache: KeyValues | None = None,
        source_BSD: Any = None,
        memory: KeyValues | None = None,
        source_mask=None,
        normed_input: bool = False,
        offset: int | jax.Array = 0,
        layer: int | jax.Array = 0,
        global_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
        key: jax.Array | None = None,
        return_weights: bool | Maps = False,
        return_feed_input: bool = False,
    ) -> tuple[Any, ...]:
        """Returns (x_BTD, cache or None, self-attention weights_BNTS or None), and then, if
        `return_feed_input`, what the feed-forward layer read, after its norm: [B, T, D].

        `normed_input` says that attention reads `x_BTD` as it is, for its norm was done before.
        """
        c = self.config
        keys = [None] * 5 if key is None else list(jax.random.split(key, 5))
        pre = c.norm_position in ("pre", "sandwich")
        past = () if cache is None else cache.history_BPD
        recent: list[jax.Array] = []

        def before(name: str, x: jax.Array) -> jax.Array:
            x = Norm(c, name=f"{name}_norm")(x) if pre else x
            return convolve(name, x) if c.short_conv and name != "cross_attention" else x

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

        def add(name: str, x: jax.Array, y: jax.Array, at: int) -> jax.Array:
            if c.norm_position == "output":
                y = Norm(c, name=f"{name}_norm")(y)
            if c.norm_position == "sandwich":
                y = Norm(c, name=f"{name}_output_norm")(y)
            x = x + ops.dropout(y, c.dropout, keys[at])
            return Norm(c, name=f"{name}_norm")(x) if c.norm_position == "post" else x

        normed = x_BTD if normed_input else before("attention", x_BTD)
        feed = Experts(c, name="experts") if c.num_experts else FeedForward(c, name="feed_forward")
        attended, cache, weights = Attention(c, variant=self.variant, name="attention")(
            normed, mask=mask, bias=bias, rotary=rotary, cache=cache, offset=offset, layer=layer,
            global_BT=global_BT, key=keys[0], return_weights=return_weights,
        )  # fmt: skip
        attended = checkpoint_name(attended, "attention")
        if c.parallel_residual:
            both = attended + checkpoint_name(feed(normed), "feed_forward")
            read = (normed,) if return_feed_input else ()
            return add("attention", x_BTD, both, 1), _remember(cache, recent), weights, *read

        x_BTD = add("attention", x_BTD, attended, 1)
        if self.cross:
            looked, _, _ = self.look(c, name="cross_attention")(
                before("cross_attention", x_BTD), offset=offset,
                kv_BSD=source_BSD, memory=memory, mask=source_mask, key=keys[3],
            )  # fmt: skip
            x_BTD = add("cross_attention", x_BTD, looked, 4)
        feed_input_BTD = before("feed_forward", x_BTD)
        read = (feed_input_BTD,) if return_feed_input else ()
        fed = checkpoint_name(feed(feed_input_BTD), "feed_forward")
        return add("feed_forward", x_BTD, fed, 2), _remember(cache, recent), weights, *read


def _present_only(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A convolution that begins as the identity."""
    return jnp.zeros(shape, jnp.float32).at[0].set(1.0)


def _remember(cache: KeyValues | None, recent: list[jax.Array]) -> KeyValues | None:
    return None if cache is None else cache._replace(history_BPD=tuple(recent))
