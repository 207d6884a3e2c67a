"""Which published family a model of ours is, and what is told where there is none."""

from __future__ import annotations

import pytest

from jaxformer.errors import UserError
from jaxformer.interop import families
from jaxformer.models import encoder

_BERT = dict(
    vocab_size=32, num_layers=1, width=16, num_heads=2, num_token_types=2, masked_head=False
)


@pytest.mark.parametrize("head", [
    {"pooler": True}, {"next_sentence_head": True}, {"num_classes": 3},
])  # fmt: skip
def test_a_pooler_that_no_family_has_is_told(head):
    """Every head that reads through the pooler makes its activation count."""
    assert families.of_model(encoder.Config(**_BERT, **head)).model_type == "bert"
    with pytest.raises(UserError, match="no published family"):
        families.of_model(encoder.Config(**_BERT, **head, pooler_activation="relu"))


def test_the_activation_of_no_pooler_does_not_count():
    config = encoder.Config(**{**_BERT, "masked_head": True}, pooler_activation="relu")
    assert families.of_model(config).model_type == "bert"
