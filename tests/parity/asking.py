"""One question put to a published model and to ours, and their answers by the same names.

An answer is a dict: "tokens" [B, T, ...], of each token; "rows" [B, C], of a row; "predictions"
[B, P, V], of what a target or a second stream asks for. B batch, T time, P predictions, C classes,
V vocabulary.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.models import electra

if TYPE_CHECKING:
    from tests.parity.case import Case

Answer = dict[str, Any]
TARGET_LENGTH = 9  # of "seq2seq"
PREDICTIONS = 2  # of "streams": the last tokens of a random order


def question(case: Case, vocab_size: int, *, left: bool = False, seed: int = 0) -> dict[str, Any]:
    """Returns rows of several lengths, as numpy arrays: tokens, mask, types, and what a kind adds.

    A "seq2seq" asks for the logits of "target" [B, 9]; "streams" for those of PREDICTIONS tokens in
    a random order, which "perm_mask" and "target_mapping" tell.
    """
    B, T = len(case.lengths), max(case.lengths)
    given: dict[str, Any] = {
        "tokens": np.full((B, T), case.pad_id, np.int32), "mask": np.zeros((B, T), np.int32),
        "types": np.zeros((B, T), np.int32),
    }  # fmt: skip
    if case.kind == "seq2seq":
        target = np.random.default_rng(9).integers(3, vocab_size, (B, TARGET_LENGTH))
        given["target"] = target.astype(np.int32)
    if case.kind == "streams":
        given["perm_mask"] = np.zeros((B, T, T), np.float32)
        given["target_mapping"] = np.zeros((B, PREDICTIONS, T), np.float32)
    for row, length in enumerate(case.lengths):
        where = slice(T - length, T) if left else slice(0, length)
        rng = np.random.default_rng([seed, row])
        given["tokens"][row, where] = rng.integers(3, vocab_size, length)
        given["mask"][row, where] = 1
        given["types"][row, where] = rng.integers(0, max(case.token_types, 1), length)
        if case.kind == "streams":
            order = rng.permutation(length)
            place = np.argsort(order)
            # Who is known from the start is seen by all; the others by those who come after them.
            late = (place >= length - PREDICTIONS) & (place >= place[:, None])
            given["perm_mask"][row, where, where] = late
            given["target_mapping"][row, :, where] = np.eye(length)[order[-PREDICTIONS:]]
    return given


def row_alone(given: dict[str, Any], row: int) -> dict[str, Any]:
    """Returns one row of a question, without its padding on the right."""
    length = int(given["mask"][row].sum())
    one = {name: x[row : row + 1] for name, x in given.items()}
    for name in ("tokens", "mask", "types"):
        one[name] = one[name][:, :length]
    if "perm_mask" in one:
        one["perm_mask"] = one["perm_mask"][:, :length, :length]
        one["target_mapping"] = one["target_mapping"][:, :, :length]
    return one


def ask_theirs(case: Case, model: Any, given: dict[str, Any]) -> Answer:
    """Returns the published model's logits, torch tensors that remember their gradient."""
    import torch

    if not case.apart:
        return _ask(case, model, given)
    rows = [_ask(case, model, row_alone(given, row)) for row in range(len(case.lengths))]
    T = max(case.lengths)

    def whole(name: str, x: Any) -> Any:
        if name != "tokens":
            return x
        return torch.cat([x, x.new_zeros(1, T - x.shape[1], *x.shape[2:])], dim=1)

    return {name: torch.cat([whole(name, row[name]) for row in rows]) for name in rows[0]}


def _ask(case: Case, model: Any, given: dict[str, Any]) -> Answer:
    import torch

    asked: dict[str, Any] = {"input_ids": torch.tensor(given["tokens"]).long()}
    if not case.apart:
        asked["attention_mask"] = torch.tensor(given["mask"])
    if case.token_types:
        asked["token_type_ids"] = torch.tensor(given["types"]).long()
    if case.kind == "seq2seq":
        asked["decoder_input_ids"] = torch.tensor(given["target"]).long()
    if case.kind == "streams":
        asked |= {name: torch.tensor(given[name]) for name in ("perm_mask", "target_mapping")}
    out = model(**asked)
    if case.kind == "pretraining":
        order = out.sop_logits if "sop_logits" in out else out.seq_relationship_logits
        return {"tokens": out.prediction_logits, "rows": order}
    if case.kind == "span":
        return {"tokens": torch.stack([out.start_logits, out.end_logits], dim=-1)}
    return {{"pooled": "rows", "seq2seq": "predictions", "streams": "predictions"}.get(
        case.kind, "tokens"): out.logits}  # fmt: skip


def ask_ours(case: Case, model: Any, params: Any, given: dict[str, Any]) -> Answer:
    """Returns our logits."""
    tokens, mask = jnp.asarray(given["tokens"]), jnp.asarray(given["mask"])
    if case.kind == "seq2seq":
        batch = {"source": tokens, "source_segment_ids": mask, "tokens": given["target"]}
        return _answer(case, model, params, batch)
    batch = {"tokens": tokens, "segment_ids": mask}
    if case.token_types:
        batch["token_types"] = jnp.asarray(given["types"])
    if case.kind == "streams":
        batch |= {name: jnp.asarray(given[name]) for name in ("perm_mask", "target_mapping")}
    return _answer(case, model, params, batch)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _answer(case: Case, model: Any, params: Any, batch: dict[str, jax.Array]) -> Answer:
    hidden = model.apply(params, batch).hidden_BTD
    if case.kind == "pooled":
        return {"rows": model.classify(params, hidden, batch)}
    if case.kind == "replaced":
        return {"tokens": electra.discriminate(params, hidden, model.config.activation)}
    if case.kind in ("tagger", "span"):
        return {"tokens": model.readout(params, hidden, case.kind)}
    logits = model.logits(params, hidden)
    if case.kind == "pretraining":
        pooled = model.pool(params, hidden, batch)
        return {"tokens": logits, "rows": model.readout(params, pooled, "next_sentence")}
    return {"predictions" if case.kind in ("seq2seq", "streams") else "tokens": logits}


def real(given: dict[str, Any], answer: Answer) -> Answer:
    """Returns what of an answer means something: a token's logits where it is no padding."""
    return {name: x[given["mask"] > 0] if name == "tokens" else x for name, x in answer.items()}
