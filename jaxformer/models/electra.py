"""ELECTRA: a small generator fills in hidden tokens, a discriminator finds them (Clark 2020).

Both are encoders; the discriminator is the model that one keeps. They share the tables of tokens,
positions and token types and the norm after them, as the published code does (section 3.2):

  params = {"generator": {an encoder's without those}, "discriminator": {an encoder's, whole}}

The published checkpoints come in two: `split` gives the trees of both, whole, for the configs
`generator_config` (ElectraForMaskedLM) and `discriminator_config` (ElectraForPreTraining); `join`
makes one of two. B batch, T time, D model width, E embedding width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.errors import UserError
from jaxformer.models import encoder
from jaxformer.models.head import Classifier, Pooler
from jaxformer.models.model import Model, Params

SHARED = ("tokens", "positions", "token_types", "norm")


@dataclasses.dataclass(frozen=True)
class Config(encoder.Config):
    """The keys of encoder.Config, which are the discriminator's (num_classes, num_tags and the
    like too; masked_head is the generator's).

    generator_fraction: of the discriminator's width, heads and feed-forward that the generator has;
    it is as deep. Both look tokens up at embedding_size (0: the discriminator's width).
    """

    num_token_types: int = 2
    pooler_activation: str = "gelu"
    discriminator_head: bool = True
    generator_fraction: float = 0.25

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 < self.generator_fraction <= 1.0:
            raise UserError(
                f"model.generator_fraction={self.generator_fraction} must be above 0 and at most "
                "1; the paper's are 0.25 and 0.3333"
            )
        try:
            generator_config(self)
        except UserError as error:
            raise UserError(
                f"model.generator_fraction={self.generator_fraction} gives no generator ({error}); "
                "choose one that leaves whole heads"
            ) from None


# Clark 2020, table 6.
_ELECTRA = dict(vocab_size=30522, num_token_types=2)
SIZES = {
    "electra_small": dict(
        _ELECTRA, num_layers=12, width=256, num_heads=4, embedding_size=128, generator_fraction=0.25
    ),
    "electra_base": dict(
        _ELECTRA, num_layers=12, width=768, num_heads=12, generator_fraction=1 / 3
    ),
    "electra_large": dict(
        _ELECTRA, num_layers=24, width=1024, num_heads=16, generator_fraction=0.25
    ),
}


def discriminator_config(config: Config) -> encoder.Config:
    """Returns the discriminator's config as an encoder of its own."""
    return encoder.Config(**{**_encoder_keys(config), "masked_head": False})


def generator_config(config: Config) -> encoder.Config:
    """Returns the generator's config as an encoder of its own."""
    part = config.generator_fraction
    width, embedding = round(config.width * part), config.embedding_size or config.width
    return encoder.Config(
        **{
            **_encoder_keys(config),
            "width": width,
            "num_heads": max(1, round(config.num_heads * part)),
            "num_kv_heads": config.num_kv_heads and max(1, round(config.num_kv_heads * part)),
            "feed_forward": config.feed_forward and round(config.feed_forward * part),
            "embedding_size": 0 if embedding == width else embedding,
            "masked_head": True,
            "discriminator_head": False,
            "next_sentence_head": False,
            "span_head": False,
            "pooler": False,
            "num_classes": 0,
            "num_tags": 0,
        }
    )


def _encoder_keys(config: Config) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(encoder.Config)}


def make(config: Config) -> Model:
    """Returns ELECTRA as pure functions, see Model: those of its discriminator.

    The generator is `encoder.make(generator_config(config))` on its part of `split(params)`.
    """
    generator = encoder.make(generator_config(config))
    discriminator = encoder.make(discriminator_config(config))

    def init(key: jax.Array) -> Params:
        of_generator, of_discriminator = (
            model.init(k) for model, k in zip((generator, discriminator), jax.random.split(key))
        )
        return _without_shared(of_generator, of_discriminator)

    def apply(params: Params, batch: dict, **asked: Any):
        return discriminator.apply(params["discriminator"], batch, **asked)

    def unembed(params: Params, hidden: jax.Array):
        raise UserError("ELECTRA's discriminator predicts no tokens; its generator does")

    def classify(params: Params, hidden_BTD: jax.Array, batch: dict) -> jax.Array:
        return discriminator.classify(params["discriminator"], hidden_BTD, batch)

    def pool(params: Params, hidden_BTD: jax.Array, batch: dict) -> jax.Array:
        assert discriminator.pool is not None
        return discriminator.pool(params["discriminator"], hidden_BTD, batch)

    return Model(config, init, apply, unembed, classify, discriminator.init_cache, pool=pool)


def split(params: Params) -> tuple[Params, Params]:
    """Returns the generator's and the discriminator's parameters, each a whole encoder's tree."""
    generator, discriminator = params["generator"], params["discriminator"]
    shared = {name: leaf for name, leaf in discriminator["embed"].items() if name in SHARED}
    return {**generator, "embed": shared | generator.get("embed", {})}, discriminator


def join(generator: Params, discriminator: Params) -> Params:
    """Returns one tree of a generator's and a discriminator's; the opposite of `split`.

    Raises:
      UserError: they do not share their embeddings, so that one of the two would be lost.
    """
    ours, theirs = generator["embed"], discriminator["embed"]
    for name in SHARED:
        same = jax.tree.map(jnp.array_equal, ours.get(name, {}), theirs.get(name, {}))
        if (name in ours) != (name in theirs) or not all(jax.tree.leaves(same)):
            raise UserError(
                f"embed/{name} of the generator is not that of the discriminator; ELECTRA shares "
                "it: give the two halves of one checkpoint"
            )
    return _without_shared(generator, discriminator)


def discriminate(
    discriminator: Params, hidden_BTD: jax.Array, activation: str = "gelu"
) -> jax.Array:
    """Returns the float32 logits [B, T] of "this token was replaced".

    Args:
      discriminator: an encoder's parameters, with its discriminator head.
      hidden_BTD: that encoder's hidden states.
      activation: that encoder's (published code takes it here too).
    """
    dense = Pooler(activation=activation)
    hidden_BTD = dense.apply({"params": discriminator["discriminator_dense"]}, hidden_BTD)
    return Classifier(1).apply({"params": discriminator["discriminator"]}, hidden_BTD)[..., 0]


def _without_shared(generator: Params, discriminator: Params) -> Params:
    embed = {name: leaf for name, leaf in generator["embed"].items() if name not in SHARED}
    rest = {name: leaf for name, leaf in generator.items() if name != "embed"}
    return {
        "generator": {**rest, "embed": embed} if embed else rest,
        "discriminator": discriminator,
    }
