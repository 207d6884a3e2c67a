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
    """What comes after the hidden states and is not the embedding: a table of its own, a bias."""

    config: TransformerConfig

    @nn.compact
    def __call__(self) -> tuple[jax.Array | None, jax.Array | None]:
        """Returns (table_VD or None where it is the embedding's, bias_V or None)."""
        c, table_VD, bias_V = self.config, None, None
        if not c.tie_embeddings:
            start = initial.zeros if c.zero_init_output else initial.inner(c, c.width)
            table_VD = self.param("table", start, (c.vocab_size, c.embedding_size or c.width))
        if c.head_bias:
            bias_V = self.param("bias", initial.zeros, (c.vocab_size,))
        return table_VD, bias_V


class MaskedHead(nn.Module):
    """BERT's transform before the output table, and the bias after it (Devlin 2019)."""

    config: TransformerConfig
    activation: str = "gelu"
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (features_..E, bias_V)."""
        c, D = self.config, x.shape[-1]
        E = c.embedding_size or D
        kernel_DE = self.param("kernel", nn.initializers.normal(c.init_std), (D, E))
        bias_E = self.param("kernel_bias", nn.initializers.zeros, (E,)) if self.bias else None
        x = Norm(c, name="norm")(ops.ACTIVATIONS[self.activation](ops.linear(x, kernel_DE, bias_E)))
        return x, self.param("bias", nn.initializers.zeros, (c.vocab_size,))


class Pooler(nn.Module):
    """BERT's tanh layer on the first token, or a kin's with another activation."""

    init_std: float = 0.02
    activation: str = "tanh"

    @nn.compact
    def __call__(self, x_BD: jax.Array) -> jax.Array:
        D = x_BD.shape[-1]
        kernel_DD = self.param("kernel", nn.initializers.normal(self.init_std), (D, D))
        bias_D = self.param("bias", nn.initializers.zeros, (D,))
        return ops.ACTIVATIONS[self.activation](ops.linear(x_BD, kernel_DD, bias_D))


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
