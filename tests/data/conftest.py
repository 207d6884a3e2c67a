"""Small corpora, and a cache of each test's own."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from jaxformer import data

WORDS = (
    *("the", "a", "red", "blue", "old", "new", "house", "ship", "sea", "wind"),
    *("sings", "falls", "runs", "to", "from", "under", "over"),
)


def prose(seed: int, words: int) -> str:
    """Returns text of so many words, in lines."""
    chosen = random.Random(seed).choices(WORDS, k=words)
    return "\n".join(" ".join(chosen[i : i + 9]) for i in range(0, words, 9))


def write_rows(path, rows):
    """Writes rows as JSON lines; returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def assert_same(a, b):
    """Two batches have the same arrays."""
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def every_row(split):
    """All rows of a split, in order, as they are without a shift."""
    rows = np.arange(split.num_rows)
    return split.layout.gather(rows, np.zeros_like(rows))


def words_tokenizer(path, specials, single=None, pair=None, words=WORDS):
    """Saves a tokenizer.json whose tokens are specials, then words; with a template if given."""
    import tokenizers

    vocabulary = {name: i for i, name in enumerate([*specials, *words])}
    unknown = next(name for name in ("[UNK]", "<unk>") if name in specials)
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=unknown))
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(list(specials))
    if single:
        library.post_processor = tokenizers.processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[(n, vocabulary[n]) for n in specials]
        )
    library.save(str(path))
    return path


@pytest.fixture
def folder(tmp_path):
    """Twenty text files in two folders: texts/left/00.txt … texts/right/19.txt."""
    for i in range(20):
        file = tmp_path / "texts" / ("left" if i < 10 else "right") / f"{i:02}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"file {i}\n" + prose(i, 60 + 7 * i))
    return tmp_path / "texts"


@pytest.fixture
def load(tmp_path):
    """`load(source, **config)`, with small rows, a cache of the test's own, and no words."""

    def load(source, say=lambda line: None, embed=None, **config):
        config = {"seq_len": 32, "batch_size": 4, "cache_dir": str(tmp_path / "cache"), **config}
        return data.load(data.Config(source=str(source), **config), say=say, embed=embed)

    return load


@pytest.fixture
def text_file(tmp_path):
    """One text file of 400 words."""
    file = tmp_path / "one.txt"
    file.write_text(prose(0, 400))
    return file
