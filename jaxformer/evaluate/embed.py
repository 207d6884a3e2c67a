"""Sentence embeddings: pooled hidden states, a file of them, and how well they tell similarity.

n texts, B batch, T time, D model width.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import UserError, one_of, reading_text
from jaxformer.evaluate import metrics
from jaxformer.evaluate.batching import batches_by_length, pad_rows
from jaxformer.evaluate.likelihood import start_id
from jaxformer.models import encoder

POOLING = ("mean", "first", "last", "pooler")
BLOCK = 4096  # lines of a file that are sorted by length and embedded together


def embed_texts(
    model: Any,
    params: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    pooling: str = "mean",
    normalise: bool = False,
    max_length: int = 0,
    batch_size: int = 32,
) -> np.ndarray:
    """Returns one vector for each text; its batch mates and the padding do not change it.

    An encoder reads [CLS] text [SEP], or what its tokenizer's file puts around a text; any other
    model reads the text alone (an empty one: BOS or EOS).
    What is longer than `max_length` loses its end.

    Args:
      model, params, tokenizer: the model that reads.
      texts: n texts.
      pooling: "mean" over real tokens, [CLS] and [SEP] too (Reimers 2019), "first" or "last" real
        token, or "pooler" (BERT's, on the first token).
      normalise: whether vectors have length 1.
      max_length: most tokens of a text; 0: `model.config.max_length`.
      batch_size: most rows that run at once.

    Returns:
      [n, D] float32.

    Raises:
      UserError: an unknown pooling, one that the model lacks, or a tokenizer of another model.
    """
    one_of(pooling, POOLING, "pooling")
    if pooling == "pooler" and (model.pool is None or "pooler" not in params):
        raise UserError('pooling="pooler": this model has none; take "mean", "first" or "last"')
    if getattr(model, "encode", None) is not None:
        raise UserError("texts are embedded by an encoder or a decoder; this model has both")
    most = max_length or model.config.max_length
    if not 1 <= most <= model.config.max_length:
        raise UserError(f"max_length is {most}; this model reads 1 to {model.config.max_length}")
    rows = _rows(model, tokenizer, texts, most)
    vectors_nD = np.zeros((len(rows), model.config.width), np.float32)
    lengths = [len(row) for row in rows]
    for length, chosen in batches_by_length(lengths, batch_size, model.config.max_length):
        tokens_BT, segment_ids_BT = pad_rows([rows[i] for i in chosen], length, batch_size)
        pooled_BD = _pooled(model, pooling, params, tokens_BT, segment_ids_BT)
        vectors_nD[chosen] = np.asarray(pooled_BD)[: len(chosen)]
    return unit(vectors_nD) if normalise else vectors_nD


def embed_file(
    model: Any,
    params: Any,
    tokenizer: Any,
    path: str | Path,
    out: str | Path,
    **options: Any,
) -> tuple[int, int]:
    """Writes the vectors of a file's lines to a .npy file; row i is line i, an empty line too.

    The vectors do not need to fit into memory, and `out` appears only when it is whole.

    Args:
      path: a text file in UTF-8, one text a line.
      out: a new .npy file, float32 [n, D].
      options: see `embed_texts`.

    Returns:
      (n, D).

    Raises:
      UserError: see `check_files` and `embed_texts`.
    """
    path, out = Path(path), Path(out)
    check_files(path, out)
    num_lines = sum(1 for _ in _lines(path))
    shape = (num_lines, model.config.width)
    unfinished = out.with_name(out.name + ".unfinished")
    try:
        with unfinished.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            block: list[str] = []
            for number, line in enumerate(_lines(path), 1):
                block.append(line)
                if len(block) == BLOCK or number == num_lines:
                    vectors_nD = embed_texts(model, params, tokenizer, block, **options)
                    file.write(vectors_nD.astype("<f4").tobytes())
                    block = []
        os.replace(unfinished, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return shape


def check_files(path: str | Path, out: str | Path) -> None:
    """Raises UserError where `embed_file` could not read `path` or would overwrite `out`."""
    path, out = Path(path), Path(out)
    if out.exists():
        raise UserError(f"{out} is there already; nothing is overwritten: give a new file")
    if not out.parent.is_dir():
        raise UserError(f"cannot write {out}: there is no folder {out.parent}")
    if next(_lines(path), None) is None:
        raise UserError(f"{path} has no lines to embed")


def similarity(
    model: Any, params: Any, tokenizer: Any, rows: Sequence[tuple[str, str, float]], **options: Any
) -> dict[str, float]:
    """Returns {"spearman", "pearson"} of the cosine of two texts and how alike people find them.

    Args:
      rows: (a, b, score); see `read_pairs` (STS, Cer 2017; SICK).
      options: see `embed_texts`.
    """
    texts = list(dict.fromkeys(text for a, b, _ in rows for text in (a, b)))
    place = {text: index for index, text in enumerate(texts)}
    vectors_nD = unit(embed_texts(model, params, tokenizer, texts, **options))
    cosines = [float(vectors_nD[place[a]] @ vectors_nD[place[b]]) for a, b, _ in rows]
    scores = [score for _, _, score in rows]
    return {**metrics.spearman(cosines, scores), **metrics.pearson(cosines, scores)}


def read_pairs(path: str | Path) -> list[tuple[str, str, float]]:
    """Reads rows of text, text, score, with tabs between them; a header line is left out.

    Raises:
      UserError: a file that cannot be read, or a line that is no such row.
    """
    rows = []
    for number, line in enumerate(_lines(Path(path)), 1):
        cells = line.split("\t")
        try:
            a, b, score = cells
            rows.append((a, b, float(score)))
        except ValueError:
            if number > 1 or len(cells) != 3:
                raise UserError(
                    f"{path} line {number}: {line[:40]!r} is not a text, a text and a number with "
                    "tabs between them"
                ) from None
    if not rows:
        raise UserError(f"{path} has no rows of text, text and score")
    return rows


def unit(vectors_nD: np.ndarray) -> np.ndarray:
    """Returns the vectors at length 1; a zero vector stays zero."""
    lengths_n1 = np.linalg.norm(vectors_nD, axis=-1, keepdims=True)
    return vectors_nD / np.maximum(lengths_n1, np.finfo(np.float32).tiny)


def _rows(model: Any, tokenizer: Any, texts: Sequence[str], most: int) -> list[list[int]]:
    if model.pool is not None:  # an encoder
        template = tokenizer.template()
        begin, end, empty = list(template.prefix), list(template.suffix), []
        if not template.length:
            raise UserError("an encoder reads [CLS] text [SEP]; its tokenizer has neither of them")
    else:
        begin, end, empty = [], [], [start_id(tokenizer)]
    room = most - len(begin) - len(end)
    if room < 1:
        raise UserError(f"max_length is {most}; [CLS] text [SEP] needs {1 + most - room} at least")
    rows = [
        begin + (ids[:room].tolist() or empty) + end for ids in tokenizer.encode_batch(list(texts))
    ]
    highest = max((max(row) for row in rows if row), default=0)
    if highest >= model.config.vocab_size:
        raise UserError(
            f"the tokenizer gives token {highest}, but the model's vocabulary has "
            f"{model.config.vocab_size}; it belongs to another model"
        )
    if [-1] in rows:
        raise UserError(f"text {rows.index([-1])} is empty, and the tokenizer has no BOS or EOS")
    return rows


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pooled(model, pooling, params, tokens_BT, segment_ids_BT):
    batch = {"tokens": tokens_BT, "segment_ids": segment_ids_BT}
    hidden_BTD = model.apply(params, batch).hidden_BTD
    valid_BT = segment_ids_BT != 0
    if pooling == "pooler":
        # Whatever the config's own classifier reads.
        reader = encoder.make(dataclasses.replace(model.config, pooling="first"))
        assert reader.pool is not None  # an encoder has one
        return reader.pool(params, hidden_BTD, batch).astype(jnp.float32)
    if pooling == "mean":
        total_BD = jnp.sum(jnp.where(valid_BT[..., None], hidden_BTD.astype(jnp.float32), 0), 1)
        return total_BD / jnp.maximum(valid_BT.sum(axis=1), 1)[:, None]
    last_B = jnp.maximum(valid_BT.sum(axis=1) - 1, 0)
    at_B = last_B if pooling == "last" else jnp.zeros_like(last_B)
    return jnp.take_along_axis(hidden_BTD, at_B[:, None, None], 1)[:, 0].astype(jnp.float32)


def _lines(path: Path) -> Iterator[str]:
    with reading_text(path), path.open(encoding="utf-8") as file:
        for line in file:
            yield line.rstrip("\n")
