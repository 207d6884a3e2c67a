"""Recurrent layers: LSTM and GRU, and the loop over time that they and their decoders share.

Whatever does not depend on the state before is computed for all times in one matmul, before the
loop; and the gradients of the matrices inside it in one matmul each, after the loop.

Shapes: B batch, T time, D width of the input, H hidden width, G gates (LSTM 4, GRU 3), S source
time, A attention width. Inside the loop gates lie side by side, [B, G * H].
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.ops.linear import einsum, linear

Step = Callable[[Any, Any, Any, Callable[[str, jax.Array], jax.Array]], tuple[Any, Any]]


def lstm(
    x_BTD: jax.Array,
    w_in_DGH: jax.Array,
    w_hidden_HGH: jax.Array,
    bias_GH: jax.Array | None = None,
    hidden_bias_GH: jax.Array | None = None,
    *,
    h_BH: jax.Array | None = None,
    c_BH: jax.Array | None = None,
    valid_BT: jax.Array | None = None,
    reverse: bool = False,
    unroll: int = 1,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """A layer of long short-term memory with forget gates (Gers et al., 2000); as torch.nn.LSTM.

    Args:
      x_BTD: the input.
      w_in_DGH: its weights; gates in the order input, forget, cell, output.
      w_hidden_HGH: the weights of the hidden state.
      bias_GH: or None.
      hidden_bias_GH: a second bias, or None; it is added to the first.
      h_BH: the first hidden state; zeros if None.
      c_BH: the first cell state; zeros if None.
      valid_BT: False at padding, on either side: it leaves the state as it is, and its output is 0.
      reverse: run from the last time to the first; each row begins at its last real token.
      unroll: steps of the loop that are compiled together (on a CPU more than 1 gains nothing).

    Returns:
      (out_BTH, (h_BH, c_BH)), the output in order of time and the last state.
    """
    bias = sum(b for b in (bias_GH, hidden_bias_GH) if b is not None)
    inputs_TBX = project_in(x_BTD, w_in_DGH, None if isinstance(bias, int) else bias)
    matrices = {"hidden": flat_gates(w_hidden_HGH)}
    zero_BH = jnp.zeros((x_BTD.shape[0], w_hidden_HGH.shape[0]), x_BTD.dtype)
    h_BH = zero_BH if h_BH is None else h_BH.astype(x_BTD.dtype)
    # What an LSTM remembers is a long sum: in float32, whatever the dtype of the matmuls.
    c_BH = (zero_BH if c_BH is None else c_BH).astype(jnp.promote_types(x_BTD.dtype, jnp.float32))
    out_TBH, state = scan(
        _lstm_step, {"hidden": "BH,HX->BX"}, matrices, None, (h_BH, c_BH),
        (inputs_TBX, time_major(valid_BT)), reverse=reverse, unroll=unroll,
    )  # fmt: skip
    return out_TBH.swapaxes(0, 1), state


def gru(
    x_BTD: jax.Array,
    w_in_DGH: jax.Array,
    w_hidden_HGH: jax.Array,
    bias_GH: jax.Array | None = None,
    hidden_bias_GH: jax.Array | None = None,
    *,
    h_BH: jax.Array | None = None,
    valid_BT: jax.Array | None = None,
    reverse: bool = False,
    unroll: int = 1,
) -> tuple[jax.Array, tuple[jax.Array]]:
    """A layer of gated recurrent units (Cho et al., 2014); as torch.nn.GRU.

    The reset gate acts on the product of hidden state and weights, where the paper's acts on the
    hidden state: the form of cuDNN, which lets all gates share one matmul.

    Args:
      x_BTD: the input.
      w_in_DGH: its weights; gates in the order reset, update, new.
      w_hidden_HGH: the weights of the hidden state.
      bias_GH: or None.
      hidden_bias_GH: added to the hidden product, before the reset gate acts on it; or None.
      h_BH: the first hidden state; zeros if None.
      valid_BT: False at padding, on either side: it leaves the state as it is, and its output is 0.
      reverse: run from the last time to the first; each row begins at its last real token.
      unroll: steps of the loop that are compiled together (on a CPU more than 1 gains nothing).

    Returns:
      (out_BTH, (h_BH,)), the output in order of time and the last state.
    """
    inputs_TBX = project_in(x_BTD, w_in_DGH, bias_GH)
    bias_X = None if hidden_bias_GH is None else hidden_bias_GH.reshape(-1)
    zero_BH = jnp.zeros((x_BTD.shape[0], w_hidden_HGH.shape[0]), x_BTD.dtype)
    h_BH = zero_BH if h_BH is None else h_BH.astype(x_BTD.dtype)
    out_TBH, state = scan(
        _gru_step, {"hidden": "BH,HX->BX"}, {"hidden": flat_gates(w_hidden_HGH)}, bias_X, (h_BH,),
        (inputs_TBX, time_major(valid_BT)), reverse=reverse, unroll=unroll,
    )  # fmt: skip
    return out_TBH.swapaxes(0, 1), state


def lstm_cell(gates_BX: jax.Array, c_BH: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step of an LSTM from the sums [B, 4 H] that its gates see, in the dtype of c_BH.

    Returns (h_BH in the dtype of the sums, c_BH).
    """
    i, f, g, o = jnp.split(gates_BX.astype(c_BH.dtype), 4, axis=-1)
    c_BH = jax.nn.sigmoid(f) * c_BH + jax.nn.sigmoid(i) * jnp.tanh(g)
    return (jax.nn.sigmoid(o) * jnp.tanh(c_BH)).astype(gates_BX.dtype), c_BH


def gru_cell(inputs_BX: jax.Array, hidden_BX: jax.Array, h_BH: jax.Array) -> jax.Array:
    """One step of a GRU from its two products [B, 3 H], biases included; returns h_BH."""
    wide = jnp.promote_types(inputs_BX.dtype, jnp.float32)
    r, z, n = jnp.split(inputs_BX.astype(wide), 3, axis=-1)
    hr, hz, hn = jnp.split(hidden_BX.astype(wide), 3, axis=-1)
    z = jax.nn.sigmoid(z + hz)
    n = jnp.tanh(n + jax.nn.sigmoid(r + hr) * hn)
    return ((1 - z) * n + z * h_BH).astype(h_BH.dtype)


def additive_scores(query_BA: jax.Array, keys_BSA: jax.Array, score_A: jax.Array) -> jax.Array:
    """score · tanh(query + key) for each key (Bahdanau et al., 2015, A.1.2); returns [B, S]."""
    return jnp.einsum("BSA,A->BS", jnp.tanh(query_BA[:, None] + keys_BSA), score_A)


def masked_softmax(scores_xS: jax.Array, valid_xS: jax.Array | None) -> jax.Array:
    """The softmax over the last axis of what is valid; exactly 0 everywhere where nothing is."""
    if valid_xS is None:
        return jax.nn.softmax(scores_xS, axis=-1)
    top = jnp.max(scores_xS, axis=-1, keepdims=True, where=valid_xS, initial=-1e30)
    shifted = jnp.where(valid_xS, scores_xS - jax.lax.stop_gradient(top), 0.0)
    p_xS = jnp.where(valid_xS, jnp.exp(shifted), 0.0)
    total = p_xS.sum(axis=-1, keepdims=True)
    return p_xS / jnp.where(total == 0.0, 1.0, total)


def keep_valid(new: Any, old: Any, valid_B: jax.Array | None) -> Any:
    """Returns the new state in rows that are valid and the old one in the others."""
    if valid_B is None:
        return new
    return jax.tree.map(lambda a, b: jnp.where(valid_B[:, None], a, b), new, old)


def project_in(x_BTD: jax.Array, w_in_DGH: jax.Array, bias_GH: jax.Array | None) -> jax.Array:
    """Returns the products of all times with the input's weights, [T, B, G * H]."""
    bias_X = None if bias_GH is None else bias_GH.reshape(-1)
    return linear(x_BTD.swapaxes(0, 1), flat_gates(w_in_DGH), bias_X)


def flat_gates(w_DGH: jax.Array) -> jax.Array:
    """Returns the weights of all gates side by side, [D, G * H]."""
    return w_DGH.reshape(w_DGH.shape[0], -1)


def time_major(valid_BT: jax.Array | None) -> jax.Array | None:
    """Returns valid_TB, or None."""
    return None if valid_BT is None else valid_BT.swapaxes(0, 1)


def _lstm_step(state, x, constants, times):
    del constants
    (h_BH, c_BH), (inputs_BX, valid_B) = state, x
    new = lstm_cell(inputs_BX + times("hidden", h_BH), c_BH)
    return keep_valid(new, state, valid_B), _output(new[0], valid_B)


def _gru_step(state, x, bias_X, times):
    (h_BH,), (inputs_BX, valid_B) = state, x
    hidden_BX = times("hidden", h_BH)
    hidden_BX = hidden_BX if bias_X is None else hidden_BX + bias_X.astype(hidden_BX.dtype)
    new = (gru_cell(inputs_BX, hidden_BX, h_BH),)
    return keep_valid(new, state, valid_B), _output(new[0], valid_B)


def _output(h_BH: jax.Array, valid_B: jax.Array | None) -> jax.Array:
    return h_BH if valid_B is None else jnp.where(valid_B[:, None], h_BH, 0)


def scan(
    step: Step,
    specs: Mapping[str, str],
    matrices: Mapping[str, jax.Array],
    constants: Any,
    carry: Any,
    xs: Any,
    *,
    reverse: bool = False,
    unroll: int = 1,
) -> tuple[Any, Any]:
    """`jax.lax.scan` over time, whose gradients of matrices are one matmul each, after the loop.

    Left to itself, the backward loop adds a whole matrix of gradients to memory at each step. Here
    it keeps each product's gradient, and they meet the products' inputs of all times afterwards.

    Args:
      step: (carry, x, constants, times) -> (carry, y), a function without hidden arrays;
        `times(name, a)` is the product of `a` with a matrix. Each name is used once a step.
      specs: the einsum of each product, such as "BH,HX->BX", without the letter T.
      matrices: by the same names.
      constants: a tree of other arrays that `step` reads.
      carry: the first state.
      xs: a tree of arrays with time as their first axis; None has no leaves.
      reverse: run from the last time to the first.
      unroll: steps that are compiled together.

    Returns:
      (ys with time as their first axis, the last carry).
    """
    options = (tuple(sorted(specs.items())), reverse, unroll)
    return _scan(step, options, dict(matrices), constants, carry, xs)


def _run(step, options, matrices, constants, carry, xs, probes):
    """Returns ((ys, carry), each product's inputs of all times); probes are added to products."""
    named, reverse, unroll = options
    specs = dict(named)

    def body(carry, each):
        x, probe = each
        inputs = {}

        def times(name: str, a: jax.Array) -> jax.Array:
            inputs[name] = a
            product = einsum(specs[name], a, matrices[name])
            return product if probe is None else product + probe[name]

        carry, y = step(carry, x, constants, times)
        return carry, (y, inputs)

    carry, (ys, inputs) = jax.lax.scan(body, carry, (xs, probes), reverse=reverse, unroll=unroll)
    return (ys, carry), inputs


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(step, options, matrices, constants, carry, xs):
    return _run(step, options, matrices, constants, carry, xs, None)[0]


def _forward(step, options, matrices, constants, carry, xs):
    # A probe of zeros is added to each product: its gradient is the product's.
    _, inputs = jax.eval_shape(
        functools.partial(_run, step, options), matrices, constants, carry, xs, None
    )
    probes = {}
    for name, spec in options[0]:
        terms, out = spec.split("->")
        a, b = terms.split(",")
        sizes = dict(zip(b, matrices[name].shape)) | dict(zip("T" + a, inputs[name].shape))
        shape = [sizes[letter] for letter in "T" + out]
        probes[name] = jnp.zeros(shape, inputs[name].dtype)

    def run(constants, carry, xs, probes):
        return _run(step, options, matrices, constants, carry, xs, probes)

    result, pullback, inputs = jax.vjp(run, constants, carry, xs, probes, has_aux=True)
    return result, (pullback, inputs, matrices)


def _backward(step, options, residuals, cotangents):
    del step
    pullback, inputs, matrices = residuals
    d_constants, d_carry, d_xs, d_probes = pullback(cotangents)
    d_matrices = {}
    for name, spec in options[0]:
        terms, out = spec.split("->")
        a, b = terms.split(",")
        d_matrices[name] = einsum(
            f"T{a},T{out}->{b}", inputs[name], d_probes[name], out_dtype=jnp.float32
        ).astype(matrices[name].dtype)
    return d_matrices, d_constants, d_carry, d_xs


_scan.defvjp(_forward, _backward)
