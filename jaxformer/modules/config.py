"""What every Transformer chooses, whatever its family."""

from __future__ import annotations

import dataclasses

from jaxformer import ops
from jaxformer.errors import UserError, one_of
from jaxformer.modules import variants

NORMS = ("layer_norm", "rms_norm", "rms_norm_plus_one")
POSITIONS = ("rope", "rope_interleaved", "learned", "sinusoidal", "sinusoidal_interleaved",
             "alibi", "t5", "none")  # fmt: skip
BACKENDS = ("auto", "dense", "chunked", "cudnn")
NORM_POSITIONS = ("pre", "post", "output", "sandwich")
REMAT = ("none", "full", "dots", "named")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The block, the stack of blocks and the embedding; 0 or "" means "the usual value".

    Sizes: vocab_size (0: the tokenizer's), num_layers, width (D), num_heads (N), num_kv_heads (K;
    0: N; 1: multi-query, Shazeer 2019; between: grouped-query, Ainslie 2023), head_dim (H; 0: D /
    N), feed_forward (F; 0: 4 D), max_length (tokens; rows of a learned position table),
    embedding_size (E; ALBERT and ELECTRA look tokens up at this width and project them to D; 0: no
    projection), share_layers (ALBERT: one layer's parameters serve all).

    Block: norm_position "pre" (before a sublayer, Xiong 2020), "post" (after its residual sum,
    Vaswani 2017), "output" (on its output, before the sum: OLMo 2), "sandwich" ("pre" and "output":
    Gemma 2); norm (see NORMS) with norm_scale and norm_bias or without, norm_epsilon;
    first_attention_norm (False, ModernBERT: the first layer reads the normalised embedding as it
    is); qk_norm (Henry 2020) normalises each head's query and key, or with qk_norm_all_heads all
    heads together (OLMo 2); qk_scale is where a learned factor of each head's logits starts (0:
    there is none); attention_scale multiplies queries times keys (0: 1 / sqrt(H));
    attention_soft_cap and logit_soft_cap (Gemma 2) squash by cap * tanh(x / cap), 0 is off;
    logit_scale multiplies what the head reads (T5: 1 / sqrt(D); 0: 1); bias adds biases to the
    attention's and the feed-forward's matmuls, qkv_bias (Qwen 2) and attention_out_bias to those
    only; activation (ops.ffn.ACTIVATIONS), gated (GLU, Shazeer 2020); short_conv: width of a causal
    depthwise convolution on the normed input of attention and of feed-forward (after Primer, So
    2021; 0 is off); parallel_residual (GPT-J): attention and feed-forward read the same input;
    num_experts (X; 0: one feed-forward) of which each token is given to the experts_per_token best
    (Jiang 2024); zero_init_output starts each block as the identity (and an untied head at 0); init
    draws weights from N(0, init_std^2) ("normal"; outputs into the stream less with depth, as
    GPT-2), or with variance 1 / inputs and embeddings from N(0, 1) ("fan_in", LeCun 1998).

    Attention: attention is "softmax" or another way to attend, with its arguments as in a call,
    "performer(num_features=256)" (modules/variants lists them), or a function of your own,
    "file.py:function". Softmax has a reach: attention_pattern repeats over the layers, of "global"
    and "local" ("" in a config: all "local" where there is a window, else all "global"); a "local"
    layer's token sees `window` tokens, itself included (an encoder's: window // 2 on each side).

    Positions: positions (see POSITIONS), position_offset (the row of position 0 in a learned table;
    RoBERTa and BART: 2), relative_buckets and relative_max_distance (T5), rope_base,
    rope_local_base (of local layers, without scaling; 0: the same for all), rope_scaling ("",
    "linear", "ntk", "yarn", "llama3") with rope_scaling_factor over rope_original_length,
    rope_frequency_factors (of "llama3": low, high); embed_scale multiplies token embeddings by
    sqrt(D); embed_norm normalises them; tie_embeddings shares them with the head; head_bias adds a
    bias to the logits.

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
    embedding_size: int = 0
    share_layers: bool = False
    norm_position: str = "pre"
    norm: str = "layer_norm"
    norm_scale: bool = True
    norm_bias: bool = True
    norm_epsilon: float = 1e-5
    first_attention_norm: bool = True
    qk_norm: bool = False
    qk_norm_all_heads: bool = False
    qk_scale: float = 0.0
    attention_scale: float = 0.0
    attention_soft_cap: float = 0.0
    logit_soft_cap: float = 0.0
    logit_scale: float = 0.0
    bias: bool = True
    qkv_bias: bool = False
    attention_out_bias: bool = False
    activation: str = "gelu_tanh"
    gated: bool = False
    short_conv: int = 0
    parallel_residual: bool = False
    num_experts: int = 0
    experts_per_token: int = 2
    zero_init_output: bool = False
    init: str = "normal"
    init_std: float = 0.02
    attention: str = "softmax"
    attention_pattern: tuple[str, ...] = ()
    window: int = 0
    positions: str = "learned"
    position_offset: int = 0
    relative_buckets: int = 32
    relative_max_distance: int = 128
    rope_base: float = 10000.0
    rope_local_base: float = 0.0
    rope_scaling: str = ""
    rope_scaling_factor: float = 1.0
    rope_original_length: int = 0
    rope_frequency_factors: tuple[float, ...] = (1.0, 4.0)
    embed_scale: bool = False
    embed_norm: bool = False
    tie_embeddings: bool = True
    head_bias: bool = False
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
            divisors = [n for n in range(1, min(self.width, 4096) + 1) if self.width % n == 0]
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
        one_of(self.norm_position, NORM_POSITIONS, "model.norm_position")
        for kind in self.attention_pattern:
            one_of(kind, ("global", "local"), "model.attention_pattern")
        if "local" in self.attention_pattern and self.window < 1:
            raise UserError(
                'model.attention_pattern has "local" layers; set model.window, in tokens'
            )
        if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
            raise UserError(
                f"model.experts_per_token={self.experts_per_token} must be 1 to "
                f"model.num_experts={self.num_experts}"
            )
        if self.num_experts and (not self.gated or self.bias):
            raise UserError(
                "model.num_experts: experts are gated and without biases, as Mixtral's; set "
                "model.gated=True and model.bias=False"
            )
        one_of(self.positions, POSITIONS, "model.positions")
        one_of(self.activation, ops.ACTIVATIONS, "model.activation")
        variants.parse(self.attention)
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

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """Each layer's reach, "global" or "local"."""
        pattern = self.attention_pattern or ("local" if self.window else "global",)
        return tuple(pattern[i % len(pattern)] for i in range(self.num_layers))
