"""How a row of the ledger names a published class and what is odd about its configuration."""

from __future__ import annotations

from typing import Any

from tests.parity.case import Case, quiet, randomise
from tests.parity.decoding import by_forward

V = 71
# Names that most configurations of transformers share; odd sizes, so that no axis is mistaken.
SMALL = dict(
    vocab_size=V, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40
)


def case(
    family: str, name: str, cls: str, config: str, given: dict[str, Any], *, untie: bool = False,
    **more: Any,
) -> Case:  # fmt: skip
    """Returns the case of transformers' class `cls` with its `config` made of `given`.

    A causal one's logits by cache are compared with those of its whole forward pass.

    `untie` gives the head a table of its own, where the class ties it whatever the config says.
    """

    def make() -> Any:
        import torch
        import transformers

        torch.manual_seed(0)
        with quiet():
            made = getattr(transformers, config)(**{"pad_token_id": 0, **given})
            made._attn_implementation = "eager"
            model = getattr(transformers, cls)(made)
            if untie:
                table = model.lm_head.weight.detach().clone()
                model.lm_head.weight = type(model.lm_head.weight)(table)
            return randomise(model)

    if more.get("kind", "causal") == "causal":
        more = {"following": by_forward, **more}
    return Case(family, name, make, **more)


def several(
    family: str, cls: str, config: str, variants: dict[str, Any], **more: Any
) -> list[Case]:
    """Returns one case for each variant: its name and what it changes of SMALL."""
    return [
        case(family, name, cls, config, {**SMALL, **changes}, **more)
        for name, changes in variants.items()
    ]
