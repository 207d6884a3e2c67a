"""RETRO's data: neighbours are the true nearest, none of the chunk's own document, and stay."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from jaxformer.data import neighbours, tfidf
from jaxformer.data.nearest import nearest
from jaxformer.errors import UserError
from tests.data.conftest import assert_same, every_row, prose

M, K = 8, 3
OPTIONS = dict(retrieval="tfidf", retrieval_chunk=M, neighbours=K)


@pytest.fixture
def files(folder):
    return folder / "*" / "*.txt"


def test_neighbours_are_the_true_nearest_of_other_documents(load, files):
    dataset = load(files, tokenizer="bpe:300", **OPTIONS)
    found = dataset.train.layout.found
    stream = np.asarray(found.tokens_N).astype(np.int64)
    ends = np.unique(found.stop_P)
    starts = np.concatenate([[0], ends[:-1]])
    # The database by its definition: every document on its own, cut into chunks.
    database = [(j, p, min(p + M, stop)) for j, (start, stop) in enumerate(zip(starts, ends))
                for p in range(start, stop, M)]  # fmt: skip
    assert [p for _, p, _ in database] == found.start_P.tolist()
    assert [ends[j] for j, _, _ in database] == found.stop_P.tolist()
    padded = np.full((len(database), M), -1, np.int32)
    for row, (_, p, stop) in zip(padded, database):
        row[: stop - p] = stream[p:stop]
    weight = tfidf.fit(padded)
    keys = tfidf.embed(padded, weight).astype(np.float64)
    chunks = neighbours.chunks_of(stream, M)
    queries = tfidf.embed(chunks, weight).astype(np.float64)
    owner = np.array([j for j, _, _ in database])
    for c in range(len(chunks)):
        inside = [np.searchsorted(ends, i, "right") for i in range(c * M, (c + 1) * M)
                  if i < len(stream)]  # fmt: skip
        score = keys @ queries[c]
        score[np.isin(owner, inside)] = -np.inf
        got = found.found_CK[c]
        assert len(set(got.tolist())) == K and not np.isin(owner[got], inside).any()
        np.testing.assert_allclose(score[got], np.sort(score)[::-1][:K], atol=1e-6)


def test_a_neighbour_is_its_chunk_and_what_follows_in_its_document(load, files):
    dataset = load(files, tokenizer="byte", **OPTIONS)
    for split in (dataset.train, dataset.validation):
        batch, found = every_row(split), split.layout.found
        R, T = batch["tokens"].shape
        assert batch["neighbours"].shape == (R, T // M, K, 2 * M)
        assert batch["neighbours"].dtype == np.int32
        starts = split.layout.windows.starts(np.arange(R), np.zeros(R, int))
        assert not (starts % M).any()
        for row in (0, R - 1):
            for u in range(T // M):
                number = starts[row] // M + u
                want = np.full((K, 2 * M), -1)
                if number < len(found.found_CK):
                    for one, p in zip(want, found.found_CK[number]):
                        stop = min(found.start_P[p] + 2 * M, found.stop_P[p])
                        one[: stop - found.start_P[p]] = found.tokens_N[found.start_P[p] : stop]
                np.testing.assert_array_equal(batch["neighbours"][row, u], want)


def test_a_chunks_neighbours_are_those_of_its_tokens_wherever_its_row_begins(load, files):
    """Rows of another epoch are moved by whole chunks."""
    train = load(files, tokenizer="byte", **OPTIONS).train
    stream = np.asarray(train.layout.found.tokens_N)
    known = train.layout.found.tokens(np.arange(len(stream) // M))
    counts = collections.Counter(stream[c * M : (c + 1) * M].tobytes() for c in range(len(known)))
    by_text = {stream[c * M : (c + 1) * M].tobytes(): c for c in range(len(stream) // M)}
    begins = set()
    for step in range(3 * train.num_batches):
        batch = train.batch(step, 7)
        for tokens, beside in zip(batch["tokens"], batch["neighbours"]):
            parts = tokens.reshape(-1, M).astype(stream.dtype)
            places = [by_text[part.tobytes()] for part in parts]
            once = [i for i, part in enumerate(parts) if counts[part.tobytes()] == 1]
            np.testing.assert_array_equal(beside[once], known[np.array(places)[once]])
            begins.update((places[i] - i) % len(parts) for i in once)
    assert len(begins) > 1  # shifts of several epochs


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_batch_depends_on_seed_and_step_alone(load, files, split, monkeypatch):
    first = getattr(load(files, **OPTIONS), split)
    # As after a restart: what was found is read, and nothing is searched.
    monkeypatch.setattr(neighbours, "_search", None)
    again = getattr(load(files, **OPTIONS), split)
    for step in (0, first.num_batches - 1):
        whole = first.batch(step, 5)
        assert_same(whole, again.batch(step, 5))
        parts = [first.batch(step, 5, slice(i, i + 2)) for i in (0, 2)]
        assert_same(whole, {name: np.concatenate([p[name] for p in parts]) for name in whole})


def test_every_token_is_scored_once_though_windows_keep_to_the_grid(load, files):
    plain = every_row(load(files).validation)
    for stride in (0, M):
        rows = every_row(load(files, eval_stride=stride, **OPTIONS).validation)
        scored = rows["targets"][rows["weights"] > 0]
        np.testing.assert_array_equal(scored, plain["targets"][plain["weights"] > 0])


def test_a_damaged_file_is_made_again(load, files, tmp_path):
    want = load(files, **OPTIONS).train.batch(0)
    [file] = (tmp_path / "cache").glob("neighbours-*.npz")
    content = file.read_bytes()
    for damaged in (content[:100], content[:300] + b"x" + content[301:]):
        file.write_bytes(damaged)
        assert_same(load(files, **OPTIONS).train.batch(0), want)


def test_other_choices_are_other_data(load, files):
    prints = {
        load(files, **{**OPTIONS, **change}).info.fingerprint
        for change in ({}, {"neighbours": 1}, {"retrieval_chunk": 16}, {"retrieval": ""})
    }
    assert len(prints) == 4


def test_an_encoder_of_the_callers_finds_what_it_finds_near(load, files, tmp_path):
    """Texts of one first letter are near each other, whatever they hold."""
    home = tmp_path / "encoder"
    home.mkdir()
    (home / "config.json").write_text("{}")
    seen = []

    def embed(texts):
        seen.extend(texts)
        return np.array([[1.0 + (t[:1] == c) for c in "abcdefghijklmnop"] for t in texts])

    dataset = load(files, **{**OPTIONS, "retrieval": str(home)}, embed=embed)
    found = dataset.validation.layout.found
    assert set(seen) and all(isinstance(text, str) for text in seen)
    stream = bytes(np.asarray(dataset.validation.layout.windows.tokens_N).astype(np.uint8))
    first = [bytes(found.tokens_N[p : p + 1].astype(np.uint8)) for p in found.start_P]
    for c, row in enumerate(found.found_CK[:20]):
        letter = stream[c * M : c * M + 1]
        if letter in b"abcdefghijklmnop" and first.count(letter) >= K:
            assert {first[p] for p in row} == {letter}


def test_nearest_is_a_sort_of_all_products():
    random = np.random.default_rng(0)
    queries, keys = (random.normal(size=(n, 5)).astype(np.float32) for n in (700, 900))
    low, high = random.integers(0, 450, 700), random.integers(450, 900, 700)
    product = queries.astype(np.float64) @ keys.T.astype(np.float64)
    np.testing.assert_array_equal(nearest(queries, keys, 4), np.argsort(-product, axis=1)[:, :4])
    inside = (np.arange(900) >= low[:, None]) & (np.arange(900) < high[:, None])
    left = np.where(inside, -np.inf, product)
    got = nearest(queries, keys, 4, low, high)
    np.testing.assert_array_equal(got, np.argsort(-left, axis=1, kind="stable")[:, :4])
    assert nearest(queries[:1], keys[:2], 4).tolist()[0][2:] == [-1, -1]
    none = nearest(queries[:1], keys, 4, np.array([0]), np.array([898]))
    assert sorted(none[0].tolist()) == [-1, -1, 898, 899]


def test_nearest_over_several_blocks(monkeypatch):
    from jaxformer.data import nearest as module

    monkeypatch.setattr(module, "KEYS", 64)
    random = np.random.default_rng(1)
    queries, keys = (random.normal(size=(n, 5)).astype(np.float32) for n in (3, 200))
    want = np.argsort(-(queries.astype(np.float64) @ keys.T.astype(np.float64)), axis=1)[:, :6]
    np.testing.assert_array_equal(nearest(queries, keys, 6), want)


def test_overlap_is_the_longest_common_run():
    """Section 2.6: the longest common substring of tokens over the chunk's length."""
    random = np.random.default_rng(2)
    chunks, beside = random.integers(0, 3, (20, M)), random.integers(0, 3, (20, K, 2 * M))
    chunks[3, 5:], beside[4, 1] = -1, -1
    got = neighbours.overlap(chunks, beside)
    for chunk, near, part in zip(chunks, beside, got):
        chunk, texts = chunk[chunk >= 0].tolist(), [n[n >= 0].tolist() for n in near]
        runs = [length for text in texts for length in range(len(chunk) + 1)
                for a in range(len(chunk) - length + 1) for b in range(len(text) - length + 1)
                if chunk[a : a + length] == text[b : b + length]]  # fmt: skip
        assert part == pytest.approx(max(runs) / len(chunk))


def test_evaluation_leaves_out_chunks_that_overlap(load, files):
    whole = load(files, **OPTIONS).validation
    overlap = whole.layout.found.overlap_C
    assert 0 < (overlap > 0.6).sum() < len(overlap)
    part = load(files, retrieval_overlap=0.6, **OPTIONS).validation
    a, b = every_row(whole), every_row(part)
    starts = whole.layout.windows.starts(np.arange(whole.num_rows), np.zeros(whole.num_rows, int))
    for row, start in enumerate(starts):
        for t in range(a["tokens"].shape[1]):
            chunk = min((start + t + 1) // M, len(overlap) - 1)
            kept = a["weights"][row, t] if overlap[chunk] <= 0.6 else 0
            assert b["weights"][row, t] == kept


def test_tfidf_finds_the_rare_word_and_not_the_common_one():
    chunks = np.array([[1, 2, 3, 9], [1, 2, 4, 5], [1, 2, 6, 7], [1, 2, 8, -1]], np.int32)
    weight = tfidf.fit(chunks)
    keys = tfidf.embed(chunks, weight)
    np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1, atol=1e-6)
    query = tfidf.embed(np.array([[9, 1, 2, 1], [1, 2, 1, 2], [30, 31, 32, 33]], np.int32), weight)
    assert (query[0] @ keys.T).argmax() == 0
    assert not query[2].any()  # no word of the database


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"retrieval_chunk": 7}, "does not divide data.seq_len=32; try --config.data.seq_len=35"),
        ({"eval_stride": 4}, "does not divide data.eval_stride=4"),
        ({"layout": "packed"}, "data.retrieval needs data.layout='windows'"),
        ({"neighbours": 0}, "data.neighbours must be 1 or more"),
        ({"retrieval_overlap": 1.5}, "a part of a chunk, 0 to 1"),
        ({"retrieval": "no/such"}, "neither 'tfidf' nor the folder"),
    ],
)
def test_mistakes_are_one_line(load, files, change, words):
    with pytest.raises(UserError, match=words) as caught:
        load(files, **{**OPTIONS, **change})
    assert "\n" not in str(caught.value)


def test_a_database_of_one_document_is_one_line(load, tmp_path):
    file = tmp_path / "one.txt"
    file.write_text(prose(0, 400))
    with pytest.raises(UserError, match="finds no neighbours: .* set data.snippet_lines") as caught:
        load(file, **OPTIONS)
    assert "\n" not in str(caught.value)
    assert load(file, snippet_lines=5, **OPTIONS).train.batch(0)["neighbours"].max() > 0
