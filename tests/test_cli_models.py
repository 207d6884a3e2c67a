"""Commands on a published folder: what they write is what transformers gives for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxformer import cli, data, interop
from jaxformer.evaluate import embed, likelihood
from jaxformer.models import decoder, encoder
from tests.interop.conftest import random_params

TEXT = "".join(f"line {i} of a small text, {i * i} words long.\n" for i in range(200))
PROMPTS = ("line 7 of", "a small text", "words words words long", "of")
SIZES = dict(num_layers=2, width=32, num_heads=4, max_length=64)


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)


def make_tokenizer(folder: Path, begin: str = "", end: str = "") -> None:
    """Writes a tokenizer.json of 300 tokens, whose texts stand between `begin` and `end`."""
    import tokenizers

    names = ["<pad>", "<unk>", "<s>", "</s>"]
    library = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=names, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator([TEXT], trainer)
    if begin or end:
        around = [(name, names.index(name)) for name in (begin, end) if name]
        more = {"pair": f"{begin} $A {end} $B:1 {end}:1".strip()} if end else {}
        library.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{begin} $A {end}".strip(), special_tokens=around, **more
        )
    library.save(str(folder / "tokenizer.json"))


def make_decoder(folder: Path, **keys) -> tuple:
    model = decoder.make(decoder.Config(**{"vocab_size": 300, **SIZES, **keys}))
    params = random_params(model)
    interop.save_huggingface(folder, model, params)
    make_tokenizer(folder)
    return model, params, data.load_tokenizer(folder)


def make_encoder(folder: Path) -> tuple:
    keys = dict(num_token_types=2, pooler=True, masked_head=False)
    model = encoder.make(encoder.Config(**{"vocab_size": 300, **SIZES, **keys}))
    params = random_params(model)
    interop.save_huggingface(folder, model, params, model_type="bert")
    make_tokenizer(folder, "<s>", "</s>")
    return model, params, data.load_tokenizer(folder)


def run(*words: str) -> None:
    assert cli.main(list(words)) == 0


def test_embed(capsys):
    bert = make_encoder(Path("bert"))
    lines = TEXT.splitlines()
    run("embed", "--from=bert", "--text=text.txt", "--out=plain.npy")
    said = capsys.readouterr().out
    assert said.startswith("plain.npy: 200 sentences, float32 [200, 32], in ")
    assert said.endswith(" sentences/s\n") and said.count("\n") == 1
    found = np.load("plain.npy")
    np.testing.assert_array_equal(found, embed.embed_texts(*bert, lines))
    run("embed", "--from=bert", "--text=text.txt", "--out=unit.npy", "--pooling=pooler",
        "--normalize", "--max_length=8", "--batch_size=16")  # fmt: skip
    want = embed.embed_texts(
        *bert, lines, pooling="pooler", normalise=True, max_length=8, batch_size=16
    )
    np.testing.assert_array_equal(np.load("unit.npy"), want)


def test_perplexity(capsys):
    gpt2 = make_decoder(Path("gpt2"))
    run("perplexity", "--from=gpt2", "--text=text.txt", "--stride=16", "--max_length=48")
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("text.txt, in ")
    said = dict(map(str.split, lines))
    want = likelihood.perplexity(*gpt2, TEXT, 16, max_length=48)
    assert list(said) == ["loss", "perplexity", "word_perplexity", "bits_per_byte", "tokens",
                          "words", "bytes", "unknown"]  # fmt: skip
    assert said["loss"] == f"{want['loss']:.4f}"
    assert said["bits_per_byte"] == f"{want['bits_per_byte']:.4f}"
    assert said["bytes"] == f"{len(TEXT):,}" and said["words"] == f"{len(TEXT.split()):,}"


def transformers_model(kind: str, folder: Path, **keys):
    """Makes a random checkpoint of a published class; returns it."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=300, **keys)
    names = {"GPT2": "GPT2LMHeadModel", "Llama": "LlamaForCausalLM", "Marian": "MarianMTModel"}
    model = getattr(transformers, names.get(kind, f"{kind}ForConditionalGeneration"))(config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:  # Marian's sines are frozen
            wide = 0.2 if parameter.ndim > 1 else 0.1
            parameter.data += wide * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


_T5 = dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0,
           pad_token_id=0, eos_token_id=3)  # fmt: skip
_BART = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
             decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
             max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3,
             decoder_start_token_id=3, forced_eos_token_id=None)  # fmt: skip
_MARIAN = {**_BART, "decoder_start_token_id": 0, "scale_embedding": True}
_GPT2 = dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=3, eos_token_id=3)
_LLAMA = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
              num_key_value_heads=2, max_position_embeddings=64, bos_token_id=2,
              eos_token_id=[3, 77])  # fmt: skip
KINDS = {
    "GPT2": (_GPT2, ("", ""), {}),
    "Llama": (_LLAMA, ("<s>", ""), {}),
    "T5": (_T5, ("", "</s>"), {}),
    "T5 beams": (_T5, ("", "</s>"), {"num_beams": 4, "length_penalty": 0.6}),
    "Bart": (_BART, ("<s>", "</s>"), {}),
    "Bart beams": (  # as checkpoints for summaries ask
        _BART,
        ("<s>", "</s>"),
        {
            "num_beams": 4,
            "length_penalty": 2.0,
            "early_stopping": True,
            "no_repeat_ngram_size": 3,
            "min_length": 6,
            "forced_bos_token_id": 2,
        },
    ),
    "Marian": (_MARIAN, ("", "</s>"), {"bad_words_ids": [[0]]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_generate_writes_what_transformers_does(kind, capsys):
    """Greedy and by beams, with the ids around a prompt, and what generation_config.json says."""
    keys, around, said = KINDS[kind]
    model = transformers_model(kind.split()[0], Path("model"), **keys)
    make_tokenizer(Path("model"), *around)
    path = Path("model/generation_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **said}))

    import torch
    import transformers

    library = transformers.PreTrainedTokenizerFast(tokenizer_file="model/tokenizer.json")
    settings = transformers.GenerationConfig.from_pretrained("model")
    want = {}
    for prompt in PROMPTS:
        ids = library(prompt, return_tensors="pt")["input_ids"]
        wrote = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, generation_config=settings
        )[0]
        wrote = wrote if kind.split()[0] in ("T5", "Bart", "Marian") else wrote[ids.shape[1] :]
        want[prompt] = library.decode(wrote, skip_special_tokens=True)
    words = ["--from=model", "--config.generate.max_new_tokens=12"]
    run("generate", *words, *(f"--prompt={prompt}" for prompt in PROMPTS))
    found = capsys.readouterr().out
    between = "\n" if kind.split()[0] in ("T5", "Bart", "Marian") else ""
    for prompt in PROMPTS:
        assert f"--- {prompt!r}\n{prompt}{between}{want[prompt]}\n" in found
    run("generate", *words, f"--prompt={PROMPTS[0]}")
    assert capsys.readouterr().out == f"{PROMPTS[0]}{between}{want[PROMPTS[0]]}\n"
    assert len(set(want.values())) > 1  # or the test would see nothing


def test_what_a_folder_says_of_writing(tmp_path, capsys):
    """generation_config.json decides, then the command line; a temperature asks to draw."""
    from jaxformer.train import load

    make_decoder(Path("gpt2"))
    config = Path("gpt2/config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_beams": 2}))
    loaded = load.of_folder(Path("gpt2"), [])
    assert (loaded.generate.num_beams, loaded.generate.temperature) == (2, 0.0)
    said = {"num_beams": 3, "do_sample": True, "top_p": 0.9, "eos_token_id": [3, 5],
            "bad_words_ids": [[7], [8, 9]], "early_stopping": "never"}  # fmt: skip
    Path("gpt2/generation_config.json").write_text(json.dumps(said))
    loaded = load.of_folder(Path("gpt2"), ["generate.max_new_tokens=5"])
    assert (loaded.generate.num_beams, loaded.generate.max_new_tokens) == (3, 5)
    assert (loaded.generate.top_p, loaded.generate.stop) == (0.9, (3, 5))
    assert loaded.suppress == (7,) and loaded.generate.early_stopping is False
    loaded = load.of_folder(Path("gpt2"), ["generate.temperature=0.5"])
    assert (loaded.generate.num_beams, loaded.generate.temperature) == (1, 0.5)


def test_attention_of_a_folder(capsys):
    make_encoder(Path("bert"))
    run("visualize", "attention", "--from=bert", "--text=line 7", "--out=maps.png")
    assert Path("maps.png").read_bytes()[:4] == b"\x89PNG"
