"""Weights in and out: Hugging Face checkpoints, read and written by one table per family."""

from jaxformer.interop.convert import convert, export
from jaxformer.interop.huggingface import (
    is_published,
    label_names,
    load_huggingface,
    published_config,
    save_huggingface,
)
from jaxformer.interop.tokenizers import check_tokenizer
from jaxformer.interop.writer import refuse_existing

__all__ = [
    "check_tokenizer",
    "convert",
    "export",
    "is_published",
    "label_names",
    "load_huggingface",
    "published_config",
    "refuse_existing",
    "save_huggingface",
]
