"""Published checkpoints through our tree and back: equal logits, equal weights, no key to spare."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import interop
from tests.interop.conftest import D, F, L, N, P, V, equal

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

_HF: dict[str, Any] = dict(
    vocab_size=V, hidden_size=D, num_hidden_layers=L, num_attention_heads=N, intermediate_size=F,
    max_position_embeddings=P,
)  # fmt: skip
_GPT2: dict[str, Any] = dict(vocab_size=V, n_embd=D, n_layer=L, n_head=N, n_positions=P,
                             bos_token_id=1, eos_token_id=2)  # fmt: skip
_LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=8)  # fmt: skip
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "gpt2_untied": ("GPT2LMHeadModel", "GPT2Config",
                    {**_GPT2, "tie_word_embeddings": False, "n_inner": F}),
    "gpt2_body": ("GPT2Model", "GPT2Config", {**_GPT2, "activation_function": "relu"}),
    "bert_body": ("BertModel", "BertConfig", _HF),
    "bert_pretraining": ("BertForPreTraining", "BertConfig", _HF),
    "bert_masked": ("BertForMaskedLM", "BertConfig", {**_HF, "hidden_act": "gelu_new"}),
    "bert_untied": ("BertForMaskedLM", "BertConfig", {**_HF, "tie_word_embeddings": False}),
    "bert_next": ("BertForNextSentencePrediction", "BertConfig", _HF),
    "bert_classes": ("BertForSequenceClassification", "BertConfig", {**_HF, "num_labels": 3}),
    "bert_tags": ("BertForTokenClassification", "BertConfig", {**_HF, "num_labels": 5}),
    "bert_span": ("BertForQuestionAnswering", "BertConfig", _HF),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_HF, "num_key_value_heads": 2}),
    "llama_tied": ("LlamaForCausalLM", "LlamaConfig",
                   {**_HF, "tie_word_embeddings": True, "attention_bias": True}),
    "llama_biases": ("LlamaForCausalLM", "LlamaConfig",
                     {**_HF, "head_dim": 10, "attention_bias": True, "mlp_bias": True,
                      "rope_parameters": {"rope_type": "linear", "factor": 2.0,
                                          "rope_theta": 500.0}}),
    "llama3": ("LlamaForCausalLM", "LlamaConfig",
               {**_HF, "num_key_value_heads": 1, "rope_parameters": _LLAMA3}),
    "llama_yarn": ("LlamaForCausalLM", "LlamaConfig",
                   {**_HF, "rope_parameters": {"rope_type": "yarn", "factor": 2.0,
                                               "original_max_position_embeddings": 8}}),
}  # fmt: skip


def theirs(case: str):
    """A transformers model whose every parameter is random: zeros and ones hide mistakes."""
    model_class, config_class, keys = CASES[case]
    config = getattr(transformers, config_class)(**keys)
    model = getattr(transformers, model_class)(config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def their_output(model, tokens: np.ndarray, types: np.ndarray) -> np.ndarray:
    more = {"token_type_ids": torch.tensor(types)} if "Bert" in type(model).__name__ else {}
    with torch.no_grad():
        out = model(torch.tensor(tokens), **more)
    names = ("prediction_logits", "logits", "start_logits", "last_hidden_state")
    return next(getattr(out, n) for n in names if getattr(out, n, None) is not None).numpy()


def our_output(case: str, model, params, tokens: np.ndarray, types: np.ndarray) -> np.ndarray:
    batch = {"tokens": jnp.asarray(tokens), "token_types": jnp.asarray(types)}
    hidden = model.apply(params, batch).hidden_BTD
    if case in ("bert_body", "gpt2_body"):
        return hidden
    if case == "bert_next":
        return model.readout(params, model.pool(params, hidden, batch), "next_sentence")
    if case == "bert_classes":
        return model.classify(params, hidden, batch)
    if case == "bert_tags":
        return model.readout(params, hidden, "tagger")
    if case == "bert_span":
        return model.readout(params, hidden, "span")[..., 0]
    return model.logits(params, hidden)


@pytest.mark.parametrize(
    "case,shard",
    [*((case, None) for case in CASES), *((c, "10KB") for c in ("gpt2", "bert_masked", "llama3"))],
)
def test_in_and_out(case, shard, tmp_path):
    """Read what transformers wrote, write it again, and let transformers read that."""
    reference = theirs(case)
    sharding = {"max_shard_size": shard} if shard else {}
    reference.save_pretrained(tmp_path / "in", **sharding)
    assert (tmp_path / "in" / "model.safetensors.index.json").exists() == bool(shard)
    model, params = interop.load_huggingface(tmp_path / "in")

    rng = np.random.default_rng(0)
    tokens, types = rng.integers(0, V, (2, 11)), rng.integers(0, 2, (2, 11))
    expected = their_output(reference, tokens, types)
    ours = np.asarray(our_output(case, model, params, tokens, types))
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= 2e-5 * np.abs(expected).max()

    largest = 10_000 if shard else 10**9
    interop.save_huggingface(tmp_path / "out", model, params, max_shard_size=largest)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == bool(shard)
    model_class = type(reference)
    if case == "gpt2_body":  # written with the head that ours has: tied, so it costs nothing
        model_class = transformers.GPT2LMHeadModel
    again, info = model_class.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert np.array_equal(their_output(again, tokens, types), expected) or case == "gpt2_body"
    weights = reference.state_dict()
    for name, weight in again.state_dict().items():
        name = name.removeprefix("transformer.") if case == "gpt2_body" else name
        if case == "bert_untied" and name == "cls.predictions.bias":
            continue  # no model reads it: the decoder has a bias of its own
        if case == "gpt2_body" and name == "lm_head.weight":
            continue  # the embedding
        assert torch.equal(weight, weights[name]), name
    equal(interop.load_huggingface(tmp_path / "out")[1], params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("case", ["gpt2", "llama"])
def test_other_types_of_weights(case, dtype, tmp_path):
    """They become float32 exactly as torch makes them; a half type can be kept, and written."""
    reference = theirs(case).to(getattr(torch, dtype))
    reference.save_pretrained(tmp_path / "in")
    model, params = interop.load_huggingface(tmp_path / "in")
    table = {"gpt2": "transformer.wte.weight", "llama": "model.embed_tokens.weight"}[case]
    assert params["embed"]["tokens"].dtype == jnp.float32
    expected = reference.state_dict()[table].to(torch.float32).numpy()
    np.testing.assert_array_equal(params["embed"]["tokens"], expected)
    if dtype == "float64":
        return
    model, params = interop.load_huggingface(tmp_path / "in", dtype=dtype)
    assert params["layers"]["attention"]["q"].dtype == dtype
    interop.save_huggingface(tmp_path / "out", model, params)
    again = type(reference).from_pretrained(tmp_path / "out", dtype="auto")
    for name, weight in again.state_dict().items():
        assert weight.dtype == getattr(torch, dtype)
        assert torch.equal(weight, reference.state_dict()[name]), name


def test_old_names_and_what_is_no_weight(tmp_path):
    """Names of 2019: gamma and beta, no prefix, masks and position ids among the tensors."""
    from safetensors.torch import load_file, save_file

    for case, prefix, buffers in (
        ("gpt2", "transformer.", {"h.0.attn.bias": torch.ones(1, 1, 4, 4).bool(),
                                  "h.0.attn.masked_bias": torch.tensor(-1e4)}),
        ("bert_masked", "", {"bert.embeddings.position_ids": torch.arange(P)[None],
                             "cls.predictions.decoder.bias": None,
                             "cls.predictions.decoder.weight": None}),
    ):  # fmt: skip
        folder = tmp_path / case
        theirs(case).save_pretrained(folder)
        _, params = interop.load_huggingface(folder)
        weights = load_file(folder / "model.safetensors")
        buffers = {
            name: tensor if tensor is not None else weights[
                "cls.predictions.bias" if name.endswith("bias")
                else "bert.embeddings.word_embeddings.weight"
            ].clone()
            for name, tensor in buffers.items()
        }  # fmt: skip
        old = {
            name.removeprefix(prefix)
            .replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in weights.items()
        }
        save_file({**old, **buffers}, folder / "model.safetensors")
        equal(interop.load_huggingface(folder)[1], params)
