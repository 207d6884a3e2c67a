"""The layout of a split, chosen by the config."""

from __future__ import annotations

from jaxformer.data.cache import Corpus
from jaxformer.data.config import SEQ2SEQ, Config
from jaxformer.data.layouts.base import Layout
from jaxformer.data.layouts.packed import Packed
from jaxformer.data.layouts.padded import Padded
from jaxformer.data.layouts.qa import Questions
from jaxformer.data.layouts.retrieved import Retrieved
from jaxformer.data.layouts.sentence_pairs import SentencePairs
from jaxformer.data.layouts.seq2seq import Seq2Seq, ends_of
from jaxformer.data.layouts.windows import Windows
from jaxformer.data.neighbours import Neighbours
from jaxformer.data.tokenizers import Tokenizer


def make(
    config: Config,
    corpus: Corpus,
    tokenizer: Tokenizer,
    training: bool,
    found: Neighbours | None = None,
) -> Layout:
    """Returns a split's layout.

    Args:
      config: which one, and its sizes.
      corpus: the split.
      tokenizer: for its special tokens.
      training: whether it is the training split; validation windows may overlap, and validation
        pairs have a row each.
      found: the neighbours of the split's chunks, with data.retrieval.

    Raises:
      UserError: rows too short for what they must hold.
    """
    T, pad = config.seq_len, max(0, tokenizer.pad_id)
    if config.layout == "windows":
        stride = 0 if training else config.eval_stride or config.seq_len
        if found is not None:
            most_overlap = 1.0 if training else config.retrieval_overlap
            return Retrieved(corpus, T, stride, pad, found, most_overlap)
        return Windows(corpus, T, stride, pad)
    if config.layout == "packed":
        return Packed(corpus, T, pad)
    if config.layout in SEQ2SEQ:
        ends = ends_of(tokenizer, config.start_id)
        packed = training and config.layout == "seq2seq_packed"
        return Seq2Seq(corpus, config.source_length, T, ends, pad, packed)
    pairs = tokenizer.template(pair=True)
    if config.layout == "qa":
        return Questions(corpus, T, pairs, pad, config.doc_stride, config.max_question)
    if config.layout == "sentence_pairs":
        return SentencePairs(corpus, T, pairs, pad, config.pair_task)
    two = bool(config.text_pair_field)
    return Padded(
        corpus, T, pairs if two else tokenizer.template(pair=False), pad,
        pairs=two, cut=config.labels not in ("field", "value"), left=config.pad_left,
    )  # fmt: skip
