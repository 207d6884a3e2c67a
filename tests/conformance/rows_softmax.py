"""Softmax over all keys: the backends of `ops.attention`, and what only changes its logits."""

from __future__ import annotations

import functools
from typing import Any

from jaxformer.ops.attention import attention
from tests.conformance import references
from tests.conformance.variant import Variant


def softmax(q: Any, k: Any, v: Any, *, mask: Any, offset: Any, **options: Any) -> Any:
    return attention(q, k, v, mask=mask, **options)


def backend(name: str) -> Any:
    return functools.partial(softmax, backend=name)


ROWS = [
    Variant("dense", backend("dense"), references.plain),
    Variant(
        "chunked", backend("chunked"), references.plain,
        static={"query_chunk": 8, "key_chunk": 6}, linear=True,
        sizes={"query_chunk": (1, 9), "key_chunk": (1, 9)},
        long={"query_chunk": 64, "key_chunk": 48},
    ),
    Variant("blocked (auto)", backend("auto"), references.plain),
    Variant("soft-cap", backend("auto"), references.plain, static={"soft_cap": 2.0}),
]  # fmt: skip
