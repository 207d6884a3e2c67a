"""Text to ids and back: bytes, characters, any `tokenizer.json`, and older published files."""

from jaxformer.data.tokenizers.base import NAMES, SPECIALS, Template, Tokenizer
from jaxformer.data.tokenizers.files import load, locate
from jaxformer.data.tokenizers.library import LibraryTokenizer, parse, restore
from jaxformer.data.tokenizers.plain import ByteTokenizer, CharTokenizer

__all__ = [
    "NAMES",
    "SPECIALS",
    "ByteTokenizer",
    "CharTokenizer",
    "LibraryTokenizer",
    "Template",
    "Tokenizer",
    "load",
    "locate",
    "parse",
    "restore",
]
