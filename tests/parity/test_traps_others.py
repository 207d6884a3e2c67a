"""Traps of LSTM and GRU, XLNet and Transformer-XL; see traps.py."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import ops
from jaxformer.models import transformer_xl
from jaxformer.ops.attention import relative
from tests.models import test_transformer_xl as written_out
from tests.parity.case import LOGITS, array
from tests.parity.case import relative as difference
from tests.parity.traps import (
    TOKENS,
    Subject,
    Trap,
    V,
    edit,
    hold,
    model_of,
    patched,
    published,
    shrunk,
)

B, T, D, H, M = 2, 9, 16, 6, 4
TYPES = (np.arange(T) > 3).astype(np.int32) + np.zeros((B, 1), np.int32)
_XLNET = dict(vocab_size=V, d_model=D, n_layer=2, n_head=4, d_inner=24)


def orders() -> tuple[np.ndarray, np.ndarray]:
    """A random order of each row: (perm_mask [B, T, T], target_mapping of its last 3 [B, 3, T])."""
    rng = np.random.default_rng(0)
    place = np.stack([rng.permutation(T) for _ in range(B)])
    hidden = place >= T - 3
    perm_mask = hidden[:, None, :] & (place[:, None, :] >= place[:, :, None])
    mapping = np.eye(T)[np.argsort(place)[:, -3:]]
    return perm_mask.astype(np.float32), mapping.astype(np.float32)


PERM, MAPPING = orders()


def two_streams(model, tokens):
    import torch

    return model(
        tokens, token_type_ids=torch.tensor(TYPES).long(), perm_mask=torch.tensor(PERM),
        target_mapping=torch.tensor(MAPPING),
    ).logits  # fmt: skip


def first_stream(model, params, batch):
    """Predicts each token from its own state, as a model of one stream would."""
    given = {name: x for name, x in batch.items() if name != "target_mapping"}
    hidden_BTD = model.apply(params, given).hidden_BTD
    picked_BPD = jnp.einsum("BPT,BTD->BPD", batch["target_mapping"], hidden_BTD)
    return model.logits(params, picked_BPD)


def after_memory(model, params, batch):
    """Hidden states of the second part of a text, with the memory of the first."""
    c = model.config
    cache = transformer_xl.empty_memory(c, B)
    for part in (batch["tokens"][:, :M], batch["tokens"][:, M:]):
        out = model.apply(params, {"tokens": part}, cache=cache)
        cache = out.cache
    return out.hidden_BTD


def without_memory(model, params, batch):
    empty = transformer_xl.empty_memory(model.config, B)
    return model.apply(params, {"tokens": batch["tokens"][:, M:]}, cache=empty).hidden_BTD


def transformer_xl_subject(**keys) -> Subject:
    """Transformer-XL, whose published class left transformers: its paper's equations instead."""
    sizes = dict(vocab_size=V, width=D, num_heads=4, head_dim=4, feed_forward=24, memory_length=M)
    model, params = written_out.make(**sizes, **keys)
    expected, tokens = [], TOKENS[:, : 2 * M]
    for row in tokens:
        empty = [np.zeros((0, model.config.width))] * model.config.num_layers
        _, inputs = written_out.paper(model.config, params, row[:M], empty)
        memory = [x[-model.config.memory_length :] for x in inputs]
        expected.append(written_out.paper(model.config, params, row[M:], memory)[0])
    batch = {"tokens": jnp.asarray(tokens)}
    return Subject(np.stack(expected), model.config, params, batch, after_memory)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "XLNet": lambda: published(
        "XLNetLMHeadModel", "XLNetConfig", **_XLNET, scale=0.3, ask=two_streams,
        batch={"token_types": TYPES, "perm_mask": PERM, "target_mapping": MAPPING},
    ),
    "XLNet, small variance": lambda: published(
        "XLNetLMHeadModel", "XLNetConfig", **_XLNET, prepare=shrunk
    ),
    "Transformer-XL": lambda: transformer_xl_subject(),
    "Transformer-XL, same length": lambda: transformer_xl_subject(same_length=True),
}  # fmt: skip
subject = functools.cache(lambda name: SUBJECTS[name]())


def one_further(true, x_xtR, num_keys):
    """The columns of distances one place off."""
    return true(jnp.roll(x_xtR, 1, axis=-1), num_keys)


def unshifted(true, x_xtR, num_keys):
    return x_xtR[..., :num_keys]


def in_turn(true, positions, width, *, interleaved):
    return true(positions, width, interleaved=True)


def sees_itself(batch):
    """A second stream that may look at the token it predicts, as the first may."""
    return {**batch, "perm_mask": batch["perm_mask"] * (1 - jnp.eye(T))}


_BIAS = "layers/attention/r_{}_bias".format
TRAPS = [
    Trap("XLNet", "perm_mask 1 for what may be seen", "XLNet",
         batch=lambda batch: {**batch, "perm_mask": 1 - batch["perm_mask"]}),
    Trap("XLNet", "perm_mask transposed", "XLNet",
         batch=lambda batch: {**batch, "perm_mask": batch["perm_mask"].swapaxes(1, 2)}),
    Trap("XLNet", "one stream", "XLNet", read=first_stream),
    Trap("XLNet", "a prediction that sees its token", "XLNet", batch=sees_itself),
    Trap("XLNet", "distances not shifted", "XLNet", patch=(relative, "relative_shift", unshifted)),
    Trap("XLNet", "distances shifted by one more", "XLNet",
         patch=(relative, "relative_shift", one_further)),
    Trap("XLNet", "no bias of the content", "XLNet", params=edit(_BIAS("w"), np.zeros_like)),
    Trap("XLNet", "no bias of the distance", "XLNet", params=edit(_BIAS("r"), np.zeros_like)),
    Trap("XLNet", "no bias of the segment", "XLNet", params=edit(_BIAS("s"), np.zeros_like)),
    Trap("XLNet", "segments left out", "XLNet",
         batch=lambda batch: {name: x for name, x in batch.items() if name != "token_types"}),
    Trap("XLNet", "the same segment taken for another", "XLNet",
         params=edit("layers/attention/segment_bias", lambda x: x[:, ::-1])),
    Trap("XLNet", "sines and cosines in turn", "XLNet", patch=(relative, "sinusoidal", in_turn)),
    Trap("XLNet", "epsilon 1e-5", "XLNet, small variance", {"norm_epsilon": 1e-5}),
    Trap("Transformer-XL", "distances not shifted", "Transformer-XL",
         patch=(relative, "relative_shift", unshifted)),
    Trap("Transformer-XL", "distances shifted by one more", "Transformer-XL",
         patch=(relative, "relative_shift", one_further)),
    Trap("Transformer-XL", "sines and cosines in turn", "Transformer-XL",
         patch=(relative, "sinusoidal", in_turn)),
    Trap("Transformer-XL", "the biases exchanged", "Transformer-XL", params=lambda params: {
        **params, "relative": {"r_w_bias": params["relative"]["r_r_bias"],
                               "r_r_bias": params["relative"]["r_w_bias"]}}),
    Trap("Transformer-XL", "no memory", "Transformer-XL", read=without_memory),
    Trap("Transformer-XL", "all of the segment besides the memory", "Transformer-XL, same length",
         {"same_length": False}),
]  # fmt: skip


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.id)
def test_trap(trap):
    hold(trap, subject(trap.subject))


def test_memory_has_no_gradient():
    found = subject("Transformer-XL")
    model, empty = model_of(found.config), transformer_xl.empty_memory(found.config, B)
    memory = jax.tree.map(lambda x: x + 0.5, empty["memory"])
    cache = {"segment_ids": jnp.ones((B, M), jnp.int32)}

    def largest() -> float:
        def loss(memory):  # anew, for a trace does not see a patch
            given = {"tokens": found.batch["tokens"][:, M:]}
            out = model.apply(found.params, given, cache={**cache, "memory": memory})
            return jnp.sum(jnp.sin(3 * out.hidden_BTD))

        return max(float(jnp.abs(x).max()) for x in jax.jit(jax.grad(loss))(memory))

    assert largest() == 0.0
    with patched(jax.lax, "stop_gradient", lambda true, x: x):
        assert largest() > 1e-3


def recurrent(cell: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The output of torch's layer, and its weights by our names."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = getattr(torch.nn, cell.upper())(D, H, batch_first=True)
    x = torch.randn(B, T, D)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
        out, _ = layer(x)
    names = {"w_in_DGH": "weight_ih", "w_hidden_HGH": "weight_hh", "bias_GH": "bias_ih",
             "hidden_bias_GH": "bias_hh"}  # fmt: skip
    weights = {ours: array(getattr(layer, f"{name}_l0")).T for ours, name in names.items()}
    weights = {name: w.reshape(*w.shape[:-1], -1, H) for name, w in weights.items()}
    return array(out), {"x_BTD": array(x), **weights}


def gates(*order: int):
    """The same weights with their gates in another order."""
    return lambda given: {
        name: x if name == "x_BTD" else x[..., list(order), :] for name, x in given.items()
    }


def turned_update(given):
    """A GRU whose update gate keeps what it should replace: h = z n + (1 - z) h."""
    sign = np.array([1, -1, 1], np.float32)[:, None]
    return {name: x if name == "x_BTD" else x * sign for name, x in given.items()}


def one_bias(given):
    return {**given, "hidden_bias_GH": np.zeros_like(given["hidden_bias_GH"])}


def joined_biases(given):
    both = given["bias_GH"] + given["hidden_bias_GH"]
    return {**given, "bias_GH": both, "hidden_bias_GH": np.zeros_like(both)}


def reset_first(x_BTD, w_in_DGH, w_hidden_HGH, bias_GH, hidden_bias_GH):
    """The paper's GRU (Cho 2014, eq. 8): the reset gate acts before the product."""
    h_BH, out = jnp.zeros((B, H)), []
    for t in range(T):
        x = jnp.einsum("BD,DGH->GBH", x_BTD[:, t], w_in_DGH) + bias_GH[:, None]

        def product(h, gate):
            return h @ w_hidden_HGH[:, gate] + hidden_bias_GH[gate]

        r, z = (jax.nn.sigmoid(x[gate] + product(h_BH, gate)) for gate in (0, 1))
        n = jnp.tanh(x[2] + product(r * h_BH, 2))
        h_BH = (1 - z) * n + z * h_BH
        out.append(h_BH)
    return jnp.stack(out, axis=1), None


CELLS = {  # system, mistake: what removes the mend
    ("LSTM", "gates i, f, o, g"): gates(0, 1, 3, 2),
    ("LSTM", "gates i, g, f, o"): gates(0, 2, 1, 3),
    ("LSTM", "one bias"): one_bias,
    ("GRU", "gates z, r, n"): gates(1, 0, 2),
    ("GRU", "one bias"): one_bias,
    ("GRU", "both biases outside the reset gate"): joined_biases,
    ("GRU", "the update gate turned"): turned_update,
    ("GRU", "reset before the product"): reset_first,
}


@pytest.mark.parametrize("system, mistake", CELLS)
def test_cell(system, mistake):
    expected, given = recurrent(system)
    layer, change = getattr(ops, system.lower()), CELLS[system, mistake]
    assert difference(layer(**given)[0], expected) <= LOGITS
    wrong = change(**given) if change is reset_first else layer(**change(given))
    assert difference(wrong[0], expected) > 100 * LOGITS


def test_an_lstm_adds_its_biases():
    """There the second is only another name for the first: one file may hold their sum."""
    expected, given = recurrent("LSTM")
    assert difference(ops.lstm(**joined_biases(given))[0], expected) <= LOGITS
