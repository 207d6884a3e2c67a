"""L like blocks: initialised by one map, run by one scan, rematerialised by policy.

Layers may differ in what they are given (a window, another RoPE), not in their parameters. A scan
then runs over whole periods of the pattern, with what does not fit before and after it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.modules.attention import KeyValues, Maps, join_projections, project_memory
from jaxformer.modules.block import Block
from jaxformer.parallel.rules import constrain_batch

POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "named": jax.checkpoint_policies.save_only_these_names("attention", "feed_forward"),
}


class Stacked(NamedTuple):
    """What a stack returns; the optional parts are None unless asked for."""

    x_BTD: jax.Array
    cache: Any = None  # {"k": L x [B*K, S, H], "v": L x [B*K, H, S], "history"}
    hidden_states_LBTD: jax.Array | None = None  # the input of each block
    attention_LBNTS: jax.Array | None = None
    feed_input_BTD: jax.Array | None = None  # what the last block's feed-forward layer read


def init(block: Block, key: jax.Array, x_BTD: jax.Array, **inputs: Any) -> Any:
    """Returns the parameters of the layers, each leaf with a leading L axis (1 if all share)."""
    c = block.config
    # A map and not vmap: the values are the same, and random numbers compile in half the time.
    keys = jax.random.split(key, 1 if c.share_layers else c.num_layers)
    return jax.lax.map(lambda k: block.init(k, x_BTD, **inputs)["params"], keys)


def apply(
    block: Block,
    params: Any,
    x_BTD: jax.Array,
    *,
    cache: Any = None,
    index: jax.Array | None = None,
    key: jax.Array | None = None,
    return_hidden: bool = False,
    return_attention: bool | Maps = False,
    return_feed_input: bool = False,
    of_kind: Mapping[str, Mapping[str, Any]] | None = None,
    **inputs: Any,
) -> Stacked:
    """Runs the blocks one after the other.

    Args:
      block: the block that all layers share.
      params: stacked parameters, from `init`, or a tuple of L trees, from `unstack`.
      x_BTD: the stream's input.
      cache: {"k", "v"}, tuples of L arrays [B*K, S, H] and [B*K, H, S], and {"history"}, a tuple of
        what each layer's short convolutions saw last, and {"state"}, of what each layer's variant
        of attention knows; or None. With {"memory"}, L pairs of a
        source's keys and values (see `remember_source`), cross-attention reads those.
      index: where in the cache this call's keys go (with `cache`).
      key: dropout's key, or None: no dropout. Layer l uses the l-th split.
      return_hidden: also return the input of each block.
      return_attention: also return each block's attention weights; Maps: those of some layers,
        heads and queries.
      return_feed_input: also return the input of the last block's feed-forward layer.
      of_kind: what the layers of each kind ("global", "local") are given.
      **inputs: what every block is given alike (mask, bias, rotary, source_BSD, ...).
    """
    config = block.config
    L, of_kind = config.num_layers, of_kind or {}
    keys = None if key is None else jax.random.split(key, L)
    kinds = list(config.layer_kinds if of_kind else ("",) * L)
    if not config.first_attention_norm:
        kinds[0] += " first"

    def layer(i: int, x, layer_params, layer_key, number, **kept):
        """`i` is a layer like this one, whose kind it has; `number` is its own, which may vary."""
        kind, first = kinds[i].partition(" ")[::2]
        return block.apply(
            {"params": layer_params}, x, key=layer_key, return_weights=return_attention,
            layer=number, return_feed_input=return_feed_input,
            **({"normed_input": True} if first else {}), **inputs, **of_kind.get(kind, {}), **kept,
        )  # fmt: skip

    if cache is not None:
        # Separate layers: a scan would copy the whole cache, and slice all weights, at every step.
        layers, hidden, kept, weights, fed = unstack(params, L), [], [], [], []
        for i in range(L):
            hidden.append(x_BTD)
            given: dict[str, Any]
            k_CSH, v_CHS, history, state = (cache[x][i] for x in ("k", "v", "history", "state"))
            given = {"cache": KeyValues(k_CSH, v_CHS, index, history, state)}
            if "memory" in cache:
                k_CSH, v_CHS = cache["memory"][i]
                given["memory"] = KeyValues(k_CSH, v_CHS, index)
            x_BTD, entry, w, *fed = layer(i, x_BTD, layers[i], _at(keys, i), i, **given)
            kept.append(entry)
            weights.append(w)
        cache = {
            **cache,
            "k": tuple(entry.k_CSH for entry in kept),
            "v": tuple(entry.v_CHS for entry in kept),
            "history": tuple(entry.history_BPD for entry in kept),
            "state": tuple(entry.state for entry in kept),
        }
        return Stacked(
            x_BTD,
            cache,
            jnp.stack(hidden) if return_hidden else None,
            _chosen(jnp.stack(weights), return_attention) if return_attention else None,
            fed[0] if fed else None,
        )

    def run(streams, start: int, each: tuple[Any, ...]):
        """Runs len(each) layers, of the kinds from `start` on."""
        x, fed = streams
        hidden, weights = [], []
        for offset, (layer_params, layer_key, number) in enumerate(each):
            hidden.append(x)
            shared = layer_params if layer_params is not None else _at(params, 0)
            x, _, w, *fed = layer(start + offset, x, shared, layer_key, number)
            x = constrain_batch(x)
            weights.append(w)
        # Without a period a layer's extras need no axis of their own.
        return (x, fed), (hidden if return_hidden else None, weights if return_attention else None)

    if config.remat != "none":
        run = jax.checkpoint(
            run, policy=POLICIES[config.remat], prevent_cse=False, static_argnums=1
        )

    def pick(index):
        number = jnp.arange(L)[index]
        return None if config.share_layers else _at(params, index), _at(keys, index), number

    head, period = _repeats(tuple(kinds))
    end = head + (L - head) // period * period
    x_BTD = constrain_batch(x_BTD)
    # A carry with the last layer's feed-forward input, if asked for: the others' are not kept.
    streams = x_BTD, [jnp.zeros_like(x_BTD)] if return_feed_input else []

    def single(streams, i: int):
        streams, extra = run(streams, i, (pick(i),))
        return streams, jax.tree.map(lambda leaf: leaf[None], extra)

    extras = []
    for i in range(head):
        streams, extra = single(streams, i)
        extras.append(extra)
    whole = head == 0 and period == 1 and end == L
    stacks = tuple(
        pick(slice(None)) if whole else pick(slice(head + offset, end, period))
        for offset in range(period)
    )
    unroll = -(-(config.unroll or L) // period)
    streams, extra = jax.lax.scan(
        lambda streams, each: run(streams, head, each),
        streams, stacks, length=(end - head) // period, unroll=min(unroll, (end - head) // period),
    )  # fmt: skip
    extras.append(extra)
    for i in range(end, L):
        streams, extra = single(streams, i)
        extras.append(extra)
    hidden, weights = (_in_order([extra[part] for extra in extras]) for part in (0, 1))
    weights = None if weights is None else _chosen(weights, return_attention)
    x_BTD, fed = streams
    return Stacked(x_BTD, None, hidden, weights, fed[0] if fed else None)


def _chosen(weights_LBNTS: jax.Array, asked: bool | Maps) -> jax.Array:
    layers = asked.layers if isinstance(asked, Maps) else ()
    return weights_LBNTS[jnp.array(layers)] if layers else weights_LBNTS


def _at(tree: Any, index: int | slice) -> Any:
    """Returns the leaves at `index` of their leading axis; None stays None."""
    whole = isinstance(index, slice) and index == slice(None)
    return tree if whole else jax.tree.map(lambda leaf: leaf[index], tree)


def _in_order(parts: list[Any]) -> jax.Array | None:
    """Returns the layers' extras [L, ...]; a part holds one [n, ...] for each place in a period."""
    if parts[0] is None:
        return None
    joined = [jnp.stack(part, axis=1).reshape(-1, *part[0].shape[1:]) for part in parts]
    return joined[0] if len(joined) == 1 else jnp.concatenate(joined)


@functools.lru_cache(maxsize=256)
def _repeats(kinds: tuple[str, ...]) -> tuple[int, int]:
    """Returns (head, period): after the first `head` layers the kinds repeat every `period`.

    Chosen so that the fewest layers are compiled apart: head, one period, and what is left over.
    """
    L = len(kinds)
    choices = [
        (head + period + (L - head) % period, head, period)
        for head in range(L)
        for period in range(1, L - head + 1)
        if all(kinds[i] == kinds[i + period] for i in range(head, L - period))
    ]
    return min(choices)[1:]


def remember_source(params: Any, num_layers: int, source_BSD: jax.Array) -> tuple[Any, ...]:
    """Returns each layer's keys [B*K, S, H] and values [B*K, H, S] of a source, for a cache."""
    layers = unstack(params, num_layers)
    made = (project_memory(layer["cross_attention"], source_BSD) for layer in layers)
    return tuple((kv.k_CSH, kv.v_CHS) for kv in made)


def unstack(params: Any, num_layers: int) -> tuple[Any, ...]:
    """Returns stacked parameters as a tuple of one tree a layer, for a decode loop.

    Done once before the loop begins, for inside it each step would copy all weights. A tuple is
    returned as it is. Layers that share their parameters get the same tree.
    """
    if isinstance(params, tuple):
        return params

    def layer(i: int) -> Any:
        of_layer = _at(params, i)
        return {**of_layer, "attention": join_projections(of_layer["attention"])}

    stacked = jax.tree.leaves(params)[0].shape[0]
    layers = tuple(layer(i) for i in range(stacked))
    layers = jax.lax.optimization_barrier(layers)  # or XLA moves the slices back into the loop
    return layers if stacked == num_layers else layers * num_layers
