"""What every Transformer chooses, whatever its family."""

from __future__ import annotations

import dataclasses

from jaxformer import ops
from jaxformer.errors import UserError, one_of

NORMS = ("layer_norm", "rms_norm", "rms_norm_plus_one")
POSITIONS = ("rope", "rope_interleaved", "learned", "sinusoidal", "sinusoidal_interleaved",
             "alibi", "t5", "none")  # fmt: skip
BACKENDS = ("auto", "dense", "chunked", "cudnn")
REMAT = ("none", "full", "dots", "named")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The block, the stack of blocks and the embedding; 0 or "" means "the usual value".

    Sizes: vocab_size (0: the tokenizer's), num_layers, width (D), num_heads (N), num_kv_heads
    (K; 0: N; 1: multi-query, Shazeer 2019; between: grouped-query, Ainslie 2023), head_dim (H;
    0: D / N), feed_forward (F; 0: 4 D), max_length (tokens; rows of a learned position table).

    Block: norm_position "pre" or "post"; norm (see NORMS) with norm_scale and norm_bias or without,
    norm_epsilon; qk_norm (Henry 2020) normalises each head's query and key; qk_scale is
    where a learned factor of each head's logits starts (0: there is none); attention_scale
    multiplies queries times keys (0: 1 / sqrt(H)); attention_soft_cap and logit_soft_cap (Gemma 2)
    squash by cap * tanh(x / cap), 0 is off; bias adds biases to the attention's and the
    feed-forward's matmuls; activation (ops.ffn.ACTIVATIONS), gated (GLU, Shazeer 2020);
    short_conv: width of a causal depthwise convolution on the normed input of attention and of
    feed-forward (after Primer, So 2021; 0 is off); parallel_residual (GPT-J): attention and
    feed-forward read the same input;
    zero_init_output starts each block as the identity (and an untied head at 0); init draws
    weights from N(0, init_std^2) ("normal"; outputs into the stream less with depth, as GPT-2), or
    with variance 1 / inputs and embeddings from N(0, 1) ("fan_in", LeCun 1998).

    Positions: positions (see POSITIONS), rope_base, rope_scaling ("", "linear", "ntk", "yarn",
    "llama3") with rope_scaling_factor over rope_original_length; embed_scale multiplies token
    embeddings by sqrt(D); embed_norm normalises them; tie_embeddings shares them with the head.

    Running: dropout and attention_dropout rates; compute_dtype of activations and of the operands
    of matmuls (parameters stay float32, matmuls accumulate in float32); attention_backend; unroll
    (layers per turn of the scan, 0: all: fastest; 1: compiles flat in depth); remat ("none",
    "full": keep only block inputs, "dots": keep matmul outputs, "named": keep the outputs of
    attention and feed-forward).
    """

    vocab_size: int = 0
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    num_kv_heads: int = 0
    head_dim: int = 0
    feed_forward: int = 0
    max_length: int = 1024
    norm_position: str = "pre"
    norm: str = "layer_norm"
    norm_scale: bool = True
    norm_bias: bool = True
    norm_epsilon: float = 1e-5
    qk_norm: bool = False
    qk_scale: float = 0.0
    attention_scale: float = 0.0
    attention_soft_cap: float = 0.0
    logit_soft_cap: float = 0.0
    bias: bool = True
    activation: str = "gelu_tanh"
    gated: bool = False
    short_conv: int = 0
    parallel_residual: bool = False
    zero_init_output: bool = False
    init: str = "normal"
    init_std: float = 0.02
    positions: str = "learned"
    rope_base: float = 10000.0
    rope_scaling: str = ""
    rope_scaling_factor: float = 1.0
    rope_original_length: int = 0
    embed_scale: bool = False
    embed_norm: bool = False
    tie_embeddings: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    compute_dtype: str = "float32"
    attention_backend: str = "auto"
    unroll: int = 0
    remat: str = "none"

    def __post_init__(self):
        for key in ("num_layers", "width", "num_heads", "max_length"):
            if getattr(self, key) < 1:
                raise UserError(f"model.{key} is {getattr(self, key)}; it must be at least 1")
        if not self.head_dim and self.width % self.num_heads:
            divisors = [n for n in range(1, self.width + 1) if self.width % n == 0]
            near = min(divisors, key=lambda n: abs(n - self.num_heads))
            raise UserError(
                f"model.num_heads={self.num_heads} does not divide model.width={self.width}; "
                f"try --config.model.num_heads={near}"
            )
        if self.num_heads % self.kv_heads:
            raise UserError(
                f"model.num_kv_heads={self.num_kv_heads} does not divide "
                f"model.num_heads={self.num_heads}"
            )
        if self.positions.startswith("rope") and self.per_head % 2:
            raise UserError(
                f"RoPE turns pairs, but the head width is {self.per_head}, which is odd"
            )
        one_of(self.norm, NORMS, "model.norm")
        one_of(self.norm_position, ("pre", "post"), "model.norm_position")
        one_of(self.positions, POSITIONS, "model.positions")
        one_of(self.activation, ops.ACTIVATIONS, "model.activation")
        one_of(self.attention_backend, BACKENDS, "model.attention_backend")
        one_of(self.remat, REMAT, "model.remat")
        one_of(self.init, ("normal", "fan_in"), "model.init")
        one_of(self.compute_dtype, DTYPES, "model.compute_dtype")
        one_of(self.rope_scaling, ("", "linear", "ntk", "yarn", "llama3"), "model.rope_scaling")
        if self.short_conv and self.norm_position != "pre":
            raise UserError("model.short_conv stands after a pre-norm; set model.norm_position=pre")
        if self.rope_scaling_factor < 1:
            raise UserError(
                f"model.rope_scaling_factor={self.rope_scaling_factor} must be at least 1"
            )
        for key in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise UserError(f"model.{key}={getattr(self, key)} must be in [0, 1)")

    @property
    def per_head(self) -> int:
        """Width of a head, H."""
        return self.head_dim or self.width // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads, K."""
        return self.num_kv_heads or self.num_heads

    @property
    def feed_forward_width(self) -> int:
        """Width of the feed-forward's hidden layer, F."""
        return self.feed_forward or 4 * self.width
