"""What RETRO reads: the nearest neighbours of each chunk of text in a database, found once.

Borgeaud et al. (2022), sections 2.2, 2.3 and 2.6. The database is the training split: each document
cut into chunks of m tokens. A neighbour is a chunk and its continuation, 2 m tokens, no further
than its document goes; none is of a document that the chunk it is found for has a token of.

Shapes: C chunks of a stream, P chunks of the database, K neighbours, r = 2 m tokens of a neighbour,
D width of a vector, Q queries of one block, N tokens of a stream, J documents.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.data import cache, sources, tfidf
from jaxformer.data.config import Config
from jaxformer.data.packing import pieces
from jaxformer.errors import UserError

TOGETHER = 8192  # chunks that are compared with their neighbours at one time
FORMAT = 1  # a change in how neighbours are found must change this
Embed = Callable[[Sequence[str]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """The neighbours of each chunk of a split's stream.

    Attributes:
      chunk: m.
      tokens_N: the database's stream.
      start_P, stop_P: of each chunk of the database: where it begins, and its document ends.
      found_CK: which chunks of the database, the nearest first; -1 for none.
      overlap_C: see `overlap`.
    """

    chunk: int
    tokens_N: np.ndarray
    start_P: np.ndarray
    stop_P: np.ndarray
    found_CK: np.ndarray
    overlap_C: np.ndarray

    def tokens(self, chunks: np.ndarray) -> np.ndarray:
        """Returns the neighbours [..., K, r] int32 of chunks, -1 where there is no token."""
        inside = (chunks >= 0) & (chunks < len(self.found_CK))
        found = np.where(inside[..., None], self.found_CK[np.where(inside, chunks, 0)], -1)
        index = self.start_P[found][..., None] + np.arange(2 * self.chunk)
        there = (found[..., None] >= 0) & (index < self.stop_P[found][..., None])
        tokens = self.tokens_N[np.where(there, index, 0)].astype(np.int32)  # -1 fits in these
        return np.where(there, tokens, np.int32(-1))


def find(
    config: Config,
    fingerprint: str,
    corpora: dict[str, cache.Corpus],
    tokenizer: Any,
    embed: Embed | None,
    say: Callable[[str], None],
) -> tuple[str, dict[str, Neighbours]]:
    """Returns (a fingerprint, the neighbours of each split), from the cache if it has them.

    Args:
      config: data.retrieval and what belongs to it.
      fingerprint: of the tokens.
      corpora: the splits.
      tokenizer: for chunks as text.
      embed: texts to vectors [n, D] by the frozen encoder that data.retrieval names.
      say: told what takes time.

    Raises:
      UserError: no neighbour for any chunk of the training split; no encoder.
    """
    train, m = corpora["train"], config.retrieval_chunk
    start_P, _, _, document_P = pieces(train.offsets_J, m)
    stop_P = train.offsets_J[document_P + 1]
    how = [config.retrieval] if config.retrieval == "tfidf" else _folder_key(config.retrieval)
    key = cache.digest(["neighbours", FORMAT, fingerprint, how, m, config.neighbours])
    file = config.cache_folder() / f"neighbours-{key}.npz"
    found = _read(file)
    if found is None:
        found = _search(config, corpora, start_P, stop_P, document_P, tokenizer, embed, say)
        _write(file, found)
    if (found["train"] < 0).all():
        raise UserError(
            f"data.retrieval={config.retrieval!r} finds no neighbours: all chunks of the training "
            "split are of one document, and a chunk's own is left out; give a data.source of "
            "several files, or set data.snippet_lines"
        )
    made = {
        name: Neighbours(m, train.tokens_N, start_P, stop_P, found[name], found[f"{name}_overlap"])
        for name in corpora
    }
    return key, made


def chunks_of(tokens_N: np.ndarray, chunk: int) -> np.ndarray:
    """Returns a stream as chunks [C, m] int32; the last is filled up with -1."""
    tokens = np.asarray(tokens_N).astype(np.int32)
    return np.pad(tokens, (0, -len(tokens) % chunk), constant_values=-1).reshape(-1, chunk)


def overlap(chunks_Cm: np.ndarray, neighbours_CKr: np.ndarray) -> np.ndarray:
    """Returns the part of each chunk that a neighbour has word for word: [C] float32, 0 to 1.

    The longest common run of tokens over the chunk's length, and the greatest of its neighbours'
    (section 2.6), whose continuations count too. -1 is no token.
    """
    C, K, r = neighbours_CKr.shape
    longest_C = np.zeros(C, np.int32)
    run_CKr = np.zeros((C, K, r), np.int32)  # the common run that ends here
    for column_C in chunks_Cm.T:
        equal_CKr = (neighbours_CKr == column_C[:, None, None]) & (neighbours_CKr >= 0)
        before_CKr = np.pad(run_CKr[:, :, :-1], ((0, 0), (0, 0), (1, 0)))
        run_CKr = np.where(equal_CKr, before_CKr + 1, 0)
        longest_C = np.maximum(longest_C, run_CKr.max(axis=(1, 2), initial=0))
    length_C = np.maximum(1, (chunks_Cm >= 0).sum(axis=1))
    return (longest_C / length_C).astype(np.float32)


def _search(config, corpora, start_P, stop_P, document_P, tokenizer, embed, say):
    """Returns {split: found_CK, split_overlap: overlap_C} as numpy arrays."""
    from jaxformer.data.nearest import nearest

    began, m, train = time.monotonic(), config.retrieval_chunk, corpora["train"]
    index_Pm = start_P[:, None] + np.arange(m)
    there_Pm = index_Pm < stop_P[:, None]
    stream_N = np.asarray(train.tokens_N)
    database_Pm = stream_N[np.where(there_Pm, index_Pm, 0)].astype(np.int32)
    database_Pm[~there_Pm] = -1
    say(f"looking for the neighbours of chunks among {len(start_P):,} ({config.retrieval}) …")
    vectors = _vectors(config, database_Pm, tokenizer, embed)
    keys_PD, found = vectors(database_Pm), {}
    for name, corpus in corpora.items():
        chunks_Cm = chunks_of(corpus.tokens_N, m)
        low_C = high_C = None
        if name == "train":
            first_C = np.arange(len(chunks_Cm)) * m
            last_C = np.minimum(first_C + m, len(stream_N)) - 1
            # What documents a chunk touches, and which chunks of the database these are.
            document_2C = [np.searchsorted(train.offsets_J, x, "right") - 1
                           for x in (first_C, last_C)]  # fmt: skip
            low_C = np.searchsorted(document_P, document_2C[0], "left")
            high_C = np.searchsorted(document_P, document_2C[1], "right")
        found[name] = nearest(vectors(chunks_Cm), keys_PD, config.neighbours, low_C, high_C)
        known = Neighbours(m, stream_N, start_P, stop_P, found[name], np.zeros(0))
        parts = []
        for c in range(0, len(chunks_Cm), TOGETHER):
            some = chunks_Cm[c : c + TOGETHER]
            parts.append(overlap(some, known.tokens(c + np.arange(len(some)))))
        found[f"{name}_overlap"] = np.concatenate(parts)
    leaks = found["validation_overlap"]
    say(
        f"found {config.neighbours} neighbours of each chunk in {time.monotonic() - began:.1f} s; "
        f"{(leaks >= 0.5).mean():.1%} of the validation split's chunks share half of their tokens "
        "or more, in one run, with a neighbour; kept in the cache"
    )
    return found


def _vectors(config, database_Pm, tokenizer, embed) -> Callable[[np.ndarray], np.ndarray]:
    if config.retrieval == "tfidf":
        weight_F = tfidf.fit(database_Pm)
        return lambda tokens_Cm: tfidf.embed(tokens_Cm, weight_F)
    if embed is None:
        raise UserError(
            f"data.retrieval={config.retrieval!r} names an encoder, which only training and "
            "evaluation bring; here set data.retrieval='tfidf'"
        )

    def of_texts(tokens_Cm: np.ndarray) -> np.ndarray:
        vectors_CD = embed([tokenizer.decode(row[row >= 0]) for row in tokens_Cm])
        length_C1 = np.linalg.norm(vectors_CD, axis=1, keepdims=True)
        return (vectors_CD / np.where(length_C1 > 0, length_C1, 1.0)).astype(np.float32)

    return of_texts


def _folder_key(retrieval: str) -> list:
    """Returns what changes when a published encoder changes."""
    folder = Path(retrieval).expanduser()
    if not (folder / "config.json").is_file():
        raise UserError(
            f"data.retrieval={retrieval!r} is neither 'tfidf' nor the folder of a published encoder"
        )
    files = tuple(sorted(file for file in folder.iterdir() if file.is_file()))
    return sources.Source("", "encoder", files, tuple(f.name for f in files)).content_key()


def _read(file: Path) -> dict[str, np.ndarray] | None:
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), \
         np.load(file) as arrays:  # fmt: skip
        return dict(arrays)  # a zip file: its checksums are compared
    return None


def _write(file: Path, arrays: dict[str, np.ndarray]) -> None:
    unfinished = file.with_name(f"{file.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(unfinished, "wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        os.replace(unfinished, file)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}; set data.cache_dir") from None
    finally:
        unfinished.unlink(missing_ok=True)
