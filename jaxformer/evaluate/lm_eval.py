"""An adapter that runs our causal models in EleutherAI's lm-eval (the extra `eval`).

from lm_eval import simple_evaluate
from jaxformer.evaluate.lm_eval import JaxformerLM

lm = JaxformerLM(model, params, tokenizer)
simple_evaluate(lm, tasks=["lambada_openai"])["results"]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jaxformer import generate
from jaxformer.errors import UserError, suggest
from jaxformer.evaluate.likelihood import loglikelihoods, prefix_ids, start_id
from jaxformer.evaluate.prompting import generate_texts

try:
    from lm_eval.api.model import TemplateLM
except ImportError:
    raise UserError(
        'jaxformer.evaluate.lm_eval needs lm-eval; run pip install "jaxformer[eval]"'
    ) from None

# What lm-eval's tasks call the number of new tokens, the first that is given counts.
_MOST = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN = (*_MOST, "until", "do_sample", "temperature", "top_k", "top_p", "min_p")


class JaxformerLM(TemplateLM):
    """A causal model as lm-eval asks for it.

    Args:
      model, params: a Model of a causal family.
      tokenizer: its tokenizer, with BOS or EOS.
      batch_size: most rows that run at once.
      max_length: most tokens that the model reads at once; 0: `model.config.max_length`.
      max_new_tokens: where a task does not say.
      add_bos: whether texts begin with BOS; None: as the tokenizer's file says.
      seed: of what is drawn.
    """

    backend = "causal"

    def __init__(
        self,
        model: Any,
        params: Any,
        tokenizer: Any,
        *,
        batch_size: int = 32,
        max_length: int = 0,
        max_new_tokens: int = 256,
        add_bos: bool | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if start_id(tokenizer) < 0:
            raise UserError(
                "lm-eval scores texts from their first token on, but the tokenizer has no BOS or "
                "EOS to begin after; train with a tokenizer that has one"
            )
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self.batch_size, self.max_length = batch_size, max_length or model.config.max_length
        self.max_new_tokens, self.add_bos, self.seed = max_new_tokens, add_bos, seed

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text: EOS, else BOS."""
        return self.tokenizer.eos_id if self.tokenizer.eos_id >= 0 else self.tokenizer.bos_id

    @property
    def prefix_token_id(self) -> int:
        """The token that a text without context begins after: BOS, else EOS."""
        return start_id(self.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's cache of requests."""
        return f"jaxformer-{type(self.tokenizer).__name__}-{self.tokenizer.vocab_size}"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Returns the ids of a text, after BOS if this model wants it and the caller lets it."""
        begins = self.add_bos if add_special_tokens is None else add_special_tokens
        return prefix_ids(self.tokenizer, begins) + self.tokenizer.encode(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        # A context of blanks only has no tokens: they went to its continuation.
        pairs = [(context or [self.prefix_token_id], ids) for _, context, ids in requests]
        results = self._score(pairs)
        for (texts, _, _), result in zip(requests, results, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """Returns the log-probability of each request's whole text, after BOS or EOS."""
        texts = [request.args[0] for request in requests]
        pairs = [([self.prefix_token_id], self.tokenizer.encode(text)) for text in texts]
        totals = [total for total, _ in self._score(pairs)]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Returns each request's continuation, up to the first of its stops."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        texts = [""] * len(requests)
        for options, indices in groups.items():
            written = generate_texts(
                self.model, self.params, self.tokenizer,
                [requests[index].args[0] for index in indices],
                self._config(json.loads(options)), batch_size=self.batch_size,
                add_bos=self.add_bos, truncate=True,
            )  # fmt: skip
            for index, (text,) in zip(indices, written, strict=True):
                texts[index] = text
                self.cache_hook.add_partial("generate_until", requests[index].args, text)
        return texts

    def _score(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        return loglikelihoods(
            self.model, self.params, pairs, self.batch_size, max_length=self.max_length
        )

    def _config(self, options: dict[str, Any]) -> generate.Config:
        """Makes our config of a task's `generation_kwargs`."""
        for name in options:
            if name not in _KNOWN:
                raise UserError(
                    f"generation_kwargs.{name} is not supported{suggest(name, _KNOWN)}; valid: "
                    f"{', '.join(_KNOWN)}"
                )
        most = next((options[name] for name in _MOST if options.get(name)), self.max_new_tokens)
        until = options.get("until") or []
        temperature = float(options.get("temperature") or 0.0)
        sampled = options.get("do_sample", temperature > 0)
        return generate.Config(
            max_new_tokens=int(most),
            # As transformers does: without a temperature, samples are drawn at 1.
            temperature=(temperature or 1.0) if sampled else 0.0,
            top_k=max(0, int(options.get("top_k") or 0)),
            top_p=float(options.get("top_p") or 1.0),
            min_p=float(options.get("min_p") or 0.0),
            seed=self.seed,
            stop=tuple(s for s in ([until] if isinstance(until, str) else until) if s),
        )
