"""What reads a Transformer's hidden states: vocabulary heads, poolers and classifiers."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.modules import initial
from jaxformer.modules.config import TransformerConfig
from jaxformer.modules.norm import Norm


class Head(nn.Module):
    """An output table [V, D] of its own, for models that do not tie it to the embedding."""

    config: TransformerConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        c = self.config
        start = initial.zeros if c.zero_init_output else initial.inner(c, c.width)
        return self.param("table", start, (c.vocab_size, c.width))


class MaskedHead(nn.Module):
    """BERT's transform before the output table, and the bias after it (Devlin 2019)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (features_..D, bias_V)."""
        c, D = self.config, x.shape[-1]
        kernel_DD = self.param("kernel", nn.initializers.normal(c.init_std), (D, D))
        x = ops.linear(x, kernel_DD, self.param("kernel_bias", nn.initializers.zeros, (D,)))
        x = Norm(c, name="norm")(ops.ACTIVATIONS[c.activation](x))
        return x, self.param("bias", nn.initializers.zeros, (c.vocab_size,))


class Pooler(nn.Module):
    """BERT's tanh layer on the first token."""

    init_std: float = 0.02

    @nn.compact
    def __call__(self, x_BD: jax.Array) -> jax.Array:
        D = x_BD.shape[-1]
        kernel_DD = self.param("kernel", nn.initializers.normal(self.init_std), (D, D))
        return jnp.tanh(
            ops.linear(x_BD, kernel_DD, self.param("bias", nn.initializers.zeros, (D,)))
        )


class Classifier(nn.Module):
    """A linear layer onto the classes; logits in float32."""

    num_classes: int
    init_std: float = 0.02

    @nn.compact
    def __call__(self, x_BD: jax.Array) -> jax.Array:
        shape = (x_BD.shape[-1], self.num_classes)
        kernel_DC = self.param("kernel", nn.initializers.normal(self.init_std), shape)
        bias_C = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        return ops.linear(x_BD.astype(jnp.float32), kernel_DC, bias_C)
