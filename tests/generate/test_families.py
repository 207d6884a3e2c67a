"""Padding, batch mates and left padding never change a row: in every family, forward and writing.

A row alone, without any padding, is what all others must equal: among mates, with padding on the
right, on the left and on both sides, whatever stands in it. B rows, T time, M new tokens.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.generate import Config, generate
from jaxformer.generate.prompts import left_pad
from jaxformer.models import electra, encoder, transformer_xl
from tests.generate.families import CASES, LONGEST, SEEDS, WRITERS, M, V

SLOW = pytest.mark.slow
pytestmark = SLOW  # a minute and more on one core


@pytest.fixture(scope="module", autouse=True)
def compiled_plainly():
    """Compiling takes nearly all of the time here, and without optimisation a third less."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


class Made(NamedTuple):
    model: Any
    params: Any


@functools.cache
def make(name: str) -> Made:
    """Every parameter is drawn, gains and shifts of norms too: zeros and ones hide mistakes."""
    family, keys = CASES[name]
    model = family.make(family.Config(**keys))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(SEEDS.get(name, 0))

    def draw(path, x):
        gain = path[-1].key == "scale" and keys.get("norm") != "rms_norm_plus_one"
        return jnp.asarray(gain + 0.4 * rng.normal(size=x.shape), jnp.float32)

    return Made(model, jax.tree_util.tree_map_with_path(draw, shapes))


def rows_of(lengths: tuple[int, ...], seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, V, n).tolist() for n in lengths]


def close(got: Any, want: Any, bound: float = 1e-5) -> None:
    """Equal up to `bound` of the largest value; NaN equals nothing."""
    difference, size = np.abs(np.asarray(got) - np.asarray(want)).max(), np.abs(want).max()
    assert difference <= bound * size, f"{difference / size:.1e} of the largest value"


# --- forward


def laid_out(rows: list[list[int]], width: int, side: str, seed: int) -> tuple[Any, ...]:
    """Returns tokens_BT and segment_ids_BT, anything standing in the padding; and each start."""
    shares = {"right": 0.0, "left": 1.0, "both": 0.5}
    tokens_BT = np.random.default_rng(seed).integers(0, V, (len(rows), width))
    segment_ids_BT = np.zeros_like(tokens_BT)
    starts = [int((width - len(row)) * shares[side]) for row in rows]
    for i, (row, start) in enumerate(zip(rows, starts)):
        tokens_BT[i, start : start + len(row)] = row
        segment_ids_BT[i, start : start + len(row)] = 1
    return jnp.asarray(tokens_BT), jnp.asarray(segment_ids_BT), starts


def forward(made: Made, batch: dict) -> tuple[dict, dict]:
    """Returns what a model says of each token, [B, T, ...], and of each row, [B, ...]."""
    return jax.tree.map(np.asarray, _forward(*made, batch))  # slices of jax's arrays compile


@functools.partial(jax.jit, static_argnums=0)
def _forward(model, params, batch):
    hidden_BTD = model.apply(params, batch).hidden_BTD
    of_tokens, of_rows = {"hidden": hidden_BTD}, {}
    if isinstance(model.config, electra.Config):
        maker = encoder.make(electra.generator_config(model.config))
        made, judge = electra.split(params)
        of_tokens["generator"] = maker.logits(made, maker.apply(made, batch).hidden_BTD)
        of_tokens["replaced"] = electra.discriminate(judge, hidden_BTD)
    else:
        of_tokens["logits"] = model.logits(params, hidden_BTD)
    if getattr(model.config, "num_classes", 0):
        of_rows["classes"] = model.classify(params, hidden_BTD, batch)
    return of_tokens, of_rows


LENGTHS = (5, 11, 5, 1)
ALONE = (0, 2)  # of one length, so that one program serves both


@pytest.mark.parametrize("name", CASES)
def test_forward(name):
    """Rows of 5, 11, 5 and 1 tokens; in a pair of texts the source too, of other lengths."""
    made = make(name)
    is_pair = made.model.encode is not None
    rows, sources = rows_of(LENGTHS, 0), rows_of((7, 3, 7, 12), 1)

    def run(rows, sources, side, seed):
        """Returns each row's own part of the results."""
        tokens, segment_ids, starts = laid_out(rows, 13, side, seed)
        batch = {"tokens": tokens, "segment_ids": segment_ids}
        if is_pair:
            # On the other side than the target's, so that no two kinds of padding go together.
            other = {"right": "left", "left": "right"}.get(side, side)
            batch["source"], batch["source_segment_ids"], _ = laid_out(sources, 14, other, seed + 9)
        of_tokens, of_rows = forward(made, batch)
        return [
            {name: x[i, start : start + len(row)] for name, x in of_tokens.items()}
            | {name: x[i] for name, x in of_rows.items()}
            for i, (row, start) in enumerate(zip(rows, starts))
        ]

    want = run(rows, sources, "right", 0)
    for i in ALONE:
        batch = {"tokens": jnp.asarray([rows[i]])}
        if is_pair:
            batch["source"] = jnp.asarray([sources[i]])
        of_tokens, of_rows = forward(made, batch)
        jax.tree.map(close, want[i], {k: x[0] for k, x in (of_tokens | of_rows).items()})
    for side, seed in (("right", 1), ("left", 2), ("left", 3), ("both", 4)):
        jax.tree.map(close, run(rows, sources, side, seed), want)
    # Other mates: longer, shorter, other words.
    mates, their_sources = rows_of((5, 2, 5, 13), 2), rows_of((7, 14, 7, 1), 3)
    for i in ALONE:
        mates[i], their_sources[i] = rows[i], sources[i]
    for side in ("right", "left"):
        among = run(mates, their_sources, side, 5)
        for i in ALONE:
            jax.tree.map(close, among[i], want[i])


def test_xlnet_in_two_streams():
    """Training's forward pass: an order of the tokens, and what is predicted of some of them."""
    model, params = make("xlnet")
    rows, width = rows_of(LENGTHS, 0), 13
    rng = np.random.default_rng(3)
    orders = [rng.permutation(len(row)) for row in rows]

    def run(batch):
        return np.asarray(jitted(params, batch))

    jitted = jax.jit(lambda params, batch: model.apply(params, batch).hidden_BTD)

    def marks(i, start, width):
        """Who may not see whom [T, T], and which two tokens are predicted [2, T]."""
        perm, mapping = np.zeros((width, width), np.float32), np.zeros((2, width), np.float32)
        end = start + len(rows[i])
        perm[start:end, start:end] = orders[i][:, None] <= orders[i]
        mapping[[0, 1], [start, end - 1]] = 1
        return perm, mapping

    def among(side, seed):
        tokens, segment_ids, starts = laid_out(rows, width, side, seed)
        perm, mapping = zip(*(marks(i, start, width) for i, start in enumerate(starts)))
        return run({
            "tokens": tokens, "segment_ids": segment_ids, "perm_mask": jnp.asarray(perm),
            "target_mapping": jnp.asarray(mapping),
        })  # fmt: skip

    want = among("right", 0)
    for i in ALONE:
        perm, mapping = marks(i, 0, len(rows[i]))
        batch = {"tokens": rows[i], "perm_mask": perm, "target_mapping": mapping}
        close(want[i], run({name: jnp.asarray([x]) for name, x in batch.items()})[0])
    for side, seed in (("right", 1), ("left", 2), ("both", 3)):
        jax.tree.map(close, list(among(side, seed)), list(want))


@pytest.mark.parametrize("name", ["transformer_xl, adaptive", "xlnet"])
def test_memory_of_a_segment_with_padding_before_it(name):
    """A text in two segments, the first one padded on the left to that of its mates."""
    model, params = make(name)
    firsts, seconds = rows_of((5, 8, 5, 1), 4), rows_of((4, 4, 4, 4), 5)

    @jax.jit
    def run(first, second):
        length = 6  # of the memory: longer than a row's first segment, shorter than another's
        empty = transformer_xl.empty_memory(model.config, first["tokens"].shape[0], length)
        out = model.apply(params, first, cache=empty)
        return model.apply(params, second, cache=out.cache).hidden_BTD

    second = {"tokens": np.asarray(seconds)}
    among = []
    for seed in (0, 1):
        tokens, segment_ids, _ = laid_out(firsts, 9, "left", seed)
        among.append(np.asarray(run({"tokens": tokens, "segment_ids": segment_ids}, second)))
    close(among[1], among[0])
    for i in ALONE:
        alone = run({"tokens": jnp.asarray([firsts[i]])}, {"tokens": second["tokens"][i : i + 1]})
        close(among[0][i], alone[0])


# --- writing

PROMPTS = rows_of((5, 5, 1, LONGEST), 6)
GREEDY = Config(max_new_tokens=M, temperature=0.0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _written(model, spare, params, tokens_BT, valid_BT):
    (B, T), is_pair, params = tokens_BT.shape, model.encode is not None, model.unstack(params)
    cache = model.init_cache(B, M + spare + (1 if is_pair else T))
    batch = {"tokens": tokens_BT, "segment_ids": valid_BT}
    if is_pair:
        source = {"source": tokens_BT, "source_segment_ids": valid_BT}
        cache = model.encode(params, source, cache)
        batch = {"tokens": jnp.full((B, 1), model.config.start_id)}

    def read(cache, batch):
        out = model.apply(params, batch, cache=cache)
        logits_BV = model.logits(params, out.hidden_BTD[:, -1])
        return (out.cache, jnp.argmax(logits_BV, axis=-1)), logits_BV

    state, first_BV = read(cache, batch)
    _, rest_MBV = jax.lax.scan(
        lambda state, _: read(state[0], {"tokens": state[1][:, None]}), state, length=M - 1
    )
    return jnp.concatenate([first_BV[:, None], rest_MBV.swapaxes(0, 1)], axis=1)


def written(made: Made, tokens_BT: Any, valid_BT: Any, spare: int = 0) -> Any:
    """Writes greedily after padded prompts, by hand; returns the tokens and the logits [B, M, V].

    Without positions: those that the model counts are the ones of `generate`. The cache has room
    for `spare` more tokens than are written.
    """
    arrays = (np.asarray(x, np.int32) for x in (tokens_BT, valid_BT))
    logits_BMV = np.asarray(_written(made.model, spare, made.params, *arrays))
    return logits_BMV.argmax(axis=-1).tolist(), logits_BMV


@pytest.mark.parametrize("name", WRITERS)
def test_greedy_writing(name):
    """Left-padded rows against each by itself, without padding: tokens, and every step's logits."""
    made = make(name)
    tokens_BT, valid_BT = left_pad(PROMPTS)
    rows, logits_BMV = written(made, tokens_BT, valid_BT, spare=7)
    # A row that says one thing for ever would hide what changes it.
    assert len({tuple(row) for row in rows}) == len(rows)
    assert all(len(set(row)) > 2 for row in rows), rows
    for i in (0, 1):  # of one length
        (alone,), logits_1MV = written(made, [PROMPTS[i]], [[1] * len(PROMPTS[i])])
        assert alone == rows[i]
        close(logits_1MV[0], logits_BMV[i])
    anything = np.random.default_rng(9).integers(0, V, tokens_BT.shape)
    noisy_BT = np.where(valid_BT != 0, tokens_BT, anything)
    again, others_BMV = written(made, noisy_BT, valid_BT, spare=7)
    assert again == rows
    jax.tree.map(close, list(others_BMV), list(logits_BMV))


CHIEF = ("llama", "t5", "gru bahdanau", "xlnet", "transformer_xl")  # one of each family


@pytest.mark.parametrize(
    "name", [name if name in CHIEF else pytest.param(name, marks=SLOW) for name in WRITERS]
)
def test_generate(name):
    """Greedily, as by hand; and of each family alone too, where the bucket is a shorter one."""
    made = make(name)
    want, _ = written(made, *left_pad(PROMPTS), spare=7)
    assert generate(*made, PROMPTS, GREEDY) == want
    if name in CHIEF:
        assert [generate(*made, [prompt], GREEDY)[0] for prompt in PROMPTS[:3]] == want[:3]
        others = [PROMPTS[3][::-1], *PROMPTS[:3][::-1]]
        assert generate(*made, others, GREEDY)[1:] == want[:3][::-1]


@SLOW
@pytest.mark.parametrize("name,stop,penalty", [
    ("llama", 5, 0.6), ("t5", 24, 0.6), ("lstm luong", 9, 0.6),
    ("lstm luong", 18, 2.0),  # a row that has ended could find a longer and better text
])  # fmt: skip
def test_beam_search(name, stop, penalty):
    """Rows that end at their own times, each at the text it finds alone."""
    made = make(name)
    settings = Config(max_new_tokens=M, num_beams=3, length_penalty=penalty, no_repeat_ngram=3)
    together = generate(*made, PROMPTS, settings, eos_ids=[stop])
    assert len({len(row) for row in together}) == len(PROMPTS)
    for prompt, row in zip(PROMPTS, together):
        assert generate(*made, [prompt], settings, eos_ids=[stop]) == [row]


@SLOW
@pytest.mark.parametrize("name", ["llama", "lstm luong"])
def test_drawn_tokens(name):
    """With one seed a row's draws are those of its place in the batch, whoever stands beside it.

    A row that moves to another place draws anew: its keys are folded with its number.
    """
    made = make(name)
    warm = Config(max_new_tokens=M, temperature=1.2, top_k=9, top_p=0.9, seed=4)
    a, b, c, mate = PROMPTS
    first = generate(*made, [a, b, c, mate], warm)
    assert generate(*made, [a], warm) == first[:1]
    others = generate(*made, [mate, b, mate[::-1], a], warm)
    assert others[1] == first[1]
    assert others[3] != first[0]  # moved
    # Mates that stop early do not stop it.
    stop = next(token for token in first[0] if token not in first[1])
    ended = generate(*made, [a, b, c, mate], warm, eos_ids=[stop])
    assert ended[0] == first[0][: first[0].index(stop)]
    assert ended[1] == first[1]
