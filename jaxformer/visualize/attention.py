"""Attention maps: what each head of each layer looks at.

Shapes: L layers, N heads, T query time, S key time.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from jaxformer.visualize.style import FAINT, INK, figure

MOST_LABELS = 32  # tokens along one axis that can still be read
MOST_LABELLED_MAPS = 16


def attention_maps(
    weights_LNTS: np.ndarray,
    tokens: Sequence[str],
    *,
    query_tokens: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    title: str = "",
) -> Figure:
    """Returns a figure of the attention weights, a row per layer, a column per head.

    All maps share one scale from 0 to 1, on which the square root of the weight is drawn, so that
    weak attention is seen and maps can be compared. Few short texts get their tokens along the
    axes; else the text stands below.

    Args:
      weights_LNTS: attention weights: each row (last axis) sums to 1, or to 0 if all is masked.
      tokens: the S words of the keys.
      query_tokens: the T words of the queries, where they are another sequence than the keys.
      layers: the numbers of the L layers, where they are not 0 to L - 1.
      heads: the numbers of the N heads, likewise.
      title: above the figure.

    Raises:
      ValueError: weights that do not have four axes, or a number of tokens other than T or S.
    """
    weights_LNTS = np.asarray(weights_LNTS, np.float32)
    if weights_LNTS.ndim != 4:
        raise ValueError(f"weights must be [L, N, T, S], but their shape is {weights_LNTS.shape}")
    L, N, T, S = weights_LNTS.shape
    queries = tokens if query_tokens is None else query_tokens
    if (len(queries), len(tokens)) != (T, S):
        raise ValueError(
            f"{len(queries)} query and {len(tokens)} key tokens do not fit weights of shape "
            f"{weights_LNTS.shape}, which have T={T} and S={S}"
        )
    labelled = max(T, S) <= MOST_LABELS and L * N <= MOST_LABELLED_MAPS
    size = max(1.7, 0.16 * max(T, S)) if labelled else max(0.9, min(2.0, 9.0 / max(L, N)))
    fig = figure(size * N + (1.9 if labelled else 1.4), size * L + (1.5 if labelled else 1.3))
    grid = fig.subplots(L, N, squeeze=False)
    for layer in range(L):
        for head in range(N):
            axes = grid[layer, head]
            image = axes.imshow(
                weights_LNTS[layer, head],
                cmap="Blues",
                norm=PowerNorm(0.5, vmin=0, vmax=1),
                aspect="auto",
                interpolation="nearest",
            )
            axes.spines[:].set_color(FAINT)
            axes.spines[:].set_linewidth(0.6)
            axes.tick_params(length=0)
            axes.set_xticks([])
            axes.set_yticks([])
            if layer == 0:
                axes.set_title(f"head {heads[head] if heads else head}", fontsize=9, color=INK)
            if head == 0:
                axes.set_ylabel(
                    f"layer {layers[layer] if layers else layer}", fontsize=9, color=INK
                )
    if labelled:
        font = {"fontsize": 7, "family": "monospace", "color": INK}  # keeps blanks and brackets
        for axes in grid[-1]:
            axes.set_xticks(range(S), [_visible(token) for token in tokens], rotation=90, **font)
        for axes in grid[:, 0]:
            axes.set_yticks(range(T), [_visible(token) for token in queries], **font)
        fig.supxlabel("key: attended to", fontsize=9, color=INK)
    else:
        # WordPiece's tokens do not hold the blanks between words.
        between = "" if any(" " in token for token in tokens) else " "
        words = textwrap.shorten(
            between.join(map(_visible, tokens)),
            width=int(fig.get_figwidth() * 11),
            placeholder=" …",
        )
        fig.supxlabel(f"key: attended to   {words}", fontsize=8, color=INK)
    fig.supylabel("query", fontsize=9, color=INK)
    bar = fig.colorbar(
        image, ax=grid, ticks=[0, 0.05, 0.2, 0.5, 1], shrink=min(1.0, 2 / L), aspect=14, pad=0.01
    )
    bar.set_label("attention weight", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    if title:
        fig.suptitle(title, fontsize=11, fontweight="bold", color=INK, x=0.01, ha="left")
    return fig


def _visible(token: str) -> str:
    """The token with blanks and line ends to be seen, and no mathematics in its dollars."""
    seen = token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
    return seen.replace("$", r"\$")
