"""Writing text: sampling and greedy choice, beam search, from a prompt or from a source."""

from jaxformer.generate.config import Config
from jaxformer.generate.decode import BLOCK, generate
from jaxformer.generate.detokenize import Detokenizer

__all__ = ["BLOCK", "Config", "Detokenizer", "generate"]
