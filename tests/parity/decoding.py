"""Text by cache, prompts of several lengths in one batch, against the published model.

Greedy tokens show that the whole of it works, but random weights soon say the same word again and
again. So the logits are compared too, of each token of a text that is given, fed one by one.

B batch, T prompt, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.generate import Config, generate
from tests.parity import asking

if TYPE_CHECKING:
    from tests.parity.case import Case

NEW_TOKENS = 10


def by_forward(model: Any, ids: list[int], first: int) -> Any:
    """Returns a decoder's logits of what comes after ids[: first], ids[: first + 1], ... and ids.

    Shape [len(ids) - first + 1, V].
    """
    import torch

    return model(input_ids=torch.tensor([ids])).logits[0, first - 1 :]


def by_second_stream(model: Any, ids: list[int], first: int) -> Any:
    """The same of XLNet: it writes as the model of one order, left to right."""
    import torch

    T = len(ids) + 1
    perm_mask = torch.triu(torch.ones(1, T, T))  # 1: may not see itself, nor who comes later
    tokens = torch.tensor([[*ids, 0]])  # no one sees the last, which is only asked for
    mapping = torch.eye(T)[None, first:]
    return model(tokens, perm_mask=perm_mask, target_mapping=mapping).logits[0]


def greedy(case: Case, theirs: Any, model: Any, params: Any) -> str:
    """Returns "n/all": how many greedy tokens are the published model's."""
    import torch

    given = asking.question(case, model.config.vocab_size, left=case.kind == "causal", seed=3)
    prompts = [row[m > 0].tolist() for row, m in zip(given["tokens"], given["mask"], strict=True)]

    def write(tokens: Any, mask: Any) -> list[list[int]]:
        start = 1 if case.kind == "seq2seq" else tokens.shape[1]
        return theirs.generate(
            tokens.long(), attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False,
            num_beams=1, **({"pad_token_id": case.pad_id} if case.pad_id >= 0 else {}),
        )[:, start:].tolist()  # fmt: skip

    with torch.no_grad():
        if case.writes == "batch":
            wanted = write(torch.tensor(given["tokens"]), torch.tensor(given["mask"]))
        elif case.writes == "rows":
            rows = [torch.tensor([prompt]) for prompt in prompts]
            wanted = [write(row, torch.ones_like(row))[0] for row in rows]
        else:
            wanted = [_by_hand(case, theirs, prompt) for prompt in prompts]
    settings = Config(max_new_tokens=NEW_TOKENS, temperature=0.0)
    eos = [case.eos_id] if case.eos_id >= 0 else []
    ours = generate(model, params, prompts, settings, eos_ids=eos)
    same = total = 0
    for ids, expected in zip(ours, wanted, strict=True):
        if case.eos_id in expected:
            expected = expected[: expected.index(case.eos_id)]
        total += max(len(expected), len(ids))
        same += sum(a == b for a, b in zip(ids, expected, strict=False))
    return f"{same}/{total}"


def _by_hand(case: Case, theirs: Any, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(NEW_TOKENS):
        ids.append(int(case.following(theirs, ids, len(ids))[-1].argmax()))
    return ids[len(prompt) :]


def by_cache(case: Case, theirs: Any, model: Any, params: Any) -> tuple[Any, Any]:
    """Returns (ours, theirs): logits [B, NEW_TOKENS + 1, V] of a given text; of a target's tokens.

    Ours read the prompts at once, padded on the left, and then a token at a time by cache; theirs
    everything at once, each row by itself and without a cache.
    """
    import torch

    V = model.config.vocab_size
    given = asking.question(case, V, left=case.kind != "seq2seq", seed=3)
    tokens_BT, mask_BT = given["tokens"], given["mask"]
    B = len(tokens_BT)

    @jax.jit
    def step(params, batch, cache):
        out = model.apply(params, batch, cache=cache)
        return model.logits(params, out.hidden_BTD[:, -1]), out.cache

    params = model.unstack(params)
    if case.kind == "seq2seq":
        with torch.no_grad():
            wanted = asking.ask_theirs(case, theirs, given)["predictions"]
        cache = model.init_cache(B, asking.TARGET_LENGTH)
        source = {"source": jnp.asarray(tokens_BT), "source_segment_ids": jnp.asarray(mask_BT)}
        cache, logits, more = model.encode(params, source, cache), [], given["target"]
        first_B = np.zeros(B, np.int32)
    else:
        more = np.random.default_rng(8).integers(3, V, (B, NEW_TOKENS)).astype(np.int32)
        rows = [[*row[m > 0].tolist(), *new.tolist()]
                for row, m, new in zip(tokens_BT, mask_BT, more, strict=True)]  # fmt: skip
        first_B = mask_BT.sum(axis=1, dtype=np.int32)
        with torch.no_grad():
            wanted = [case.following(theirs, *row) for row in zip(rows, first_B, strict=True)]
        cache = model.init_cache(B, tokens_BT.shape[1] + NEW_TOKENS)
        positions_BT = np.maximum(np.cumsum(mask_BT, axis=1, dtype=np.int32) - 1, 0)
        batch = {"tokens": tokens_BT, "segment_ids": mask_BT, "positions": positions_BT}
        first, cache = step(params, batch, cache)
        logits = [first]
    for i, token_B in enumerate(more.T):
        batch = {"tokens": token_B[:, None], "positions": (first_B + i)[:, None]}
        following, cache = step(params, batch, cache)
        logits.append(following)
    return jnp.stack(logits, axis=1), torch.stack(list(wanted)).numpy()
