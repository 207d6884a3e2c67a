"""Text in, batches out: sources, tokenizers, the cache, packing, and the batch of (seed, step)."""

from jaxformer.data.config import Config
from jaxformer.data.layouts import ends_of
from jaxformer.data.pipeline import Dataset, Info, Split, Transform, load
from jaxformer.data.prefetch import prefetch, to_devices
from jaxformer.data.reading import Document
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers import load as load_tokenizer

__all__ = [
    "Config",
    "Dataset",
    "Document",
    "Info",
    "Split",
    "Tokenizer",
    "Transform",
    "ends_of",
    "load",
    "load_tokenizer",
    "prefetch",
    "to_devices",
]
