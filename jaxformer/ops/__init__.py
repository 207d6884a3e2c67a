"""Pure functions of arrays: everything that a Transformer computes. Imports jax and nothing else.

from jaxformer import ops
out_BTNH = ops.attention(q_BTNH, k_BSKH, v_BSKH, mask=ops.masks.causal())
"""

from jaxformer.ops import masks, sampling
from jaxformer.ops.attention import attention
from jaxformer.ops.convolution import short_conv
from jaxformer.ops.dropout import dropout
from jaxformer.ops.embeddings import embed
from jaxformer.ops.experts import experts
from jaxformer.ops.ffn import ACTIVATIONS, feed_forward, gated_feed_forward
from jaxformer.ops.linear import einsum, linear
from jaxformer.ops.losses import cross_entropy, linear_cross_entropy
from jaxformer.ops.norms import layer_norm, rms_norm
from jaxformer.ops.positions import alibi, learned, sinusoidal, t5_bucket, t5_relative_bias
from jaxformer.ops.recurrent import gru, lstm
from jaxformer.ops.relative import relative_attention
from jaxformer.ops.rope import rope, rope_frequencies

__all__ = [
    "ACTIVATIONS",
    "alibi",
    "attention",
    "cross_entropy",
    "dropout",
    "einsum",
    "embed",
    "experts",
    "feed_forward",
    "gated_feed_forward",
    "gru",
    "layer_norm",
    "learned",
    "linear",
    "linear_cross_entropy",
    "lstm",
    "masks",
    "relative_attention",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "sampling",
    "short_conv",
    "sinusoidal",
    "t5_bucket",
    "t5_relative_bias",
]
