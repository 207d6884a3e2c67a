"""The recurrent encoder-decoder against torch's layers and the papers' steps written out."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import ops
from jaxformer.errors import UserError
from jaxformer.models import recurrent
from jaxformer.modules.recurrent import Encoder

pytestmark = pytest.mark.slow

B, S, T, V = 3, 7, 6, 31
RNG = np.random.default_rng(0)
TOKENS, SOURCE = RNG.integers(0, V, (B, T)), RNG.integers(0, 19, (B, S))
LENGTHS = np.array([[7], [3], [1]])
CASES = {
    "lstm luong": dict(width=12),
    "gru luong": dict(width=10, cell="gru", num_layers=3, bidirectional=False, head_bias=True),
    "gru bahdanau": dict(
        width=8, cell="gru", attention="bahdanau", attention_width=5, embedding_size=6,
        tie_embeddings=False, num_layers=1,
    ),
    "lstm bahdanau": dict(width=10, attention="bahdanau", share_embeddings=False,
                          source_vocab_size=19),
    "lstm luong, all at once": dict(width=12, input_feeding=False, embedding_size=7,
                                    tie_embeddings=False),
}  # fmt: skip


def make(**keys):
    model = recurrent.make(recurrent.Config(**{"vocab_size": V, **keys}))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    draw = np.random.default_rng(1).normal  # norms and biases too: zeros and ones hide mistakes
    params = jax.tree.map(lambda x: jnp.asarray(0.25 * draw(size=x.shape), jnp.float32), shapes)
    return model, params


def batch_of(**arrays) -> dict:
    arrays = {"tokens": TOKENS, "source": SOURCE, **arrays}
    return {name: jnp.asarray(x, jnp.int32) for name, x in arrays.items()}


def jitted(model):
    return jax.jit(lambda params, batch, cache=None: model.apply(params, batch, cache=cache))


def close(a, b, bound=1e-5):
    b = b.detach().numpy() if hasattr(b, "detach") else np.asarray(b)
    assert np.abs(np.asarray(a) - b).max() <= bound * np.abs(b).max()


@pytest.mark.parametrize(
    "cell,both,layers", [("lstm", True, 2), ("gru", True, 2), ("lstm", False, 3)]
)
def test_encoder_is_torchs(cell, both, layers):
    """Several layers, both directions, packed rows: output, last states and all gradients."""
    torch = pytest.importorskip("torch")
    config = recurrent.Config(cell=cell, num_layers=layers, width=8, embedding_size=5,
                              bidirectional=both, tie_embeddings=False)  # fmt: skip
    K = 4 if both else 8
    theirs = getattr(torch.nn, cell.upper())(5, K, layers, batch_first=True, bidirectional=both)
    weights = dict(theirs.named_parameters())
    names = {"in": "weight_ih", "hidden": "weight_hh", "bias": "bias_ih", "hidden_bias": "bias_hh"}

    def tree(of):
        """Our tree, filled from torch's tensors [G H, inputs] and [G H]."""
        made = {}
        for i in range(layers):
            for way, end in (("forward", ""), ("backward", "_reverse"))[: 1 + both]:
                arrays = {name: of(weights[f"{name}_l{i}{end}"]).T for name in names.values()}
                made[f"layer_{i}_{way}"] = {
                    ours: arrays[name].reshape(*arrays[name].shape[:-1], -1, K)
                    for ours, name in names.items()
                }
        return made

    x = RNG.normal(size=(B, S, 5)).astype(np.float32)
    pack = torch.nn.utils.rnn.pack_padded_sequence
    lengths = torch.tensor(LENGTHS[:, 0])
    packed, last = theirs(pack(torch.tensor(x), lengths, batch_first=True, enforce_sorted=False))
    want, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
    valid = jnp.asarray(np.arange(S) < LENGTHS)
    encoder = Encoder(config)
    params = tree(lambda tensor: tensor.detach().numpy())
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), x, valid)["params"]
    assert jax.tree.map(lambda p: p.shape, shapes) == jax.tree.map(lambda p: p.shape, params)

    @jax.jit
    def run(params):
        out, states = encoder.apply({"params": params}, x, valid)
        return jnp.sum(out * jnp.cos(out)), (out, states)

    gradients, (out, states) = jax.grad(run, has_aux=True)(params)
    close(out, want)
    for part, state in enumerate(last if cell == "lstm" else (last,)):  # [layers * ways, B, K]
        state = state.detach().numpy().reshape(layers, 1 + both, B, K)
        for i in range(layers):
            close(states[i][part], np.concatenate(list(state[i]), axis=-1))
    (want * want.cos()).sum().backward()
    jax.tree.map(close, gradients, tree(lambda tensor: tensor.grad.numpy()))


def written_out(config, params, tokens_T, source_S):
    """One pair of texts, one step at a time, in torch: the hidden states [T, H]."""
    import torch

    c, H = config, config.width
    p = jax.tree.map(lambda x: torch.tensor(np.asarray(x), requires_grad=True), params)

    def cell(layer, x, state):
        """One step of torch's own cell, with our weights."""
        made = (torch.nn.LSTMCell if c.cell == "lstm" else torch.nn.GRUCell)(len(x), len(state[0]))
        w_in = torch.cat([layer["in"], layer["feed"]]) if "feed" in layer else layer["in"]
        given = {
            "weight_ih": w_in.flatten(1).T, "weight_hh": layer["hidden"].flatten(1).T,
            "bias_ih": layer["bias"].flatten(), "bias_hh": layer["hidden_bias"].flatten(),
        }  # fmt: skip
        state = state if c.cell == "lstm" else state[0]
        new = torch.func.functional_call(made, given, (x, state))
        return new if c.cell == "lstm" else (new,)

    table = p["embed"]["tokens"] if c.share_embeddings else p["encoder"]["embed"]["tokens"]
    xs = [table[i] for i in source_S]
    zeros = [torch.zeros(H // (1 + c.bidirectional)) for _ in range(1 + (c.cell == "lstm"))]
    lasts = []
    for i in range(c.num_layers):
        ways = []
        for way in ("forward", "backward")[: 1 + c.bidirectional]:
            state, outs = zeros, []
            for x in xs if way == "forward" else xs[::-1]:
                state = cell(p["encoder"][f"layer_{i}_{way}"], x, state)
                outs.append(state[0])
            ways.append((outs if way == "forward" else outs[::-1], state))
        xs = [torch.cat(both) for both in zip(*(outs for outs, _ in ways))]
        lasts.append(tuple(torch.cat(both) for both in zip(*(state for _, state in ways))))
    values = torch.stack(xs)
    d, a = p["decoder"], p["decoder"]["attention"]
    states, hidden = list(lasts), []
    feed = torch.zeros(H)

    def read(scores):
        return torch.softmax(scores, 0) @ values

    for token in tokens_T:
        x = p["embed"]["tokens"][token]
        if c.attention == "bahdanau":  # eq. 4-6 and A.1.2: the state before asks
            energy = torch.tanh(states[-1][0] @ a["query"] + values @ a["key"])
            feed = read(energy @ a["score"])
        fed = c.attention == "bahdanau" or c.input_feeding
        below = torch.cat([x, feed]) if fed else x
        for i in range(c.num_layers):
            states[i] = cell(d[f"layer_{i}"], below, states[i])
            below = states[i][0]
        if c.attention == "luong":  # eq. 5, 7 and 8 ("general"), and section 3.3
            context = read((below @ a["general"]) @ values.T)
            feed = torch.tanh(torch.cat([context, below]) @ d["readout"])
            hidden.append(feed)
        else:
            hidden.append(torch.tanh(torch.cat([feed, below, x]) @ d["readout"]))
    return torch.stack(hidden), p


@pytest.mark.parametrize("name", CASES)
def test_decoder_is_the_papers_step_by_step(name):
    """Rows of 7, 3 and 1 source tokens together, against each alone; gradients of all weights."""
    torch = pytest.importorskip("torch")
    model, params = make(**CASES[name])
    batch = batch_of(source_segment_ids=np.arange(S) < LENGTHS)

    def loss(params):
        hidden = model.apply(params, batch).hidden_BTD
        return jnp.sum(hidden * jnp.cos(2 * hidden)), hidden

    gradients, hidden = jax.jit(jax.grad(loss, has_aux=True))(params)
    total = jax.tree.map(np.zeros_like, jax.tree.map(np.asarray, params))
    for row in range(B):
        want, p = written_out(model.config, params, TOKENS[row], SOURCE[row, : LENGTHS[row, 0]])
        close(hidden[row], want)
        (want * torch.cos(2 * want)).sum().backward()
        of_row = jax.tree.map(lambda x: 0.0 if x.grad is None else x.grad.numpy(), p)
        total = jax.tree.map(np.add, total, of_row)
    for (path, ours), expected in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(total), strict=True
    ):
        if jax.tree_util.keystr(path).startswith("['head']"):
            continue  # the hidden states do not depend on it
        worst = np.abs(ours - expected).max()
        assert worst <= 1e-4 * np.abs(expected).max(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", CASES)
def test_decode_equals_forward(name):
    """The source once, then 2 tokens, then one at a time; with padding on the left too."""
    model, params = make(**CASES[name])
    apply, real = jitted(model), np.arange(S) < LENGTHS
    whole = apply(params, batch_of(source_segment_ids=real)).hidden_BTD
    empty = model.init_cache(B, 20)
    started = model.encode(params, batch_of(source_segment_ids=real), empty)
    out = apply(params, {"tokens": jnp.asarray(TOKENS[:, :2])}, started)
    parts = [out.hidden_BTD]
    for t in range(2, T):
        out = apply(params, {"tokens": jnp.asarray(TOKENS[:, t : t + 1])}, out.cache)
        parts.append(out.hidden_BTD)
    close(jnp.concatenate(parts, axis=1), whole)
    assert jax.tree.structure(out.cache) == jax.tree.structure(started)
    assert all(leaf.shape[0] == B for leaf in jax.tree.leaves(started))
    padded = np.pad(TOKENS, ((0, 0), (4, 0)), constant_values=3)
    ids = np.broadcast_to(np.arange(T + 4) >= 4, padded.shape)
    batch = batch_of(tokens=padded, segment_ids=ids, source_segment_ids=real)
    close(apply(params, batch).hidden_BTD[:, 4:], whole)
    only = {name: batch[name] for name in ("tokens", "segment_ids")}
    close(apply(params, only, started).hidden_BTD[:, 4:], whole)


@pytest.mark.parametrize("name", CASES)
def test_padding_and_batch_mates_change_nothing(name):
    """The source's padding, on either side, and the other rows."""
    model, params = make(**CASES[name])
    apply = jitted(model)
    right = np.arange(S) < LENGTHS
    hidden = apply(params, batch_of(source_segment_ids=right)).hidden_BTD
    turned = np.stack([np.roll(row, S - n) for row, n in zip(SOURCE, LENGTHS[:, 0])])
    left = batch_of(source=turned, source_segment_ids=np.arange(S) >= S - LENGTHS)
    close(apply(params, left).hidden_BTD, hidden)
    for row, (length,) in enumerate(LENGTHS):
        one = batch_of(tokens=TOKENS[row : row + 1], source=SOURCE[row : row + 1, :length])
        close(apply(params, one).hidden_BTD[0], hidden[row])


@pytest.mark.parametrize("name", CASES)
def test_causal_by_gradient(name):
    """A step depends on the tokens up to it, on no later one, and on all of the source."""
    model, params = make(**CASES[name])
    source = (
        jnp.arange(T, T + S) % 19 if "source_vocab_size" in CASES[name] else jnp.arange(T, T + S)
    )
    batch = {"tokens": jnp.arange(T)[None], "source": source[None]}

    @jax.jit
    def reach(table_VE):
        def read(table_VE):
            changed = {**params, "embed": {**params["embed"], "tokens": table_VE}}
            return jnp.sin(model.apply(changed, batch).hidden_BTD[0]).sum(axis=-1)

        return jax.jacobian(read)(table_VE)

    reached_TV = np.abs(reach(params["embed"]["tokens"])).sum(axis=-1) > 0
    np.testing.assert_array_equal(reached_TV[:, :T], np.tril(np.ones((T, T), bool)))
    if model.config.share_embeddings:
        assert reached_TV[:, T : T + S].all()


def test_attention_looks_at_real_tokens_only():
    model, params = make(**CASES["lstm luong"])
    real = np.arange(S) < LENGTHS
    out = model.apply(params, batch_of(source_segment_ids=real), return_attention=True)
    assert out.attention_LBNTS.shape == (1, B, 1, T, S)
    close(out.attention_LBNTS.sum(-1), np.ones((1, B, 1, T)))
    assert float(jnp.abs(out.attention_LBNTS[0, :, 0] * ~real[:, None]).max()) == 0.0


@pytest.mark.parametrize("name", ["lstm luong", "gru bahdanau", "lstm luong, all at once"])
def test_dropout_only_with_a_key(name):
    model, params = make(**CASES[name], dropout=0.4)
    apply = jax.jit(model.apply)
    still = apply(params, batch_of()).hidden_BTD
    one, two = (apply(params, batch_of(), key=jax.random.key(k)).hidden_BTD for k in (1, 2))
    assert not np.allclose(one, still) and not np.allclose(one, two)


def test_it_learns_to_turn_a_text_around():
    """A few steps of Adam on reversed digits: without the source this loss stays at log 8."""
    import optax

    model = recurrent.make(recurrent.Config(vocab_size=10, width=32, num_layers=1))
    params, adam = jax.jit(model.init)(jax.random.key(0)), optax.adam(1e-2)

    @jax.jit
    def step(params, state, key):
        source = jax.random.randint(key, (32, 6), 2, 10)
        target = source[:, ::-1]
        tokens = jnp.pad(target, ((0, 0), (1, 0)), constant_values=1)[:, :-1]

        def loss(params):
            hidden = model.apply(params, {"tokens": tokens, "source": source}).hidden_BTD
            total, count = ops.cross_entropy(model.logits(params, hidden), target)
            return total / count

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = adam.update(gradients, state)
        return optax.apply_updates(params, updates), state, value

    state = adam.init(params)
    for i in range(150):
        params, state, value = step(params, state, jax.random.key(i))
    assert float(value) < 0.5


@pytest.mark.parametrize("name", ["lstm luong", "gru bahdanau", "lstm luong, all at once"])
def test_bfloat16_begins_learns_and_decodes(name):
    """From `init` on: parameters and gradients in float32, and the cache keeps its dtypes."""
    config = recurrent.Config(
        **{"vocab_size": V, "compute_dtype": "bfloat16", "init_range": 0.5, **CASES[name]}
    )
    model = recurrent.make(config)
    params = jax.jit(model.init)(jax.random.key(0))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    whole = recurrent.make(dataclasses.replace(config, compute_dtype="float32"))
    same = jax.tree.map(jnp.array_equal, params, jax.jit(whole.init)(jax.random.key(0)))
    assert jax.tree.all(same)
    batch = batch_of(source_segment_ids=np.arange(S) < LENGTHS)

    @jax.jit
    def loss(params):
        hidden = model.apply(params, batch).hidden_BTD
        total, count = ops.cross_entropy(model.logits(params, hidden), batch["tokens"])
        return total / count, hidden

    gradients, hidden = jax.grad(loss, has_aux=True)(params)
    assert hidden.dtype == jnp.bfloat16
    for leaf in jax.tree.leaves(gradients):
        assert leaf.dtype == jnp.float32 and jnp.isfinite(leaf).all() and jnp.abs(leaf).max() > 0
    close(hidden.astype(jnp.float32), jitted(whole)(params, batch).hidden_BTD, 0.05)

    started = model.encode(params, batch, model.init_cache(B, T))
    apply, cache, parts = jitted(model), started, []
    for t in range(T):
        out = apply(params, {"tokens": batch["tokens"][:, t : t + 1]}, cache)
        cache = out.cache
        parts.append(out.hidden_BTD)
    close(jnp.concatenate(parts, axis=1).astype(jnp.float32), hidden.astype(jnp.float32), 0.02)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (started, cache))
    assert shapes[0] == shapes[1]  # or no loop could carry it


def test_it_begins_as_documented():
    config = recurrent.Config(vocab_size=V, width=16, num_layers=1, bidirectional=False)
    params = jax.jit(recurrent.make(config).init)(jax.random.key(0))
    layer = params["encoder"]["layer_0_forward"]
    bias = np.zeros((4, 16)) + np.array([0, 1, 0, 0])[:, None]
    np.testing.assert_array_equal(layer["bias"], bias)
    assert float(jnp.abs(layer["hidden"]).max()) <= 16**-0.5 < 3 * float(layer["hidden"].std())
    assert float(jnp.abs(params["embed"]["tokens"]).max()) <= 0.1


def test_what_it_cannot_do_is_told():
    model, params = make(**CASES["lstm luong"])
    with pytest.raises(UserError, match='needs "source"'):
        model.apply(params, {"tokens": jnp.asarray(TOKENS)})
    with pytest.raises(ValueError, match=r"call model\.encode"):
        model.apply(params, {"tokens": jnp.asarray(TOKENS)}, cache=model.init_cache(B, 9))
    half = recurrent.make(dataclasses.replace(model.config, compute_dtype="bfloat16"))
    assert half.apply(params, batch_of()).hidden_BTD.dtype == jnp.bfloat16


@pytest.mark.parametrize("keys,words", [
    ({"cell": "rnn"}, "'rnn' is not one of lstm, gru"),
    ({"attention": "dot"}, "model.attention"),
    ({"width": 7}, "model.width=7 is odd"),
    ({"embedding_size": 5}, "model.tie_embeddings=False"),
    ({"dropout": 1.0}, "[0, 1)"),
])  # fmt: skip
def test_bad_config_is_one_line(keys, words):
    with pytest.raises(UserError) as error:
        recurrent.Config(**{"width": 8, **keys})
    assert words in str(error.value) and "\n" not in str(error.value)
