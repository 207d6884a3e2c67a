"""Recurrent layers against torch's, and what must hold whatever the weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import ops
from jaxformer.ops import recurrent
from tests.ops.jaxprs import equations

B, T, D, H = 4, 7, 5, 6
LENGTHS = np.array([7, 3, 1, 5])
GATES = {"lstm": 4, "gru": 3}
LAYERS = {"lstm": ops.lstm, "gru": ops.gru}


def inputs(cell: str, seed: int = 0) -> dict:
    """x and the parameters, by the names of ops.lstm and ops.gru."""
    rng, G = np.random.default_rng(seed), GATES[cell]
    shapes = dict(x_BTD=(B, T, D), w_in_DGH=(D, G, H), w_hidden_HGH=(H, G, H), bias_GH=(G, H),
                  hidden_bias_GH=(G, H))  # fmt: skip
    return {name: 0.5 * rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}


def close(a, b, bound=1e-5):
    np.testing.assert_allclose(a, b, atol=bound * float(np.abs(b).max()), rtol=0)


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("reverse", [False, True])
def test_equals_torch_on_packed_rows(cell, reverse):
    """Output, last state, and the gradients of everything; rows of 1 to 7 tokens."""
    torch = pytest.importorskip("torch")
    arrays = inputs(cell)
    layer = getattr(torch.nn, cell.upper())(D, H, batch_first=True, bidirectional=reverse)
    end = "_reverse" if reverse else ""
    weights = dict(layer.named_parameters())
    for theirs, ours in (("weight_ih", "w_in_DGH"), ("weight_hh", "w_hidden_HGH"),
                         ("bias_ih", "bias_GH"), ("bias_hh", "hidden_bias_GH")):  # fmt: skip
        flat = arrays[ours].reshape(*arrays[ours].shape[:-2], -1)
        weights[f"{theirs}_l0{end}"].data = torch.tensor(flat.T.copy())
    x = torch.tensor(arrays["x_BTD"], requires_grad=True)
    pack = torch.nn.utils.rnn.pack_padded_sequence
    packed, last = layer(pack(x, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False))
    want, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
    want = want[..., -H:]
    last = [state[-1] for state in (last if cell == "lstm" else (last,))]
    weight = torch.tensor(np.random.default_rng(1).normal(size=(B, T, H)), dtype=torch.float32)
    (want * weight).sum().backward(retain_graph=True)
    sum((3 * state.sin()).sum() for state in last).backward()
    valid_BT = np.arange(T) < LENGTHS[:, None]

    @jax.jit
    def loss(arrays):
        out, state = LAYERS[cell](**arrays, valid_BT=valid_BT, reverse=reverse)
        total = jnp.sum(out * weight.numpy()) + sum(jnp.sum(3 * jnp.sin(s)) for s in state)
        return total, (out, state)

    gradients, (out, state) = jax.grad(loss, has_aux=True)(arrays)
    close(out, want.detach().numpy())
    for ours, theirs in zip(state, last):
        close(ours, theirs.detach().numpy())
    close(gradients["x_BTD"], x.grad.numpy())
    for theirs, ours in (("weight_ih", "w_in_DGH"), ("weight_hh", "w_hidden_HGH"),
                         ("bias_ih", "bias_GH"), ("bias_hh", "hidden_bias_GH")):  # fmt: skip
        grad = weights[f"{theirs}_l0{end}"].grad.numpy().T
        close(np.asarray(gradients[ours]).reshape(grad.shape), grad)


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_on_either_side_is_as_if_it_were_not_there(cell, reverse):
    arrays, layer = inputs(cell), jax.jit(LAYERS[cell], static_argnames="reverse")
    out, state = layer(**arrays, reverse=reverse)
    x = np.pad(arrays["x_BTD"], ((0, 0), (3, 2), (0, 0)), constant_values=9.0)
    valid_BT = np.broadcast_to((np.arange(T + 5) >= 3) & (np.arange(T + 5) < T + 3), (B, T + 5))
    padded, padded_state = layer(**{**arrays, "x_BTD": x}, valid_BT=valid_BT, reverse=reverse)
    close(padded[:, 3:-2], out)
    assert float(jnp.abs(padded[:, :3]).max()) == 0.0 == float(jnp.abs(padded[:, -2:]).max())
    jax.tree.map(close, padded_state, state)


@pytest.mark.parametrize("cell", LAYERS)
def test_in_two_parts_equals_in_one(cell):
    """The last state of the first part is the first state of the second."""
    arrays, layer = inputs(cell), LAYERS[cell]
    out, state = layer(**arrays)
    x = arrays.pop("x_BTD")
    first, middle = layer(x[:, :4], **arrays)
    second, last = layer(x[:, 4:], **arrays, **dict(zip(("h_BH", "c_BH"), middle)))
    close(jnp.concatenate([first, second], axis=1), out)
    jax.tree.map(close, last, state)


@pytest.mark.parametrize("unroll", [1, 3])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_of_the_loop_are_those_of_a_plain_one(unroll, reverse):
    """Matrices that all rows share, one of each row, constants, the first state, the inputs."""
    rng = np.random.default_rng(0)
    S = 3
    given = {
        "matrices": {"w": rng.normal(size=(H, H)), "rows": rng.normal(size=(B, S, H))},
        "constants": rng.normal(size=H),
        "carry": (rng.normal(size=(B, H)),),
        "xs": rng.normal(size=(T, B, H)),
    }
    given = jax.tree.map(lambda x: jnp.asarray(0.3 * x, jnp.float32), given)
    specs = {"w": "BH,HO->BO", "rows": "BH,BSH->BS"}

    def step(carry, x, constants, times):
        h = jnp.tanh(times("w", carry[0]) + x + constants)
        return (h,), jnp.sin(times("rows", h))

    def plain(matrices, constants, carry, xs):
        def body(carry, x):
            return step(carry, x, constants, lambda n, a: jnp.einsum(specs[n], a, matrices[n]))

        carry, ys = jax.lax.scan(body, carry, xs, reverse=reverse)
        return ys, carry

    def own(matrices, constants, carry, xs):
        return recurrent.scan(
            step, specs, matrices, constants, carry, xs, reverse=reverse, unroll=unroll
        )

    def loss(run):
        def total(given):
            ys, (h,) = run(**given)
            return jnp.sum(ys * ys) + jnp.sum(jnp.cos(h))

        return jax.jit(jax.value_and_grad(total))(given)

    jax.tree.map(close, loss(own), loss(plain))


def test_the_backward_loop_sums_no_matrix():
    """A plain loop adds a gradient of [H, 4 H] to what it carries, at every step."""

    def carries(run) -> bool:
        jaxpr = jax.make_jaxpr(jax.grad(lambda w: run(w).sum()))(jnp.ones((H, 4 * H)))
        loops = [eqn for eqn in equations(jaxpr.jaxpr) if eqn.primitive.name == "scan"]
        assert len(loops) >= 2
        return any(out.aval.shape == (H, 4 * H) for eqn in loops for out in eqn.outvars)

    def step(carry, x, constants, times):
        h = times("w", carry)[:, :H] + x
        return h, h

    start, xs = jnp.ones((B, H)), jnp.ones((T, B, H))
    spec = {"w": "BH,HX->BX"}
    assert not carries(lambda w: recurrent.scan(step, spec, {"w": w}, None, start, xs)[0])

    def plain(w):
        return jax.lax.scan(lambda h, x: step(h, x, None, lambda _, a: a @ w), start, xs)[1]

    assert carries(plain)


def test_attention_over_nothing_is_zero_and_finite():
    scores = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    valid = jnp.array([[True, False, True], [False, False, False]])
    p = recurrent.masked_softmax(scores, valid)
    close(p[0], np.array([np.exp(1), 0, np.exp(3)]) / (np.exp(1) + np.exp(3)))
    assert float(jnp.abs(p[1]).max()) == 0.0
    gradient = jax.grad(lambda s: jnp.sum(recurrent.masked_softmax(s, valid) ** 2))(scores)
    assert bool(jnp.isfinite(gradient).all()) and float(jnp.abs(gradient[1]).max()) == 0.0


@pytest.mark.parametrize("cell", LAYERS)
def test_bfloat16_keeps_its_dtype_and_stays_near(cell):
    arrays = inputs(cell)
    want, _ = LAYERS[cell](**arrays)
    out, state = LAYERS[cell](**{**arrays, "x_BTD": jnp.asarray(arrays["x_BTD"], jnp.bfloat16)})
    assert out.dtype == jnp.bfloat16 and state[-1].dtype == (
        "float32" if cell == "lstm" else out.dtype
    )
    assert float(jnp.abs(out - want).max()) < 0.03
