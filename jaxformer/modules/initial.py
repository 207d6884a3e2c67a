"""How weights begin."""

from __future__ import annotations

from flax.linen import initializers

from jaxformer.modules.config import TransformerConfig

zeros, ones = initializers.zeros, initializers.ones


def inner(config: TransformerConfig, inputs: int):
    """Returns the initialiser of a matrix that sums over `inputs` numbers."""
    return initializers.normal(inputs**-0.5 if config.init == "fan_in" else config.init_std)


def output(config: TransformerConfig, inputs: int):
    """Returns the initialiser of a matrix whose result is added to the residual stream."""
    if config.zero_init_output:
        return zeros
    if config.init == "fan_in":
        return initializers.normal(inputs**-0.5)
    # GPT-2 (Radford 2019, section 2.3): 2 L sums into the stream keep its variance.
    return initializers.normal(config.init_std / (2 * config.num_layers) ** 0.5)


def table(config: TransformerConfig):
    """Returns the initialiser of an embedding table."""
    if config.init == "fan_in":  # of unit variance where it is read
        E = config.embedding_size or config.width
        return initializers.normal(E**-0.5 if config.embed_scale else 1.0)
    return initializers.normal(config.init_std)
