"""XLNet against the published implementation, with random weights in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
            same_length=config.same_length,
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


def test_same_length_with_a_full_memory():
    theirs, model, params = oracle("uni", same_length=True)
    import torch

    memory = RNG.normal(size=(2, 6, B, 16)).astype(np.float32)
    want = theirs(torch.tensor(TOKENS), mems=list(torch.tensor(memory)), use_mems=True)
    cache = {"memory": tuple(jnp.asarray(memory.swapaxes(1, 2))),
             "segment_ids": jnp.ones((B, 6), jnp.int32)}  # fmt: skip
    out = jitted(model)(params, batch_of(tokens=TOKENS), cache)
    close(model.logits(params, out.hidden_BTD), want.logits)


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
