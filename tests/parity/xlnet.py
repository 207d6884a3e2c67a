"""Rows of the ledger: XLNet, its two streams, its text and its heads of tasks."""

from __future__ import annotations

from typing import Any

from tests.parity.decoding import by_forward, by_second_stream
from tests.parity.published import V, case

_XLNET = dict(vocab_size=V, d_model=24, n_layer=3, n_head=4, d_inner=40)
_SHAPES: dict[str, dict[str, Any]] = {
    "small": {},
    "relu, two layers": dict(ff_activation="relu", n_layer=2),
    "distances clamped, two heads": dict(clamp_len=4, n_head=2, d_head=12),
}


XLNET = [
    *(
        case("XLNet", name, "XLNetLMHeadModel", "XLNetConfig", {**_XLNET, **changes},
             kind="masked", token_types=2, writes="by hand",
             following=by_second_stream,
             quirk="in its generate tokens see later ones: text is asked for by masks of the order")
        for name, changes in _SHAPES.items()
    ),
    *(
        case("XLNet", f"one direction, {name}", "XLNetLMHeadModel", "XLNetConfig",
             {**_XLNET, "attn_type": "uni", **changes}, kind="masked", token_types=2, apart=True,
             writes="by hand", following=by_forward,
             quirk="fails on an attention mask: asked row by row")
        for name, changes in (("small", {}), ("untied", dict(tie_word_embeddings=False)))
    ),
    *(
        case("XLNet", f"two streams, {name}", "XLNetLMHeadModel", "XLNetConfig",
             {**_XLNET, **changes}, kind="streams", token_types=2, decodes=False,
             lengths=(3, 7, 12), quirk="who may see no one sees all: none such is asked")
        for name, changes in _SHAPES.items()
    ),
    *(
        case("XLNet", f"classifier of 3, {pooling}", "XLNetForSequenceClassification",
             "XLNetConfig", {**_XLNET, "num_labels": 3, "summary_type": pooling}, kind="pooled",
             token_types=2, decodes=False, apart=True,
             quirk="reads padding as well: asked row by row")
        for pooling in ("last", "first", "mean")
    ),
    *(
        case("XLNet", name, f"XLNetFor{head}", "XLNetConfig", {**_XLNET, **changes}, kind=kind,
             token_types=2, decodes=False)
        for name, head, kind, changes in (
            ("tags of 7", "TokenClassification", "tagger", dict(num_labels=7)),
            ("start and end of an answer", "QuestionAnsweringSimple", "span", {}),
        )
    ),
]  # fmt: skip
