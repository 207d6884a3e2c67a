"""Text in, batches out: sources, tokenizers, the cache, packing, and the batch of (seed, step)."""

from jaxformer.data.config import Config
from jaxformer.data.pipeline import Dataset, Info, Split, load
from jaxformer.data.prefetch import prefetch, to_devices
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers import load as load_tokenizer

__all__ = [
    "Config",
    "Dataset",
    "Info",
    "Split",
    "Tokenizer",
    "load",
    "load_tokenizer",
    "prefetch",
    "to_devices",
]
