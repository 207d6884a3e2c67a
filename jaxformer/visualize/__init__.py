"""Arrays in, matplotlib figures out. Nothing here opens a window: call `figure.savefig(path)`."""

from __future__ import annotations

from jaxformer.visualize.attention import attention_maps
from jaxformer.visualize.lengths import perplexity_over_length
from jaxformer.visualize.loss import loss_curves, loss_label
from jaxformer.visualize.shootout import shootout

__all__ = ["attention_maps", "loss_curves", "loss_label", "perplexity_over_length", "shootout"]
