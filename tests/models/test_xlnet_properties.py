"""What must hold for XLNet whatever its weights; no published model is needed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.models import xlnet
from tests.models.test_xlnet import (
    LENGTHS,
    TOKENS,
    TYPES,
    B,
    T,
    V,
    batch_of,
    close,
    jitted,
    permutation,
)


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


@pytest.mark.parametrize("pooling", xlnet.POOLING)
def test_heads_do_not_mind_the_side_of_padding(pooling):
    model, params = make(pooling=pooling, num_classes=3, num_tags=5, span_head=True)
    turned = np.stack([np.roll(row, T - n) for row, n in zip(TOKENS, LENGTHS[:, 0])])
    right = batch_of(tokens=TOKENS, segment_ids=np.arange(T) < LENGTHS)
    left = batch_of(tokens=turned, segment_ids=np.arange(T) >= T - LENGTHS)
    a, b = (jitted(model)(params, batch).hidden_BTD for batch in (right, left))
    close(model.classify(params, a, right), model.classify(params, b, left), 1e-5)
    assert model.readout(params, a, "tagger").shape == (B, T, 5)
    assert model.readout(params, a, "span").shape == (B, T, 2)


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
