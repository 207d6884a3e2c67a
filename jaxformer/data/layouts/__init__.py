"""Rows out of a token stream, one file a layout.

| data.layout | class | keys of its batch beside tokens, targets, weights, segment_ids, positions |
|---|---|---|
| windows | Windows | (training: without segment_ids and positions) |
| packed | Packed | |
| padded | Padded | labels; tags; token_types |
| seq2seq, seq2seq_packed | Seq2Seq | source, source_segment_ids |
| qa | Questions | start, end; token_types |
| sentence_pairs | SentencePairs | next_sentence or order; token_types |
"""

from jaxformer.data.layouts.base import Batch, Layout
from jaxformer.data.layouts.make import make
from jaxformer.data.layouts.packed import Packed
from jaxformer.data.layouts.padded import Padded
from jaxformer.data.layouts.qa import Feature, Questions
from jaxformer.data.layouts.sentence_pairs import SentencePairs
from jaxformer.data.layouts.seq2seq import Ends, Seq2Seq, ends_of
from jaxformer.data.layouts.windows import Windows

__all__ = [
    "Batch",
    "Ends",
    "Feature",
    "Layout",
    "Packed",
    "Padded",
    "Questions",
    "SentencePairs",
    "Seq2Seq",
    "Windows",
    "ends_of",
    "make",
]
