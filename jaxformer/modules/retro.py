"""RETRO's two cross-attentions, and stacks of layers of which some look at a source.

Borgeaud et al. (2022), section 2.4 and appendix B.1: a decoder reads the encoded neighbours of its
last whole chunk, and their encoder reads the decoder's states of the chunk they were found for.

Shapes: B batch, T time, L chunks of m tokens, P neighbours of a chunk, r tokens of a neighbour,
S = P r, N heads, K key/value heads, H head width, D width, E width of the neighbours' encoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.modules import initial, stack
from jaxformer.modules.block import Block
from jaxformer.modules.config import TransformerConfig
from jaxformer.modules.stack import Stacked
from jaxformer.ops.attention.chunked_cross import chunked_cross_attention


class Retrieved(NamedTuple):
    """What a decoder reads: encoded neighbours, or their keys and values in one layer.

    valid_BLS says which of the tokens exist; places_S are theirs, each within its neighbour.
    """

    valid_BLS: jax.Array
    places_S: Any
    chunk: int
    states_BLSE: Any = None
    keys: tuple[jax.Array, jax.Array] | None = None


def places_of(neighbours: int, length: int) -> jax.Array:
    """Returns the places of joined neighbours' tokens, each within its own: 0, 1, ..., 0, 1, ..."""
    return jnp.tile(jnp.arange(length), neighbours)


def turned(config: TransformerConfig, x_BTNH: jax.Array, places_T: jax.Array) -> jax.Array:
    """Returns queries or keys turned by their places (RoPE; the paper has a relative encoding)."""
    frequencies, _ = ops.rope_frequencies(config.per_head, config.rope_base)
    interleaved = config.positions == "rope_interleaved"
    return ops.rope(x_BTNH, places_T[None], frequencies, interleaved=interleaved)


def keys_of(
    config: TransformerConfig, params: Any, states_BLSE: jax.Array, places_S: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns (k, v) [B, L, S, K, H] of neighbours in one layer, from its weights "k" and "v"."""
    B, L, S, E = states_BLSE.shape
    flat_RSE = states_BLSE.reshape(B * L, S, E)
    k_RSKH = turned(config, ops.linear(flat_RSE, params["k"]), places_S)
    v_RSKH = ops.linear(flat_RSE, params["v"])
    shape = (B, L, *k_RSKH.shape[1:])
    return k_RSKH.reshape(shape), v_RSKH.reshape(shape)


class _Look(nn.Module):
    """The parameters of a cross-attention without biases, whose source has a width of its own.

    Without biases it adds exactly nothing where there is nothing to read.
    """

    config: TransformerConfig

    def weights(self, D: int, E: int) -> dict[str, jax.Array]:
        """Returns q, k, v and out."""
        c = self.config
        N, K, H = c.num_heads, c.kv_heads, c.per_head
        return {
            "q": self.param("q", initial.inner(c, D), (D, N, H)),
            "k": self.param("k", initial.inner(c, E), (E, K, H)),
            "v": self.param("v", initial.inner(c, E), (E, K, H)),
            "out": self.param("out", initial.output(c, N * H), (N, H, D)),
        }

    def options(self, key: jax.Array | None) -> dict[str, Any]:
        """Returns what attention is told, whatever it looks at."""
        c = self.config
        rate = c.attention_dropout if key is not None else 0.0
        options = {"dropout_rate": rate, "key": key, "backend": c.attention_backend}
        return options | ({"scale": c.attention_scale} if c.attention_scale else {})


class ReadNeighbours(_Look):
    """Chunked cross-attention (section 2.4): `kv_BSD` is a Retrieved.

    A token at place i of its chunk stands at place i + m, for its own chunk continues the one that
    the neighbours were found for, as the second half of a neighbour continues the first.
    """

    @nn.compact
    def __call__(
        self, x_BTD, *, kv_BSD: Retrieved, memory=None, mask=None, key=None, offset=0
    ) -> tuple[jax.Array, None, None]:
        """Returns (what was read [B, T, D], None, None), as a Block expects it."""
        c, source, (_, T, D) = self.config, kv_BSD, x_BTD.shape
        if source.keys is None:
            w = self.weights(D, source.states_BLSE.shape[-1])
            k_BLSKH, v_BLSKH = keys_of(c, w, source.states_BLSE, source.places_S)
        else:
            w = {name: self.get_variable("params", name) for name in ("q", "out")}
            k_BLSKH, v_BLSKH = (x.astype(x_BTD.dtype) for x in source.keys)
        # The chunk's last token reads its own chunk's neighbours: the first who may.
        slots_T = (offset + 1 + jnp.arange(T)) % source.chunk
        q_BTNH = turned(c, ops.linear(x_BTD, w["q"]), slots_T + source.chunk - 1)
        out_BTNH = chunked_cross_attention(
            q_BTNH, k_BLSKH, v_BLSKH, chunk=source.chunk, valid_BLS=source.valid_BLS,
            offset=offset, **self.options(key),
        )  # fmt: skip
        return ops.linear(out_BTNH, w["out"], axes=2), None, None


class ReadChunk(_Look):
    """Neighbours [B * L * P, r, E] read the decoder's states of their chunk, kv_BSD [B * L, m, D].

    Place i of a neighbour's first half stands beside place i of the chunk.
    """

    @nn.compact
    def __call__(
        self, x_BTD, *, kv_BSD: jax.Array, memory=None, mask=None, key=None, offset=0
    ) -> tuple[jax.Array, None, None]:
        """Returns (what was read, None, None), as a Block expects it."""
        c, (rows, r, E), (chunks, m, D) = self.config, x_BTD.shape, kv_BSD.shape
        w = self.weights(E, D)
        q_BTNH = turned(c, ops.linear(x_BTD, w["q"]), jnp.arange(r))
        k_BSKH = turned(c, ops.linear(kv_BSD, w["k"]), jnp.arange(m))
        together = q_BTNH.reshape(chunks, rows // chunks * r, *q_BTNH.shape[2:])
        out_BTNH = ops.attention(together, k_BSKH, ops.linear(kv_BSD, w["v"]), **self.options(key))
        return ops.linear(out_BTNH.reshape(q_BTNH.shape), w["out"], axes=2), None, None


def init(
    config: TransformerConfig, look: type[_Look], key: jax.Array, x_BTD: jax.Array, source: Any,
    looking: Sequence[int], **inputs: Any,
) -> dict[str, Any]:  # fmt: skip
    """Returns {"layers", "cross": {"layers"}}: all blocks' parameters, and what those have besides
    that look at the source, with an axis of their own."""
    of_blocks, of_looks = jax.random.split(key)
    made = {"layers": stack.init(Block(config), of_blocks, x_BTD, **inputs)}
    seeing = Block(config, cross=True, look=look)
    keys = jax.random.split(of_looks, len(looking))
    with_cross = jax.lax.map(
        lambda k: seeing.init(k, x_BTD, source_BSD=source, **inputs)["params"], keys
    )
    looks = {name: with_cross[name] for name in with_cross if name.startswith("cross_attention")}
    return made | {"cross": {"layers": looks}}


def apply(
    config: TransformerConfig, look: type[_Look], params: dict[str, Any], x_BTD: jax.Array,
    source: Callable[[int, jax.Array], Any] | None, looking: Sequence[int], *,
    cache: Any = None, key: jax.Array | None = None, **asked: Any,
) -> Stacked:  # fmt: skip
    """Runs all layers; those in `looking` also read a source between attention and feed-forward.

    Args:
      config: of the stack.
      look: ReadNeighbours or ReadChunk.
      params: from `init`; "layers" may be apart.
      x_BTD: the stream's input.
      source: called with 0, 1, ... and the input of the layer that looks next; gives what it
        reads. None: there is nothing to read, and the layers are plain ones.
      looking: which layers look, from 0, rising.
      cache: as of stack.apply.
      key: of dropout.
      **asked: as of stack.apply.
    """
    L = config.num_layers
    turns = {layer: number for number, layer in enumerate(looking)} if source is not None else {}
    starts = sorted({0, *turns, *(layer + 1 for layer in turns if layer + 1 < L)})
    keys = [None] * len(starts) if key is None else jax.random.split(key, len(starts))
    parts = []
    for start, stop, of_part in zip(starts, [*starts[1:], L], keys):
        span = slice(start, stop)
        of_span = dataclasses.replace(config, num_layers=stop - start)
        layers, given, block = _cut(params["layers"], span), {}, Block(of_span)
        if source is not None and start in turns:
            block = Block(of_span, cross=True, look=look)
            number = turns[start]
            extra = jax.tree.map(lambda x, n=number: x[n : n + 1], params["cross"]["layers"])
            apart = isinstance(layers, tuple)
            layers = ({**layers[0], **_cut(extra, 0)},) if apart else {**layers, **extra}
            given["source_BSD"] = source(number, x_BTD)
        inner = None if cache is None else {n: cache[n][span] for n in stack_names(cache)}
        out = stack.apply(block, layers, x_BTD, cache=inner, key=of_part, **given, **asked)
        x_BTD = out.x_BTD
        parts.append(out)
    if cache is not None:
        cache = cache | {n: sum((p.cache[n] for p in parts), ()) for n in stack_names(cache)}
    return Stacked(
        x_BTD, cache,
        _joined([part.hidden_states_LBTD for part in parts]),
        _joined([part.attention_LBNTS for part in parts]),
        parts[-1].feed_input_BTD,
    )  # fmt: skip


def stack_names(cache: Any) -> list[str]:
    """Returns the names in a cache that have one entry a layer."""
    return [name for name in ("k", "v", "history", "state") if name in cache]


def _cut(layers: Any, place: slice | int) -> Any:
    return layers[place] if isinstance(layers, tuple) else jax.tree.map(lambda x: x[place], layers)


def _joined(parts: list[jax.Array | None]) -> jax.Array | None:
    return None if parts[0] is None else jnp.concatenate(parts)
