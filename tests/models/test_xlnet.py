"""XLNet against the published implementation, and what must hold whatever its weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.generate import Config as GenerateConfig
from jaxformer.generate import generate
from jaxformer.models import xlnet

pytestmark = pytest.mark.slow

B, T, V = 3, 9, 43
CASES = {
    "plain": dict(d_model=24, n_head=3, d_inner=40, n_layer=3),
    "untied, clamped": dict(
        d_model=20, n_head=5, d_inner=33, n_layer=2, clamp_len=4, tie_word_embeddings=False,
        ff_activation="relu",
    ),
    "uni": dict(d_model=16, n_head=2, d_inner=64, n_layer=2, attn_type="uni"),
}  # fmt: skip
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, V, (B, T))
TYPES = RNG.integers(0, 2, (B, T))
LENGTHS = np.array([[9], [4], [7]])


def oracle(name: str, cls: str = "XLNetLMHeadModel", **more):
    """Returns (the published model with random weights, our model, our parameters)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.XLNetConfig(vocab_size=V, mem_len=6, **CASES[name], **more)
    theirs = getattr(transformers, cls)(config)
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    theirs.eval()
    ours = xlnet.make(
        xlnet.Config(
            vocab_size=V, num_layers=config.n_layer, width=config.d_model,
            num_heads=config.n_head, feed_forward=config.d_inner,
            activation=config.ff_activation, attention_type=config.attn_type,
            clamp_length=max(config.clamp_len, 0), tie_embeddings=config.tie_word_embeddings,
            num_classes=more.get("num_labels", 0), memory_length=6, unroll=1,
        )
    )  # fmt: skip
    params = convert(dict(theirs.named_parameters(remove_duplicate=False)), config)
    shapes = jax.eval_shape(ours.init, jax.random.key(0))
    if cls != "XLNetLMHeadModel":
        params["head"] = {"bias": np.zeros(V, np.float32)}
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, params)
    return theirs, ours, params


def convert(weights: dict, config, of=lambda tensor: tensor.detach().numpy()) -> dict:
    """Returns the published parameters (or their gradients, by `of`) as our tree."""

    def stacked(name: str, change=lambda x: x) -> np.ndarray:
        path = f"transformer.layer.{{}}.{name}"
        return np.stack([change(of(weights[path.format(i)])) for i in range(config.n_layer)])

    attention = {name: stacked(f"rel_attn.{name}") for name in ("q", "k", "v", "r")}
    attention["out"] = stacked("rel_attn.o", lambda o_DNH: o_DNH.transpose(1, 2, 0))
    attention |= {
        name: stacked(f"rel_attn.{name}") for name in ("r_w_bias", "r_r_bias", "r_s_bias")
    }
    attention["segment_bias"] = stacked("rel_attn.seg_embed")
    params = {
        "embed": {
            "tokens": of(weights["transformer.word_embedding.weight"]),
            "mask": of(weights["transformer.mask_emb"])[0, 0],
        },
        "layers": {
            "attention": attention,
            "feed_forward": {
                "in": stacked("ff.layer_1.weight", np.transpose),
                "in_bias": stacked("ff.layer_1.bias"),
                "out": stacked("ff.layer_2.weight", np.transpose),
                "out_bias": stacked("ff.layer_2.bias"),
            },
        },
    }
    for ours, theirs in (
        ("attention_norm", "rel_attn.layer_norm"),
        ("feed_forward_norm", "ff.layer_norm"),
    ):
        params["layers"][ours] = {
            "scale": stacked(f"{theirs}.weight"), "bias": stacked(f"{theirs}.bias")
        }  # fmt: skip
    if "lm_loss.bias" in weights:
        params["head"] = {"bias": of(weights["lm_loss.bias"])}
        if not config.tie_word_embeddings:
            params["head"]["table"] = of(weights["lm_loss.weight"])
    for ours, theirs in (("pooler", "sequence_summary.summary"), ("classifier", "logits_proj")):
        if f"{theirs}.weight" in weights:
            kernel, bias = of(weights[f"{theirs}.weight"]).T, of(weights[f"{theirs}.bias"])
            params[ours] = {"kernel": kernel, "bias": bias}
    return params


def ask(theirs, tokens: np.ndarray, **inputs):
    """Returns the published logits; a row at a time where it cannot mask several ("uni")."""
    import torch

    inputs = {"input_ids": tokens, **inputs}
    inputs = {name: torch.tensor(np.array(x)) for name, x in inputs.items()}
    rows = range(B) if theirs.config.attn_type == "uni" else [slice(None)]
    pick = (lambda x, row: x[row : row + 1]) if len(rows) > 1 else (lambda x, row: x)
    return torch.cat(
        [theirs(**{name: pick(x, row) for name, x in inputs.items()}).logits for row in rows]
    )


def close(ours, theirs, bound=2e-5) -> None:
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else np.asarray(theirs)
    assert np.abs(np.asarray(ours) - theirs).max() <= bound * np.abs(theirs).max()


def jitted(model):
    return jax.jit(lambda params, batch, cache=None: model.apply(params, batch, cache=cache))


def batch_of(**arrays) -> dict:
    return {name: jnp.asarray(x, jnp.int32) for name, x in arrays.items()}


def permutation(seed: int = 0, predictions: int = 4):
    """Masks of a random order whose last tokens are predicted, and [B, P, T] which these are."""
    rng = np.random.default_rng(seed)
    perm_mask = np.zeros((B, T, T), np.float32)
    mapping = np.zeros((B, predictions, T), np.float32)
    for b in range(B):
        order = rng.permutation(T)
        place = np.argsort(order)
        hidden = place >= T - predictions
        perm_mask[b] = hidden[None, :] & (place[None, :] >= place[:, None])
        for p, token in enumerate(order[-predictions:]):
            mapping[b, p, token] = 1
    return perm_mask, mapping


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_one_stream_with_padding_and_types(name, side):
    theirs, model, params = oracle(name)
    import torch

    real = np.arange(T) < LENGTHS if side == "right" else np.arange(T) >= T - LENGTHS
    batch = batch_of(tokens=TOKENS, token_types=TYPES, segment_ids=real)
    hidden = jitted(model)(params, batch).hidden_BTD
    want = ask(theirs, TOKENS, attention_mask=real.astype(np.float32), token_type_ids=TYPES)
    close(model.logits(params, hidden)[real], want[torch.tensor(real)])
    # Without types there is no segment term at all.
    hidden = jitted(model)(params, batch_of(tokens=TOKENS)).hidden_BTD
    close(model.logits(params, hidden), theirs(torch.tensor(TOKENS)).logits)


@pytest.mark.parametrize("name", CASES)
def test_two_streams_and_all_gradients(name):
    """perm_mask and target_mapping; 4 predictions of 9 tokens, one of them of nothing."""
    theirs, model, params = oracle(name)
    import torch

    perm_mask, mapping = permutation()
    if CASES[name].get("attn_type") == "uni":
        # Its own past is all that a token sees, and the first would see nothing: see below.
        perm_mask = np.broadcast_to(np.eye(T) * (np.arange(T) > 0), (B, T, T)).astype(np.float32)
    mapping[0, 3] = 0
    batch = batch_of(tokens=TOKENS, token_types=TYPES)
    batch |= {"perm_mask": jnp.asarray(perm_mask), "target_mapping": jnp.asarray(mapping)}
    want = ask(theirs, TOKENS, token_type_ids=TYPES, perm_mask=perm_mask, target_mapping=mapping)
    weight = RNG.normal(size=want.shape).astype(np.float32)

    @jax.jit
    def loss(params):
        logits = model.logits(params, model.apply(params, batch).hidden_BTD)
        return jnp.sum(jax.nn.log_softmax(logits) * weight), logits

    gradients, logits = jax.grad(loss, has_aux=True)(jax.tree.map(jnp.asarray, params))
    close(logits, want)
    torch.sum(torch.log_softmax(want, -1) * torch.tensor(weight)).backward()
    named = dict(theirs.named_parameters(remove_duplicate=False))
    expected = convert(named, theirs.config, of=lambda tensor: tensor.grad.numpy())
    for (path, ours), wanted in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected), strict=True
    ):
        worst = np.abs(ours - wanted).max()
        assert worst <= 1e-4 * np.abs(wanted).max() + 1e-6, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", ["plain", "uni"])
def test_memory_of_segments_before(name):
    """Segments of 5, 3 and 4 tokens; the memory holds 6, which the first does not fill."""
    theirs, model, params = oracle(name)
    import torch

    cache, mems = xlnet.empty_memory(model.config, B), None
    for length in (5, 3, 4):
        tokens = RNG.integers(0, V, (B, length))
        want = theirs(torch.tensor(tokens), mems=mems, use_mems=True)
        mems = want.mems
        out = jitted(model)(params, batch_of(tokens=tokens), cache)
        cache = out.cache
        close(model.logits(params, out.hidden_BTD), want.logits)
        for ours, wanted in zip(cache["memory"], mems):
            close(ours[:, -wanted.shape[0] :], wanted.transpose(0, 1))


def test_classification_reads_the_last_token():
    """As published on rows padded on the left; ours does not mind the side."""
    theirs, model, params = oracle("plain", "XLNetForSequenceClassification", num_labels=3)
    import torch

    left = np.arange(T) >= T - LENGTHS
    batch = batch_of(tokens=TOKENS, segment_ids=left)
    got = model.classify(params, jitted(model)(params, batch).hidden_BTD, batch)
    mask = torch.tensor(left, dtype=torch.float32)
    close(got, theirs(torch.tensor(TOKENS), attention_mask=mask).logits)
    turned = np.stack([np.roll(row, n) for row, n in zip(TOKENS, LENGTHS[:, 0])])
    batch = batch_of(tokens=turned, segment_ids=np.arange(T) < LENGTHS)
    close(model.classify(params, jitted(model)(params, batch).hidden_BTD, batch), got)


def test_it_writes_from_left_to_right_as_published():
    """Greedy, each row as long as it is: the oracle's second stream, given the order of reading."""
    theirs, model, params = oracle("plain")
    import torch

    prompts = [TOKENS[0, :5].tolist(), TOKENS[1, :2].tolist(), TOKENS[2, :1].tolist()]
    config = GenerateConfig(max_new_tokens=6, temperature=0.0)
    written = generate(model, params, prompts, config)
    for prompt, got in zip(prompts, written):
        ids = list(prompt)
        for _ in range(6):
            n = len(ids) + 1
            perm_mask = torch.triu(torch.ones(1, n, n))
            mapping = torch.zeros(1, 1, n)
            mapping[0, 0, -1] = 1
            out = theirs(torch.tensor([[*ids, 0]]), perm_mask=perm_mask, target_mapping=mapping)
            ids.append(int(out.logits[0, 0].argmax()))
        assert got == ids[len(prompt) :]


# What must hold whatever the weights; no published model is needed from here on.


def make(**keys):
    sizes = dict(vocab_size=V, width=16, num_layers=2, num_heads=2, unroll=1)
    model = xlnet.make(xlnet.Config(**{**sizes, **keys}))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    draw = np.random.default_rng(1).normal  # norms and biases too: zeros and ones hide mistakes
    params = jax.tree.map(lambda x: jnp.asarray(0.25 * draw(size=x.shape), jnp.float32), shapes)
    return model, params


@pytest.mark.parametrize("types", [False, True])
def test_decode_equals_forward(types):
    """Writing is the two-stream forward pass of one order, with one place more than tokens."""
    model, params = make()
    given = {"tokens": TOKENS} | ({"token_types": TYPES} if types else {})
    longer = batch_of(
        **{name: np.pad(x, ((0, 0), (0, 1)), mode="edge") for name, x in given.items()}
    )
    strict = np.triu(np.ones((T + 1, T + 1), np.float32))
    longer["perm_mask"] = jnp.broadcast_to(strict, (B, T + 1, T + 1))
    longer["target_mapping"] = jnp.broadcast_to(jnp.eye(T + 1)[1:], (B, T, T + 1))
    if types:  # a prediction is made by the type of the token before it
        apart = np.array([[0] * 5 + [1] * 4] * B)
        given["token_types"] = apart
        longer["token_types"] = jnp.asarray(np.pad(apart, ((0, 0), (0, 1)), mode="edge"))
    whole = jitted(model)(params, longer).hidden_BTD
    apply, cache, parts = jitted(model), model.init_cache(B, 12), []
    for start, stop in ((0, 4), *((t, t + 1) for t in range(4, T))):
        piece = batch_of(**{name: x[:, start:stop] for name, x in given.items()})
        out = apply(params, piece, cache)
        cache = out.cache
        parts.append(out.hidden_BTD)
    got = jnp.concatenate(parts, axis=1)
    differ = np.zeros(T, bool)
    if types:  # but where the type changes, for then the token after it is of another
        differ[4] = True
    close(got[:, ~differ], whole[:, ~differ], 1e-5)


@pytest.mark.parametrize("keys", [{}, {"attention_type": "uni"}])
def test_left_padding_changes_nothing_that_is_written(keys):
    model, params = make(**keys)
    apply, pad = jitted(model), 5
    alone = apply(params, batch_of(tokens=TOKENS), model.init_cache(B, 16)).hidden_BTD
    padded = batch_of(
        tokens=np.pad(TOKENS, ((0, 0), (pad, 0)), constant_values=7),
        segment_ids=np.broadcast_to(np.arange(T + pad) >= pad, (B, T + pad)),
    )
    out = apply(params, padded, model.init_cache(B, 16))
    close(out.hidden_BTD[:, pad:], alone, 1e-5)


@pytest.mark.parametrize("keys", [{}, {"attention_type": "uni"}])
def test_padding_packing_and_batch_mates_change_nothing(keys):
    model, params = make(**keys)
    apply = jitted(model)
    segment_ids = np.arange(T) < LENGTHS
    hidden = apply(params, batch_of(tokens=TOKENS, segment_ids=segment_ids)).hidden_BTD
    for row, (length,) in enumerate(LENGTHS):
        alone = apply(params, batch_of(tokens=TOKENS[row : row + 1, :length])).hidden_BTD[0]
        close(hidden[row, :length], alone, 1e-5)
    packed = batch_of(
        tokens=np.concatenate([TOKENS[0, :4], TOKENS[1, :5]])[None],
        segment_ids=np.array([[1] * 4 + [2] * 5]),
    )
    both = apply(params, packed).hidden_BTD[0]
    close(both[:4], apply(params, batch_of(tokens=TOKENS[:1, :4])).hidden_BTD[0], 1e-5)
    close(both[4:], apply(params, batch_of(tokens=TOKENS[1:2, :5])).hidden_BTD[0], 1e-5)


def test_a_prediction_never_sees_its_token_nor_later_ones():
    """By gradient: of each prediction, to the embedding of every token."""
    model, params = make()
    perm_mask, mapping = permutation(3)
    tokens = jnp.broadcast_to(jnp.arange(T), (B, T))
    batch = {"tokens": tokens, "perm_mask": jnp.asarray(perm_mask),
             "target_mapping": jnp.asarray(mapping)}  # fmt: skip

    @jax.jit
    def reach(params):
        def predict(table_VD):
            changed = {**params, "embed": {**params["embed"], "tokens": table_VD}}
            return model.apply(changed, batch).hidden_BTD[0].sum(axis=-1)

        return jax.jacobian(predict)(params["embed"]["tokens"])

    reached_PT = np.abs(reach(params)).sum(axis=-1)[:, :T] > 0
    for p, reached in enumerate(reached_PT):
        token = int(mapping[0, p].argmax())
        assert not reached[token]
        assert set(np.flatnonzero(reached)) == set(np.flatnonzero(perm_mask[0, token] == 0))


def test_who_may_see_nothing_learns_nothing():
    """The published code lets such a prediction see everything, itself too: its mask is finite."""
    model, params = make()
    batch = {"perm_mask": jnp.ones((1, T, T)), "target_mapping": jnp.eye(T)[None, :2]}
    a = jitted(model)(params, {**batch, "tokens": jnp.arange(T)[None]}).hidden_BTD
    b = jitted(model)(params, {**batch, "tokens": jnp.arange(T)[None] + 9}).hidden_BTD
    close(a, b, 1e-6)


@pytest.mark.parametrize("changed", [{"unroll": 0, "remat": "full"}, {"remat": "named"}])
def test_running_choices_do_not_change_the_function(changed):
    perm_mask, mapping = permutation(5)
    batch = batch_of(tokens=TOKENS)
    batch |= {"perm_mask": jnp.asarray(perm_mask), "target_mapping": jnp.asarray(mapping)}

    def gradients(**keys):
        model, params = make(**keys)
        return jax.jit(
            jax.value_and_grad(lambda p: jnp.sum(model.apply(p, batch).hidden_BTD ** 2))
        )(params)

    jax.tree.map(lambda a, b: close(a, b, 2e-5), gradients(**changed), gradients())


def test_dropout_only_with_a_key():
    model, params = make(dropout=0.5, attention_dropout=0.3)
    batch = batch_of(tokens=TOKENS)
    apply = jax.jit(model.apply)
    still = apply(params, batch).hidden_BTD
    one, two = (apply(params, batch, key=jax.random.key(k)).hidden_BTD for k in (1, 2))
    assert not np.allclose(one, still) and not np.allclose(one, two)


@pytest.mark.parametrize("keys,words", [
    ({"num_heads": 3}, "model.num_heads=3 does not divide model.width=16"),
    ({"width": 15, "num_heads": 3}, "model.width=15 is odd"),
    ({"attention_type": "both"}, "'both' is not one of bi, uni"),
    ({"same_length": True}, "model.memory_length"),
    ({"pooling": "max"}, "model.pooling"),
])  # fmt: skip
def test_bad_config_is_one_line(keys, words):
    with pytest.raises(UserError) as error:
        xlnet.Config(**{"width": 16, "num_heads": 2, **keys})
    assert words in str(error.value) and "\n" not in str(error.value)
