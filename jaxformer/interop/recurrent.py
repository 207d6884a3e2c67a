"""The recurrent encoder-decoder, as torch's own layers hold it.

transformers has no such class, so this layout is ours: every tensor has the name and the shape of a
module of torch.nn, and `safetensors.torch.load_model(module, "model.safetensors")` fills a module
that has these as its attributes (E embedding, H hidden, A attention width, V vocabulary):

  embedding         Embedding(V, E): of the target, and of the source if they share it
  source_embedding  Embedding(source V, E), otherwise
  encoder           LSTM or GRU(E, H, num_layers, bidirectional=False), or with bidirectional=True
                    (E, H / 2, num_layers): its last states, the directions side by side, are the
                    first of the decoder's layers
  decoder           LSTM or GRU(E, H, num_layers); (E + H, H, num_layers) where each step also reads
                    [token, feed]: with input_feeding the readout of the step before (first zeros),
                    with bahdanau the context of this step
  attention         luong: general = Linear(H, H, bias=False), scores = state · general(source)
                    bahdanau: query and key = Linear(H, A, bias=False), score = Linear(A, 1,
                    bias=False), scores = score(tanh(query(state before) + key(source))), of the
                    uppermost layer's state
  readout           Linear(bias=False) from [context, state] (bahdanau: [context, state, token]) to
                    H, then tanh
  output            Linear(H, V); without a tensor for its weight if that is the embedding's (tied),
                    and without one for its bias if output_bias is false

config.json has model_type "rnn-seq2seq" and the keys that `write_config` writes: cell is "lstm" or
"gru", attention "luong" or "bahdanau"; dropout is a rate between layers.
"""

from __future__ import annotations

from typing import Any

from jaxformer.interop.family import HF, Family, architecture, setting, sizes
from jaxformer.interop.table import LINEAR, ROW, VECTOR, Rule, linear, part
from jaxformer.models.recurrent import Config

ARCHITECTURES = ("RNNSeq2Seq",)
# Choices of config.json and ours.
_OURS = {
    "bidirectional": "bidirectional",
    "input_feeding": "input_feeding",
    "tie_word_embeddings": "tie_embeddings",
    "share_embeddings": "share_embeddings",
    "output_bias": "head_bias",
}


def read_config(hf: HF, names: frozenset[str]) -> Config:
    """Returns our config of a config.json."""
    architecture(hf, ARCHITECTURES)

    def flag(key: str) -> bool:
        return bool(setting(hf, key, True, False, default=getattr(Config, _OURS[key])))

    keys: dict[str, Any] = {ours: flag(key) for key, ours in _OURS.items()}
    keys |= sizes(
        hf, vocab_size="vocab_size", width="hidden_size", num_layers="num_layers",
        embedding_size="embedding_size", max_length="max_length",
    )  # fmt: skip
    attention = setting(hf, "attention", "luong", "bahdanau", default="luong")
    if attention == "bahdanau":
        keys |= sizes(hf, attention_width="attention_size")
    if not keys["share_embeddings"]:
        keys |= sizes(hf, source_vocab_size="source_vocab_size")
    return Config(
        **keys,
        cell=setting(hf, "cell", "lstm", "gru", default="lstm"),
        attention=attention,
        start_id=setting(hf, "decoder_start_token_id", default=-1),
        dropout=hf.get("dropout", 0.0),
    )


def write_config(config: Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    written = {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "rnn-seq2seq",
        "is_encoder_decoder": True,
        "cell": config.cell,
        "vocab_size": config.vocab_size,
        "embedding_size": config.embedding_width,
        "hidden_size": config.width,
        "num_layers": config.num_layers,
        "max_length": config.max_length,
        "attention": config.attention,
        **{key: getattr(config, ours) for key, ours in _OURS.items()},
        "dropout": config.dropout,
    }
    if config.attention == "bahdanau":
        written["attention_size"] = config.attention_width or config.width
    if not config.share_embeddings:
        written["source_vocab_size"] = config.source_vocab_size or config.vocab_size
    if config.start_id >= 0:
        written["decoder_start_token_id"] = config.start_id
    return written


def table(config: Config) -> tuple[Rule, ...]:
    """Returns the rules of all parameters."""
    rules = [Rule("embedding.weight", "embed/tokens")]
    if not config.share_embeddings:
        rules.append(Rule("source_embedding.weight", "encoder/embed/tokens"))
    feeds = config.attention == "bahdanau" or config.input_feeding
    for i in range(config.num_layers):
        rules += _layer(f"encoder.{{}}_l{i}", f"encoder/layer_{i}_forward")
        if config.bidirectional:
            rules += _layer(f"encoder.{{}}_l{i}_reverse", f"encoder/layer_{i}_backward")
        rules += _layer(f"decoder.{{}}_l{i}", f"decoder/layer_{i}", feeds=feeds and i == 0)
    attention = "decoder/attention/"
    if config.attention == "luong":
        # Ours meets the source as torch's does, so it is published as it is.
        rules.append(Rule("attention.general.weight", attention + "general"))
    else:
        rules += linear("attention.query", attention + "query")
        rules += linear("attention.key", attention + "key")
        rules.append(Rule("attention.score.weight", attention + "score", ROW))
    rules += linear("readout", "decoder/readout")
    if config.tie_embeddings:
        rules.append(Rule("output.weight", "embed/tokens", use="read"))
    else:
        rules.append(Rule("output.weight", "head/table"))
    if config.head_bias:
        rules.append(Rule("output.bias", "head/bias"))
    return tuple(rules)


def _layer(name: str, ours: str, *, feeds: bool = False) -> tuple[Rule, ...]:
    """Returns the rules of one layer in one direction; `name` lacks what torch calls its parts.

    Ours keeps apart the weights of what the step before hands on; torch's cell has them behind
    those of its input.
    """
    weight_ih = name.format("weight_ih")
    whole = Rule(weight_ih, f"{ours}/in", part(LINEAR, 0, 2, axis=1) if feeds else LINEAR)
    feed = (Rule(weight_ih, f"{ours}/feed", part(LINEAR, 1, 2, axis=1)),) if feeds else ()
    return (
        whole,
        *feed,
        Rule(name.format("weight_hh"), f"{ours}/hidden", LINEAR),
        Rule(name.format("bias_ih"), f"{ours}/bias", VECTOR),
        Rule(name.format("bias_hh"), f"{ours}/hidden_bias", VECTOR),
    )


FAMILY = Family("rnn-seq2seq", Config, ARCHITECTURES, read_config, write_config, table)
