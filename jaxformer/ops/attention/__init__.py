"""Attention: one signature, three ways to compute it."""

from jaxformer.ops.attention.api import BACKENDS, attention

__all__ = ["BACKENDS", "attention"]
