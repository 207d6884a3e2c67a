"""The rule table: every parameter has one rule, and the state lies where the rules say."""

from __future__ import annotations

import jax
import pytest
from jax.sharding import PartitionSpec as P

from jaxformer.errors import UserError
from jaxformer.models import (
    decoder,
    electra,
    encoder,
    encoder_decoder,
    memorizing,
    recurrent,
    transformer_xl,
    xlnet,
)
from jaxformer.parallel import mesh, rules
from jaxformer.train import optimizer
from jaxformer.train import state as states

MESH = mesh.Config(data=2, fsdp=2, tensor=2)
KEYS = dict(vocab_size=64, width=16, num_layers=3, num_heads=4)
FAMILIES = [
    (decoder, {}), (decoder, {"gated": True, "qk_norm": True, "positions": "t5"}),
    (decoder, {"tie_embeddings": False, "num_classes": 4}),
    (encoder, {"num_token_types": 2, "num_classes": 4, "tie_embeddings": False}),
]  # fmt: skip


@pytest.mark.parametrize("family,keys", FAMILIES)
def test_every_parameter_has_one_rule(family, keys):
    model = family.make(family.Config(**KEYS, **keys))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    found = rules.shardings(shapes, mesh.make(MESH))
    assert found["layers"]["attention"]["q"].spec == P(None, "fsdp", "tensor", None)
    assert found["layers"]["feed_forward"]["out"].spec == P(None, "tensor", "fsdp")
    assert found["embed"]["tokens"].spec == P("tensor", "fsdp")
    assert found["layers"]["attention_norm"]["scale"].spec == P()


OTHERS = [
    (decoder, {"num_experts": 4, "gated": True, "bias": False, "norm_position": "sandwich"}),
    (encoder, {"embedding_size": 8, "next_sentence_head": True, "num_tags": 3, "span_head": True}),
    (encoder_decoder, {"head_bias": True, "positions": "learned", "embed_norm": True}),
    (encoder_decoder, {"share_embeddings": False, "positions": "t5", "tie_embeddings": False}),
    (electra, {"embedding_size": 8}), (xlnet, {"num_classes": 3}), (transformer_xl, {}),
    (memorizing, {}),
]  # fmt: skip


@pytest.mark.parametrize("family,keys", OTHERS)
def test_every_parameter_of_other_families_has_one_rule(family, keys):
    model = family.make(family.Config(**KEYS, **keys))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    found = rules.shardings(shapes, mesh.make(MESH))
    split = {rules.path_name(path): sharding.spec
             for path, sharding in jax.tree_util.tree_leaves_with_path(found)}  # fmt: skip
    # Whatever it is called, a matrix of a layer is split, and its layer axis is not.
    for name in split:
        matrix = name.endswith(("attention/q", "attention/out", "feed_forward/in", "experts/in"))
        if "layers" in name.split("/") and matrix:
            assert split[name][0] is None and any(split[name]), name


@pytest.mark.parametrize("keys", [{"cell": "lstm"}, {"cell": "gru"}])
def test_every_parameter_of_a_recurrent_model_has_one_rule(keys):
    config = recurrent.Config(vocab_size=64, width=16, num_layers=2, **keys)
    shapes = jax.eval_shape(recurrent.make(config).init, jax.random.key(0))
    rules.shardings(shapes, mesh.make(MESH))


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "adafactor"])
def test_optimizer_state_lies_with_its_parameter(name):
    """Each device holds a quarter (fsdp x tensor) of every moment of a matrix."""
    model = decoder.make(decoder.Config(**KEYS))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    config = optimizer.Config(name=name)
    made = mesh.make(MESH)
    state = states.abstract(model, optimizer.make_optimizer(config, 10, shapes), made, ema=True)
    matrix = shapes["layers"]["attention"]["q"].shape
    moments = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.shape == matrix and "/q" in rules.path_name(path)
    ]
    assert len(moments) >= (2 if name == "adafactor" else 3)  # parameter, average, moments
    assert all(leaf.sharding.spec == P(None, "fsdp", "tensor", None) for leaf in moments)


def test_a_missing_or_doubled_rule_is_loud():
    made = mesh.make(MESH)
    with pytest.raises(ValueError, match="no rule for parameter 'layers/new/weight'"):
        rules.spec("layers/new/weight", (3, 4, 4), made)
    table = ((r"a/.*", ("fsdp",)), (r".*/b", ("tensor",)))
    with pytest.raises(ValueError, match="collide"):
        rules.spec("a/b", (4,), made, table)
    with pytest.raises(ValueError, match="names 2 axes"):
        rules.spec("layers/feed_forward/in", (4, 4), made)


def test_what_does_not_divide_stays_whole():
    made = mesh.make(MESH)
    assert rules.spec("embed/tokens", (65, 16), made) == P(None, "fsdp")


def test_mesh_sizes():
    assert mesh.shape(mesh.Config(data=-1, tensor=2), 8) == (4, 1, 2)
    with pytest.raises(UserError, match=r"multiplies to 3, but there are 8 devices"):
        mesh.shape(mesh.Config(data=3), 8)
    with pytest.raises(UserError, match="only one axis may be -1"):
        mesh.Config(data=-1, fsdp=-1)
    with pytest.raises(UserError, match="mesh.tensor is 0"):
        mesh.Config(tensor=0)
