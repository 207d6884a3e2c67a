"""Recurrent encoder and decoder: their parameters, and the decoder's step.

B batch, S source time, T target time, E embedding width, H hidden width, G gates, X = G * H,
A attention width, L layers.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.modules.recurrent_config import FORGET, GATES, RecurrentConfig
from jaxformer.ops import recurrent
from jaxformer.parallel.rules import gather_width


class Source(NamedTuple):
    """What the decoder sees of the source: keys, what they stand for, and which are real."""

    keys_BSA: jax.Array
    values_BSH: jax.Array
    valid_BS: jax.Array


State = dict[str, Any]  # "cells": L x (h_BH, c_BH) or (h_BH,); "feed" [B, H]


def uniform(limit: float):
    """Returns an initialiser that draws from [-limit, limit)."""
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -limit, limit)


class Table(nn.Module):
    """A table of embeddings."""

    rows: int
    width: int
    init_range: float

    @nn.compact
    def __call__(self, tokens_BT: jax.Array, dtype: Any) -> jax.Array:
        """Returns x_BTE."""
        table_VE = self.param("tokens", uniform(self.init_range), (self.rows, self.width))
        return ops.embed(tokens_BT, gather_width(table_VE), dtype=dtype)


class Cell(nn.Module):
    """The parameters of one layer in one direction; `feed` inputs come from the step before."""

    config: RecurrentConfig
    width: int
    feed: int = 0

    @nn.compact
    def __call__(self, inputs: int) -> dict[str, jax.Array]:
        """Returns {"in" [D, G, H], "hidden" [H, G, H], "bias", "hidden_bias" [G, H], "feed"}."""
        c, H, G = self.config, self.width, GATES[self.config.cell]
        start = uniform(H**-0.5)

        def forget(key, shape):
            return jnp.zeros(shape).at[FORGET].set(c.forget_bias if c.cell == "lstm" else 0.0)

        given = {
            "in": self.param("in", start, (inputs, G, H)),
            "hidden": self.param("hidden", start, (H, G, H)),
            "bias": self.param("bias", forget, (G, H)),
            "hidden_bias": self.param("hidden_bias", nn.initializers.zeros, (G, H)),
        }
        if self.feed:
            given["feed"] = self.param("feed", start, (self.feed, G, H))
        return given


def run_layer(
    config: RecurrentConfig, cell: dict[str, jax.Array], x_BTD, valid_BT, state=None, reverse=False
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Runs a layer over all times; returns (out_BTH, its last state)."""
    names = ("in", "hidden", "bias", "hidden_bias")
    start = dict(zip(("h_BH", "c_BH"), state or ()))
    layer = recurrent.lstm if config.cell == "lstm" else recurrent.gru
    return layer(
        x_BTD, *(cell[name] for name in names), valid_BT=valid_BT, reverse=reverse,
        unroll=config.unroll, **start,
    )  # fmt: skip


class Encoder(nn.Module):
    """Layers that read the source, one way or both."""

    config: RecurrentConfig

    @nn.compact
    def __call__(self, x_BSE: jax.Array, valid_BS, key=None) -> tuple[jax.Array, tuple]:
        """Returns (out_BSH, each layer's last state, the directions side by side)."""
        c = self.config
        ways = ("forward", "backward") if c.bidirectional else ("forward",)
        keys = [None] * c.num_layers if key is None else list(jax.random.split(key, c.num_layers))
        x, states = x_BSE, []
        for i in range(c.num_layers):
            x = x if i == 0 else ops.dropout(x, c.dropout, keys[i])
            parts = []
            for way in ways:
                cell = Cell(c, c.width // len(ways), name=f"layer_{i}_{way}")(x.shape[-1])
                parts.append(run_layer(c, cell, x, valid_BS, reverse=way == "backward"))
            outs, lasts = zip(*parts)
            x = jnp.concatenate(outs, axis=-1)
            states.append(tuple(jnp.concatenate(both, axis=-1) for both in zip(*lasts)))
        return x, tuple(states)


class Decoder(nn.Module):
    """Layers that write the target, each step with attention over the source."""

    config: RecurrentConfig

    @nn.compact
    def __call__(
        self, x_BTE: jax.Array, state: State, source: Source, valid_BT=None, key=None
    ) -> tuple[jax.Array, State, jax.Array]:
        """Returns (out_BTH, the last state, weights_BTS)."""
        c, H = self.config, self.config.width
        feeds = c.attention == "bahdanau" or c.input_feeding
        cells = [
            Cell(c, H, feed=0 if i or not feeds else H, name=f"layer_{i}")(
                H if i else c.embedding_width
            )
            for i in range(c.num_layers)
        ]
        inputs = 2 * H + (c.embedding_width if c.attention == "bahdanau" else 0)
        readout = self.param("readout", uniform(inputs**-0.5), (inputs, H))
        keys = [None] * (c.num_layers + 1)
        keys = keys if key is None else list(jax.random.split(key, c.num_layers + 1))
        if c.attention == "luong" and not c.input_feeding:
            return self._all_at_once(x_BTE, state, source, valid_BT, cells, readout, keys)
        B, T = x_BTE.shape[:2]
        drops = None
        if key is not None and c.dropout:  # what multiplies the layers' outputs, drawn at once
            ones = jnp.ones((T, B, H), x_BTE.dtype)
            drops = tuple(ops.dropout(ones, c.dropout, k) for k in keys[1:])
        lstm = c.cell == "lstm"
        biases = [cell["bias"] + cell["hidden_bias"] if lstm else cell["bias"] for cell in cells]
        constants: dict[str, Any] = {
            "biases": [bias.reshape(-1) for bias in biases[1:]],
            "hidden_biases": [] if lstm else [cell["hidden_bias"].reshape(-1) for cell in cells],
            "valid_BS": source.valid_BS,
        }
        matrices = {"feed": cells[0]["feed"], "values": source.values_BSH}
        specs = {"feed": "BH,HX->BX", "values": "BS,BSH->BH"}
        for i, cell in enumerate(cells):
            matrices[f"hidden_{i}"], specs[f"hidden_{i}"] = cell["hidden"], "BH,HX->BX"
            if i:
                matrices[f"in_{i}"], specs[f"in_{i}"] = cell["in"], "BH,HX->BX"
        matrices = {
            name: x if name == "values" else recurrent.flat_gates(x) for name, x in matrices.items()
        }
        if c.attention == "luong":
            matrices |= {"keys": source.keys_BSA, "readout": readout}
            specs |= {"keys": "BA,BSA->BS", "readout": "BI,IH->BH"}
        else:
            query_HA, constants["score_A"] = Query(c, name="attention")()
            matrices["query"], specs["query"] = query_HA, "BH,HA->BA"
            constants["keys_BSA"] = source.keys_BSA
        inputs_TBX = recurrent.project_in(x_BTE, cells[0]["in"], biases[0])
        xs = (inputs_TBX, recurrent.time_major(valid_BT), drops)
        (out, weights_TBS), state = recurrent.scan(
            functools.partial(_step, c), specs, matrices, constants, state, xs, unroll=c.unroll
        )
        if c.attention == "bahdanau":
            read = jnp.concatenate([*out, x_BTE.swapaxes(0, 1)], axis=-1)
            out = jnp.tanh(ops.linear(read, readout))
            out = out if drops is None else out * drops[-1]
        return out.swapaxes(0, 1), state, weights_TBS.swapaxes(0, 1)

    def _all_at_once(self, x_BTE, state, source, valid_BT, cells, readout, keys):
        """No step needs to know what the one before read: one matmul for all of them."""
        c, x, states = self.config, x_BTE, []
        for i, cell in enumerate(cells):
            x = x if i == 0 else ops.dropout(x, c.dropout, keys[i])
            x, last = run_layer(c, cell, x, valid_BT, state["cells"][i])
            states.append(last)
        scores_BTS = ops.einsum("BTA,BSA->BTS", x, source.keys_BSA)
        weights_BTS = recurrent.masked_softmax(scores_BTS, source.valid_BS[:, None])
        read_BTH = ops.einsum("BTS,BSH->BTH", weights_BTS, source.values_BSH)
        out = jnp.tanh(ops.linear(jnp.concatenate([read_BTH, x], axis=-1), readout))
        return ops.dropout(out, c.dropout, keys[-1]), {"cells": tuple(states)}, weights_BTS


class Keys(nn.Module):
    """What the attention makes of the source, once for all steps."""

    config: RecurrentConfig

    @nn.compact
    def __call__(self, values_BSH: jax.Array) -> jax.Array:
        """Returns keys_BSA."""
        H, A = self.config.width, self.config.attention_width or self.config.width
        if self.config.attention == "luong":  # state · (W source): the matrix meets the source
            general_HH = self.param("general", uniform(H**-0.5), (H, H))
            return ops.einsum("BSH,AH->BSA", values_BSH, general_HH)
        return ops.linear(values_BSH, self.param("key", uniform(H**-0.5), (H, A)))


class Query(nn.Module):
    """The rest of Bahdanau's tanh layer."""

    config: RecurrentConfig

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """Returns (query_HA, score_A)."""
        H, A = self.config.width, self.config.attention_width or self.config.width
        query_HA = self.param("query", uniform(H**-0.5), (H, A))
        return query_HA, self.param("score", uniform(A**-0.5), (A,))


def _step(c: RecurrentConfig, state: State, x, constants, times):
    """One token, for ops.recurrent.scan; returns (state, (out, weights_BS))."""
    inputs_BX, valid_B, drops = x
    cells, feed_BH = state["cells"], state["feed"]

    def attend(scores_BS):
        weights_BS = recurrent.masked_softmax(scores_BS, constants["valid_BS"])
        return times("values", weights_BS), weights_BS

    if c.attention == "bahdanau":
        query_BA = times("query", cells[-1][0])
        scores_BS = recurrent.additive_scores(
            query_BA, constants["keys_BSA"], constants["score_A"].astype(query_BA.dtype)
        )
        feed_BH, weights_BS = attend(scores_BS)
    inputs_BX = inputs_BX + times("feed", feed_BH)
    new: list[Any] = []
    for i, cell in enumerate(cells):
        if i:
            below_BH = new[-1][0] if drops is None else new[-1][0] * drops[i - 1]
            inputs_BX = times(f"in_{i}", below_BH)
            inputs_BX = inputs_BX + constants["biases"][i - 1].astype(inputs_BX.dtype)
        hidden_BX = times(f"hidden_{i}", cell[0])
        if c.cell == "lstm":
            new.append(recurrent.lstm_cell(inputs_BX + hidden_BX, cell[1]))
        else:
            hidden_BX = hidden_BX + constants["hidden_biases"][i].astype(hidden_BX.dtype)
            new.append((recurrent.gru_cell(inputs_BX, hidden_BX, cell[0]),))
    top_BH = new[-1][0]
    if c.attention == "luong":
        read_BH, weights_BS = attend(times("keys", top_BH))
        feed_BH = jnp.tanh(times("readout", jnp.concatenate([read_BH, top_BH], axis=-1)))
        feed_BH = feed_BH if drops is None else feed_BH * drops[-1]
        out = feed_BH
    else:
        out = (feed_BH, top_BH)
    made = {"cells": tuple(new), "feed": feed_BH}
    return recurrent.keep_valid(made, state, valid_B), (out, weights_BS)
