"""Pure functions of arrays: everything that a Transformer computes. Imports jax and nothing else.

from jaxformer import ops
out_BTNH = ops.attention(q_BTNH, k_BSKH, v_BSKH, mask=ops.masks.causal())
"""

from jaxformer.ops import masks, retrieval, sampling
from jaxformer.ops.attention import attention
from jaxformer.ops.attention.bigbird import bigbird
from jaxformer.ops.attention.block_local import block_local
from jaxformer.ops.attention.chunked_cross import chunked_cross_attention
from jaxformer.ops.attention.differential import differential_attention
from jaxformer.ops.attention.latent import latent_attention
from jaxformer.ops.attention.linear_attention import linear_attention
from jaxformer.ops.attention.linformer import linformer
from jaxformer.ops.attention.longformer import longformer
from jaxformer.ops.attention.maps import attention_weights
from jaxformer.ops.attention.memory import memory_attention
from jaxformer.ops.attention.nystromformer import nystromformer
from jaxformer.ops.attention.performer import orthogonal_features, performer
from jaxformer.ops.attention.relative import relative_attention
from jaxformer.ops.attention.sliding_window import sliding_window
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
from jaxformer.ops.rope import rope, rope_frequencies

__all__ = [
    "ACTIVATIONS",
    "alibi",
    "attention",
    "attention_weights",
    "bigbird",
    "block_local",
    "chunked_cross_attention",
    "cross_entropy",
    "differential_attention",
    "dropout",
    "einsum",
    "embed",
    "experts",
    "feed_forward",
    "gated_feed_forward",
    "gru",
    "latent_attention",
    "layer_norm",
    "learned",
    "linear",
    "linear_attention",
    "linear_cross_entropy",
    "linformer",
    "longformer",
    "lstm",
    "masks",
    "memory_attention",
    "nystromformer",
    "orthogonal_features",
    "performer",
    "relative_attention",
    "retrieval",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "sampling",
    "short_conv",
    "sinusoidal",
    "sliding_window",
    "t5_bucket",
    "t5_relative_bias",
]
