"""`evaluate --from`: a published checkpoint on an experiment's data, as transformers answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxformer import cli
from tests.test_cli_models import _MARIAN, make_encoder, make_tokenizer, place, run

__all__ = ["place"]  # the fixture: every test has a folder of its own

_BERT = dict(
    vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=64, max_position_embeddings=64,
)  # fmt: skip


def experiment(objective: str, **data: Any) -> str:
    """Writes an experiment whose model, training and sample are another's; returns its path."""
    words = ", ".join(f"{key}={value!r}" for key, value in {"batch_size": 8, **data}.items())
    Path("x.py").write_text(
        "from ml_collections import ConfigDict\n\n\n"
        "def get_config():\n"
        f"    return ConfigDict(dict(data=dict({words}),\n"
        '        model=dict(family="encoder", pooling="mean", width=8, compute_dtype="bfloat16"),\n'
        f'        objective=dict(name="{objective}"), generate=dict(num_beams=7),\n'
        '        train=dict(init_from="nowhere", steps=5)))\n'
    )
    return "x.py"


def published(kind: str, config: str, **keys: Any) -> Any:
    """Makes a checkpoint of a transformers class in model/, with a tokenizer; returns the model."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**keys)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained("model")
    make_tokenizer(Path("model"), "" if kind.startswith("Marian") else "<s>", "</s>")
    return model


def ask(model: Any, *texts: str) -> Any:
    """Returns the model's output for one row, its tokens' offsets, and whose text each is of."""
    import torch
    import transformers

    library = transformers.PreTrainedTokenizerFast(tokenizer_file="model/tokenizer.json")
    given = library(
        *texts, return_tensors="pt", return_offsets_mapping=True, return_token_type_ids=True
    )
    offsets, words = given.pop("offset_mapping")[0].tolist(), given.sequence_ids(0)
    with torch.no_grad():
        return model(**given), offsets, words


def evaluated(capsys, *more: str) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Returns the scores that the command prints and the rows that it writes."""
    capsys.readouterr()
    run("evaluate", "--from=model", "--config=x.py", "--out=rows.jsonl", *more)
    said = capsys.readouterr().out
    scores = dict(line.split() for line in said.splitlines() if line.startswith("  "))
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    return {name: float(value) for name, value in scores.items()}, rows


NAMES = ("good", "bad", "odd", "unseen")


@pytest.mark.slow
def test_classes_by_their_names(capsys):
    """In the checkpoint's order, whatever the order of the data, one of them not in the data; and
    only the tested file is read."""
    theirs = published(
        "BertForSequenceClassification", "BertConfig", **_BERT,
        id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)},
    )  # fmt: skip
    texts = [f"line {i * 37 % 101} of a text {i}" for i in range(40)]
    logits = [ask(theirs, text)[0].logits[0] for text in texts]
    theirs.classifier.bias.data -= sum(logits) / len(logits)  # so that every class is given
    theirs.save_pretrained("model")
    given = [NAMES[int(ask(theirs, text)[0].logits.argmax())] for text in texts]
    assert set(given) == set(NAMES)
    right = [NAMES[i % 3].upper() for i in range(40)]
    lines = [f"{label}\t{text}" for label, text in zip(right, texts)]
    Path("dev.tsv").write_text("label\ttext\n" + "\n".join(lines) + "\n")
    experiment(
        "classify", source="never.tsv", validation_source="dev.tsv", labels="field",
        layout="padded", seq_len=40,
    )  # fmt: skip
    scores, rows = evaluated(capsys)
    assert [row["input"] for row in rows] == texts
    assert [row["output"] for row in rows] == [
        name if name == "unseen" else name.upper() for name in given
    ]
    assert [row["reference"] for row in rows] == right
    same = np.mean([a.upper() == b for a, b in zip(given, right)])
    assert scores["accuracy"] == pytest.approx(same, abs=1e-4)


@pytest.mark.slow
def test_tags_by_their_names(capsys):
    names = ("O", "B-X", "I-X")
    theirs = published(
        "BertForTokenClassification", "BertConfig", **_BERT, id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )  # fmt: skip
    theirs.classifier.bias.data -= ask(theirs, " line 3 of text")[0].logits[0].mean(dim=0)
    theirs.save_pretrained("model")
    wanted, lines = [], []
    for i, tags in enumerate(np.random.default_rng(0).integers(0, 3, (20, 4))):
        words = ["line", str(i), "of", "text"]
        text = " " + " ".join(words)  # the first word is one like the others
        out, offsets, _ = ask(theirs, text)
        answer, starts = (
            out.logits[0].argmax(-1).tolist(),
            [text.index(f" {word}") for word in words],
        )
        begins = [next(t for t, (_, end) in enumerate(offsets) if end > at) for at in starts]
        wanted.append(" ".join(names[answer[at]] for at in begins))
        lines += [f"{word} {names[tag]}" for word, tag in zip(words, tags)] + [""]
    assert len(set(wanted)) > 3
    Path("dev.conll").write_text("\n".join(lines) + "\n")
    experiment("tag", validation_source="dev.conll", labels="tags", layout="padded", seq_len=32)
    scores, rows = evaluated(capsys)
    assert [row["output"] for row in rows] == wanted
    assert {"accuracy", "precision", "recall", "f1"} <= set(scores)


@pytest.mark.slow
def test_answers(capsys):
    theirs = published("BertForQuestionAnswering", "BertConfig", **_BERT)
    contexts = [f"line {i} of a small text, {i * i} words long" for i in range(12)]
    question, wanted = "a text of", []
    for context in contexts:
        out, offsets, words = ask(theirs, question, context)
        start, end = out.start_logits[0].numpy(), out.end_logits[0].numpy()
        inside = [t for t, side in enumerate(words) if side == 1]
        best = max(
            ((start[a] + end[b], a, b) for a in inside for b in inside if a <= b < a + 30),
            key=lambda found: found[0],
        )
        wanted.append(context[offsets[best[1]][0] : offsets[best[2]][1]].strip())
    assert len(set(wanted)) > 6
    paragraphs = [
        {"context": context, "qas": [{"id": str(i), "question": question,
         "answers": [{"text": "small", "answer_start": context.index("small")}]}]}
        for i, context in enumerate(contexts)
    ]  # fmt: skip
    Path("dev.json").write_text(
        json.dumps({"data": [{"title": "lines", "paragraphs": paragraphs}]})
    )
    experiment("extractive_qa", layout="qa", seq_len=64)
    scores, rows = evaluated(capsys, "--config.data.validation_source=dev.json")
    assert [row["output"].strip() for row in rows] == wanted
    assert {"exact", "f1"} <= set(scores)


@pytest.mark.slow
def test_translations_by_the_folder_s_own_search(capsys):
    pytest.importorskip("sacrebleu")
    theirs = published("MarianMTModel", "MarianConfig", vocab_size=300, **_MARIAN)
    path = Path("model/generation_config.json")
    said = {"num_beams": 3, "length_penalty": 0.6, "bad_words_ids": [[0]], "max_length": 11}
    path.write_text(json.dumps({**json.loads(path.read_text()), **said}))
    sources = [f"line {i * 11} of a text" for i in range(10)]
    import transformers

    library = transformers.PreTrainedTokenizerFast(tokenizer_file="model/tokenizer.json")
    settings = transformers.GenerationConfig.from_pretrained("model")
    wanted = []
    for source in sources:
        ids = library(source, return_tensors="pt")["input_ids"]
        written = theirs.generate(ids, attention_mask=ids * 0 + 1, generation_config=settings)[0]
        wanted.append(library.decode(written, skip_special_tokens=True).strip())
    Path("dev.en").write_text("\n".join(sources) + "\n")
    Path("dev.de").write_text("\n".join(reversed(sources)) + "\n")
    experiment("seq2seq", layout="seq2seq", source_len=32, seq_len=32)
    scores, rows = evaluated(
        capsys, "--config.data.validation_source=dev.en",
        "--config.data.validation_target_source=dev.de",
    )  # fmt: skip
    assert [row["output"] for row in rows] == wanted and len(set(wanted)) > 3
    assert {"bleu", "chrf"} <= set(scores)


@pytest.mark.parametrize(("words", "told"), [
    ("", "evaluate needs --config"),
    ("--config=x.py --workdir=run", "leave --workdir out"),
    ("--config=x.py", "model has no head for classes, which objective.name=classify asks for"),
])  # fmt: skip
def test_what_cannot_be_evaluated_is_told(words, told, capsys):
    make_encoder(Path("model"))
    Path("dev.tsv").write_text("label\ttext\n" + "0\ta line\n1\tanother\n" * 8)
    experiment("classify", validation_source="dev.tsv", labels="field", layout="padded", seq_len=16)
    capsys.readouterr()
    assert cli.main(["evaluate", "--from=model", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and told in error


@pytest.mark.slow
def test_classes_that_are_not_the_data_s_are_told(capsys):
    published("BertForSequenceClassification", "BertConfig", **_BERT, num_labels=3)
    Path("dev.tsv").write_text("label\ttext\n" + "0\ta line\n1\tanother\n" * 8)
    experiment("classify", validation_source="dev.tsv", labels="field", layout="padded", seq_len=16)
    capsys.readouterr()
    assert cli.main(["evaluate", "--from=model", "--config=x.py"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "model tells 3 classes apart, and data.source=dev.tsv has 2 (0, 1)" in error
