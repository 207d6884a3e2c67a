"""ELECTRA's two encoders: their sizes, what they share, and their two published halves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import interop
from jaxformer.errors import UserError
from jaxformer.models import count_parameters, electra, encoder
from jaxformer.parallel import mesh, rules

KEYS = dict(vocab_size=31, max_length=8, width=16, num_layers=2, num_heads=4)
BATCH = {"tokens": jnp.arange(8)[None] % 31}


@pytest.fixture(scope="module", params=[0, 12])
def made(request):
    model = electra.make(electra.Config(**KEYS, embedding_size=request.param))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)  # quicker than to compile the initialisation
    return model, jax.tree.map(lambda x: jnp.array(rng.normal(size=x.shape), jnp.float32), shapes)


@pytest.mark.parametrize(
    "name, sizes, millions",
    [
        ("electra_small", (64, 1, 256, 128), 14),
        ("electra_base", (256, 4, 1024, 768), 110),
        ("electra_large", (256, 4, 1024, 1024), 335),
    ],
)
def test_published_sizes(name, sizes, millions):
    """The generator's width, heads, feed-forward and embedding (Clark 2020, table 6), and the
    discriminator's parameters, in millions (the release rounds 13.5 up)."""
    config = electra.Config(**electra.SIZES[name])
    small = electra.generator_config(config)
    embedding = small.embedding_size or small.width
    assert (small.width, small.num_heads, small.feed_forward_width, embedding) == sizes
    assert small.num_layers == config.num_layers
    shapes = jax.eval_shape(electra.make(config).init, jax.random.key(0))
    assert abs(count_parameters(shapes["discriminator"]) / 1e6 - millions) < 0.04 * millions


def test_embeddings_are_there_once(made):
    model, params = made
    assert set(params["generator"].get("embed", {})) <= {"projection", "projection_bias"}
    generator, discriminator = electra.split(params)
    for name in ("tokens", "positions", "token_types", "norm"):
        assert generator["embed"][name] is discriminator["embed"][name]
    for config, tree in (
        (electra.generator_config(model.config), generator),
        (electra.discriminator_config(model.config), discriminator),
    ):
        shapes = jax.eval_shape(encoder.make(config).init, jax.random.key(0))
        assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, tree)


def test_apply_is_the_discriminator(made):
    model, params = made
    alone = encoder.make(electra.discriminator_config(model.config))
    expected = alone.apply(params["discriminator"], BATCH).hidden_BTD
    np.testing.assert_array_equal(model.apply(params, BATCH).hidden_BTD, expected)
    with pytest.raises(UserError, match="its generator does"):
        model.logits(params, expected)


def test_halves_are_joined_again(made):
    _, params = made
    generator, discriminator = electra.split(params)
    again = electra.join(generator, discriminator)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    other = {**generator["embed"], "tokens": generator["embed"]["tokens"] + 1}
    with pytest.raises(UserError, match="embed/tokens of the generator"):
        electra.join({**generator, "embed": other}, discriminator)


def test_halves_are_the_published_ones(made, tmp_path):
    """transformers loads each with no key missing and none left over."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, params = made
    configs = electra.generator_config(model.config), electra.discriminator_config(model.config)
    names = ("ElectraForMaskedLM", "ElectraForPreTraining")
    for config, tree, name in zip(configs, electra.split(params), names):
        interop.save_huggingface(tmp_path / name, encoder.make(config), tree)
        _, told = getattr(transformers, name).from_pretrained(
            tmp_path / name, output_loading_info=True
        )
        assert not any(told.values())


@pytest.mark.parametrize("keys", [{}, {"embedding_size": 12, "tie_embeddings": False,
                                       "num_classes": 3, "num_tags": 4, "span_head": True,
                                       "next_sentence_head": True}])  # fmt: skip
def test_every_parameter_has_one_rule(keys):
    model = electra.make(electra.Config(**KEYS, **keys))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    found = rules.shardings(shapes, mesh.make(mesh.Config(data=2, fsdp=2, tensor=2)))
    for side in ("generator", "discriminator"):
        query = found[side]["layers"]["attention"]["q"].spec
        # The generator's only head cannot be split.
        assert query[:2] == (None, "fsdp") and (side == "generator") == (query[2] is None)


def test_a_generator_without_whole_heads_is_refused():
    with pytest.raises(UserError, match=r"generator_fraction=0.35 gives no generator"):
        electra.Config(**{**KEYS, "width": 20, "generator_fraction": 0.35, "num_heads": 10})
    with pytest.raises(UserError, match=r"generator_fraction=1.5 must be"):
        electra.Config(**KEYS, generator_fraction=1.5)
