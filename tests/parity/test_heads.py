"""Heads that are read and written: which class has them, what is refused, what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jaxformer import interop
from jaxformer.errors import UserError
from jaxformer.models import encoder, xlnet
from tests.interop.conftest import equal, random_params

_XLNET: dict[str, Any] = dict(vocab_size=23, width=8, num_layers=2, num_heads=2)
_ALBERT: dict[str, Any] = dict(
    _XLNET, embedding_size=4, share_layers=True, num_token_types=2, activation="gelu_tanh",
    masked_activation="gelu_tanh",
)  # fmt: skip


def make(model_type: str, **keys: Any) -> Any:
    if model_type == "xlnet":
        return xlnet.make(xlnet.Config(**{**_XLNET, **keys}))
    return encoder.make(encoder.Config(**{**_ALBERT, **keys}))


def written(folder: Path, model_type: str, **keys: Any) -> tuple[str, list[str], Any]:
    """Writes random weights, and returns (the class they are for, what was said, the weights)."""
    model, said = make(model_type, **keys), []
    params = random_params(model)
    interop.save_huggingface(folder, model, params, model_type=model_type, say=said.append)
    config = json.loads((folder / "config.json").read_text())
    return config["architectures"][0], said, params


NONE: dict[str, Any] = {"masked_head": False}
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("xlnet", {}, "XLNetLMHeadModel", ""),
    ("xlnet", {"pooling": "mean"}, "XLNetLMHeadModel", ""),
    ("xlnet", NONE, "XLNetModel", ""),
    ("xlnet", NONE | {"num_classes": 3, "pooling": "mean"}, "XLNetForSequenceClassification", ""),
    ("xlnet", {"num_classes": 3, "span_head": True}, "XLNetForSequenceClassification",
     "head, span"),
    ("xlnet", {"num_tags": 3}, "XLNetForTokenClassification", "head"),
    ("xlnet", {"span_head": True, "tie_embeddings": False}, "XLNetForQuestionAnsweringSimple",
     "head"),
    ("albert", {"next_sentence_head": True}, "AlbertForPreTraining", ""),
    ("albert", {"num_classes": 3, "next_sentence_head": True}, "AlbertForSequenceClassification",
     "masked_head, next_sentence"),
    ("albert", {"num_tags": 3, "span_head": True}, "AlbertForTokenClassification",
     "masked_head, span"),
    ("albert", NONE | {"next_sentence_head": True}, "AlbertModel", "next_sentence, pooler"),
    ("albert", NONE | {"pooler": True}, "AlbertModel", ""),
    ("albert", {"pooler": True}, "AlbertForMaskedLM", "pooler"),
]  # fmt: skip


@pytest.mark.parametrize("model_type,keys,architecture,left_out", CASES)
def test_the_class_that_has_the_heads(model_type, keys, architecture, left_out, tmp_path):
    """And what it holds is read back, bit for bit; what it cannot hold is named."""
    cls, said, params = written(tmp_path / "out", model_type, **keys)
    assert cls == architecture
    words = f"left out: {left_out}; {cls} has no such parameters"
    assert said == ([words] if left_out else [])
    _, again = interop.load_huggingface(tmp_path / "out")
    assert set(params) - set(again) == {name for name in left_out.split(", ") if name}
    equal(again, {name: params[name] for name in again})


@pytest.mark.parametrize("key,value,words", [
    ("summary_type", "cls_index", "summary_type is 'cls_index'; supported: 'last' or 'first'"),
    ("summary_activation", None, "summary_activation is None; supported: 'tanh'"),
    ("summary_use_proj", False, "summary_use_proj is False; supported: True"),
    ("summary_proj_to_labels", True, "summary_proj_to_labels is True; supported: False"),
])  # fmt: skip
def test_a_summary_of_another_kind_is_refused_where_it_is_read(key, value, words, tmp_path):
    for name, keys in (("classes", {**NONE, "num_classes": 3}), ("words", {})):
        written(tmp_path / name, "xlnet", **keys)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    interop.load_huggingface(tmp_path / "words")
    with pytest.raises(UserError, match=words):
        interop.load_huggingface(tmp_path / "classes")


def test_an_xlnet_without_the_head_says_so():
    model = make("xlnet", masked_head=False, span_head=True)
    with pytest.raises(UserError, match="no head for hidden tokens"):
        model.unembed(random_params(model), None)


def test_heads_of_a_checkpoint_come_and_go(tmp_path):
    """A classifier begun from the pre-trained model, as one fine-tunes it."""
    import jax

    _, _, params = written(tmp_path / "in", "xlnet")
    model, loaded = interop.load_huggingface(
        tmp_path / "in", masked_head=False, num_classes=3, key=jax.random.key(0)
    )
    assert set(loaded) == {"embed", "layers", "pooler", "classifier"}
    equal(loaded["layers"], params["layers"])
    assert model.config.num_classes == 3
