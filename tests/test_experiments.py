"""Every experiment runs as its docstring says, on less: two steps, then what it is good for."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from pathlib import Path

import jax
import pytest

from jaxformer import cli, interop
from jaxformer.models import encoder, encoder_decoder
from jaxformer.train import records
from tests.conftest import REPOSITORY

EXPERIMENTS = sorted(path.stem for path in (REPOSITORY / "experiments").glob("*.py"))
SMALL = ["--config.model.num_layers=1", "--config.model.width=32", "--config.model.num_heads=2",
         "--config.data.seq_len=32"]  # fmt: skip
GREEDY = ["--config.generate.num_beams=1", "--config.generate.min_new_tokens=1",
          "--config.generate.no_repeat_ngram=0"]  # fmt: skip
LESS = ["--config.train.steps=2", "--config.train.eval_tokens=512", "--config.data.batch_size=8",
        "--config.generate.max_new_tokens=4", "--config.data.max_documents=60"]  # fmt: skip


@pytest.fixture
def train(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i} of a small text, {i * i} words long.\n" for i in range(400)))

    def run(name: str, *more: str, workdir: str = "") -> list[dict]:
        workdir = workdir or f"runs/{name}"
        words = ["train", "--config", str(REPOSITORY / "experiments" / f"{name}.py"), *LESS, *more]
        assert cli.main([*words, f"--workdir={workdir}"]) == 0
        found = records.read_records(Path(workdir))
        assert [r["step"] for r in found if r["split"] == "train"] == [1, 2]
        assert all(math.isfinite(r["loss"]) and not r.get("skipped") for r in found)
        return found

    return run


@pytest.fixture
def published(train):
    """The folder of a small encoder of random weights, as published."""
    small = encoder.Config(
        vocab_size=262, num_layers=2, width=16, num_heads=4, max_length=128, num_token_types=2,
        pooler=True, masked_head=False,
    )  # fmt: skip
    model = encoder.make(small)
    interop.save_huggingface("published", model, model.init(jax.random.key(0)))
    return ["--config.train.init_from=published", "--config.data.tokenizer=byte"]


def write_lines(name: str, lines: list[str]) -> None:
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def evaluated(capsys, name: str, *more: str) -> str:
    """What `evaluate` prints of a run."""
    capsys.readouterr()
    assert cli.main(["evaluate", f"--workdir=runs/{name}", *more]) == 0
    return capsys.readouterr().out


def converted(name: str) -> str:
    """What transformers calls the model of a run."""
    assert cli.main(["convert", f"--from=runs/{name}", f"--to={name}_published"]) == 0
    return json.loads(Path(f"{name}_published", "config.json").read_text())["model_type"]


def test_all_experiments_are_tried_here():
    text = Path(__file__).read_text(encoding="utf-8")
    assert len(EXPERIMENTS) > 20
    assert [name for name in EXPERIMENTS if f'"{name}"' not in text] == []


@pytest.mark.slow
def test_quickstart(train):
    found = train("quickstart")
    # Zeros in the head: the first loss is that of a uniform guess.
    assert abs(found[0]["loss"] - math.log(2048)) < 1e-3


@pytest.mark.slow
def test_gpt_char(train):
    train("gpt_char", "--config.data.source=text.txt")


@pytest.mark.slow
def test_wikitext(train, capsys):
    for split in ("train", "valid"):
        shutil.copy("text.txt", f"wiki.{split}.txt")
    train("wikitext", *SMALL)
    assert "bits_per_byte" in evaluated(capsys, "wikitext")


@pytest.mark.slow
def test_bert_mlm_and_what_it_is_good_for(train, capsys):
    """Fine-tuning takes the pretrained arrays and makes only the classifier anew."""
    few = "--config.data.max_documents=0"
    train("bert_mlm", few)
    train("finetune_classify", few)
    out = capsys.readouterr().out
    assert "starts from runs/bert_mlm" in out and "new: classifier/bias, classifier/kernel" in out
    train("finetune_classify", few, "--config.train.init_from=", workdir="runs/from_scratch")


@pytest.mark.slow
def test_gpt2_124m_at_reduced_length(train):
    found = train(
        "gpt2_124m", "--config.data.source=text.txt", "--config.data.tokenizer=byte",
        "--config.data.seq_len=32", "--config.train.accumulate=1", "--config.mesh.data=1",
        "--config.mesh.fsdp=8", "--config.model.unroll=1", "--config.model.num_layers=2",
    )  # fmt: skip
    assert abs(found[0]["loss"] - math.log(50304)) < 0.5


@pytest.mark.slow
def test_gpt2_124m_dry_run_needs_no_data(capsys):
    path = str(REPOSITORY / "experiments" / "gpt2_124m.py")
    less = ["--config.data.seq_len=64", "--config.data.batch_size=8", "--config.train.accumulate=1",
            "--config.model.unroll=1"]  # fmt: skip
    assert cli.main(["train", "--config", path, "--dry_run", *less]) == 0
    count = 50304 * 768 + 1024 * 768 + 12 * (12 * 768 * 768 + 2 * 768) + 768
    assert f"{count:,}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "published_as", "more"),
    [
        ("bert_pretraining", "bert", ()),
        ("albert", "albert", ()),
        ("roberta", "roberta", ()),
        ("modernbert", "modernbert", ("--config.model.num_layers=2",)),
        ("llama", "llama", ()),
        ("llama", "mistral", ("--config.model.window=64",)),
        ("llama", "qwen2", ("--config.model.qkv_bias=True",)),
        ("llama", "qwen3", ("--config.model.qk_norm=True",)),
        ("llama", "olmo2", ("--config.model.norm_position=output", "--config.model.qk_norm=True",
                            "--config.model.qk_norm_all_heads=True")),
        ("gemma", "gemma3_text", ("--config.model.num_layers=6",)),
        ("gemma", "gemma2", ("--config.model.num_layers=2", "--config.model.qk_norm=False",
                             "--config.model.attention_soft_cap=50.0",
                             "--config.model.logit_soft_cap=30.0",
                             "--config.model.attention_pattern=local,global",
                             "--config.model.rope_base=10000.0",
                             "--config.model.rope_local_base=0.0")),
        ("mixtral", "mixtral", ()),
        ("t5", "t5", ()),
        ("xlnet", "xlnet", ()),
    ],
)  # fmt: skip
def test_pretraining(train, name, published_as, more):
    """And transformers has a model that computes what this one does."""
    train(name, *SMALL, *more)
    assert converted(name) == published_as


@pytest.mark.slow
def test_distilbert_from_nothing_and_from_a_published_one(train, capsys):
    train("distilbert", *SMALL, "--config.data.tokenizer=wordpiece:4096")
    assert converted("distilbert") == "distilbert"
    assert cli.main(["convert", "--from=runs/distilbert", "--to=published"]) == 0
    train(
        "distilbert", *SMALL, "--config.train.init_from=published",
        "--config.data.tokenizer=published", "--config.data.source=text.txt", workdir="runs/on",
    )  # fmt: skip
    assert "; new:" not in capsys.readouterr().out


@pytest.mark.slow
def test_gpt1_and_what_it_is_good_for(train, capsys):
    train("gpt1", *SMALL)
    assert converted("gpt1") == "openai-gpt"
    write_lines("rows.tsv", ["label\ttext", *(f"{i % 2}\tline {i}" for i in range(80))])
    train(
        "gpt1", *SMALL, "--config.train.init_from=runs/gpt1", "--config.data.tokenizer=runs/gpt1",
        "--config.objective.name=classify", "--config.data.layout=padded",
        "--config.data.labels=field", "--config.data.source=rows.tsv", workdir="runs/classify",
    )  # fmt: skip
    assert "new: classifier/bias, classifier/kernel" in capsys.readouterr().out


@pytest.mark.slow
def test_electra_and_what_one_keeps(train, capsys):
    sizes = [*SMALL, "--config.model.num_heads=4"]
    found = train("electra", *sizes)
    assert {"generator_loss", "discriminator_loss", "recall"} <= set(found[0])
    for name in ("train", "dev"):
        write_lines(f"sst2.{name}.txt", [f"{i % 2} a film of {i * i} frames" for i in range(60)])
    train(
        "sst2", *sizes, "--config.model.family=encoder", "--config.model.max_length=128",
        "--config.model.embedding_size=64", "--config.model.num_token_types=2",
        "--config.train.init_from=runs/electra", "--config.data.tokenizer=runs/electra",
    )  # fmt: skip
    assert "starts from runs/electra" in capsys.readouterr().out


@pytest.mark.slow
def test_attention_shootout(train):
    found = train("attention_shootout", *SMALL)
    assert 0 <= [r for r in found if r["split"] == "validation"][-1]["accuracy"] <= 1


@pytest.mark.slow
def test_extrapolation(train, capsys):
    train("extrapolation", *SMALL, "--config.model.positions=alibi")
    words = ["extrapolate", "runs/extrapolation", "--lengths=32,64", "--tokens=512", "--out=x.png"]
    assert cli.main(words) == 0
    assert Path("x.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_transformer_xl(train, capsys):
    more = ["--config.model.segment_length=16", "--config.model.memory_length=16"]
    train("transformer_xl", *SMALL, *more, "--config.data.seq_len=64")
    longer = evaluated(capsys, "transformer_xl", "--config.data.seq_len=128")
    assert "perplexity" in longer


@pytest.mark.slow
def test_memorizing(train, capsys):
    train("memorizing", *SMALL, "--config.model.segment_length=16", "--config.data.seq_len=64")
    longer = evaluated(capsys, "memorizing", "--config.data.seq_len=128")
    without = evaluated(capsys, "memorizing", "--config.model.memory_size=0")
    assert "perplexity" in longer and "perplexity" in without


@pytest.mark.slow
def test_retro(train, capsys):
    more = ["--config.model.chunk=16", "--config.data.retrieval_chunk=16", *SMALL]
    train("retro", *more, "--config.model.retrieval_layers=(1,)")
    for end in ("_overlap=0.5", "="):
        assert "perplexity" in evaluated(capsys, "retro", f"--config.data.retrieval{end}")


@pytest.mark.slow
def test_bart_learns_to_summarise(train, capsys):
    pytest.importorskip("rouge_score")
    train("bart", *SMALL)
    assert converted("bart") == "bart"
    rows = [{"document": f"line {i} of many lines", "summary": f"line {i}"} for i in range(90)]
    write_lines("train.jsonl", [json.dumps(row) for row in rows])
    train(
        "summarise", *GREEDY, "--config.train.init_from=bart_published",
        "--config.data.tokenizer=bart_published", "--config.data.source_len=128",
        "--config.data.validation_fraction=0.2", "--config.data.layout=seq2seq",
    )  # fmt: skip
    out = evaluated(capsys, "summarise", "--metrics=rouge", "--out=summaries.jsonl")
    assert "rouge1" in out and "rougeLsum" in out and "bleu" not in out
    first = json.loads(Path("summaries.jsonl").read_text().splitlines()[0])
    assert first["input"].startswith("line") and first["reference"] in first["input"]


@pytest.mark.slow
def test_summarise_from_t5(train):
    t5 = encoder_decoder.Config(
        **{**encoder_decoder.SIZES["t5_v1_1_small"], "num_layers": 1, "width": 16, "num_heads": 2,
           "head_dim": 8, "feed_forward": 32, "vocab_size": 300}
    )  # fmt: skip
    model = encoder_decoder.make(t5)
    interop.save_huggingface("published", model, model.init(jax.random.key(0)))
    rows = [{"document": f"line {i} of many lines", "summary": f"line {i}"} for i in range(90)]
    write_lines("train.jsonl", [json.dumps(row) for row in rows])
    train(
        "summarise", *GREEDY, "--config.train.init_from=published", "--config.data.tokenizer=byte",
        "--config.data.validation_fraction=0.2", "--config.data.source_prefix=summarize: ",
        "--config.data.source_len=128", "--config.data.layout=seq2seq",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [("translate", ("--config.model.num_heads=2",)), ("translate_lstm", ())],
)
def test_translation(train, capsys, name, more):
    pytest.importorskip("sacrebleu")
    for split in ("train", "val"):
        for end in ("en", "de"):
            lines = [f"{end} line {i} of {i * i} words" for i in range(60)]
            with gzip.open(f"multi30k.{split}.{end}.gz", "wt", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
    train(
        name, "--config.model.num_layers=1", "--config.model.width=32", "--config.data.seq_len=32",
        "--config.data.source_len=32", "--config.data.tokenizer=bpe:400",
        "--config.generate.num_beams=2", *more,
    )  # fmt: skip
    assert "bleu" in evaluated(capsys, name, "--out=translated.jsonl")


@pytest.mark.slow
def test_sst2(train, published, capsys):
    """From a published checkpoint (a small one of random weights), on files in SST-2's form."""
    for name in ("train", "dev"):
        write_lines(f"sst2.{name}.txt", [f"{i % 2} a film of {i * i} frames" for i in range(60)])
    train("sst2", *published)
    assert "new: classifier/bias, classifier/kernel" in capsys.readouterr().out
    assert "f1" in evaluated(capsys, "sst2")


@pytest.mark.slow
def test_mrpc(train, published, capsys):
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    rows = [f'{i % 2}\t{i}\t{i + 1}\tHe said "{i}.\t{i}, he said.' for i in range(60)]
    for name in ("train", "test"):
        write_lines(f"msr_paraphrase_{name}.txt", ["\ufeff" + header, *rows])
    train("mrpc", *published)
    out = evaluated(capsys, "mrpc", "--out=answers.jsonl")
    assert "accuracy" in out and "f1" in out
    first = json.loads(Path("answers.jsonl").read_text().splitlines()[0])
    assert first["input"] == 'He said "0.' and first["reference"] == "0"


@pytest.mark.slow
def test_cola(train, published, capsys):
    rows = [f"gj04\t{i % 2}\t{'' if i % 2 else '*'}\tSentence {i} is short." for i in range(60)]
    for name in ("train", "dev"):
        write_lines(f"in_domain_{name}.tsv", rows)
    train("cola", *published)
    assert "matthews" in evaluated(capsys, "cola")


@pytest.mark.slow
def test_sts(train, published, capsys):
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
    rows = [f"{i}\tg\tf\t2012\t{i}\tn\tn\tA dog {i}.\tA cat {i}.\t{i % 6}.25" for i in range(60)]
    for name in ("train", "dev"):
        write_lines(f"{name}.tsv", [header + "\tscore", *rows])
    train("sts", *published)
    out = evaluated(capsys, "sts")
    assert "pearson" in out and "spearman" in out and "accuracy" not in out


@pytest.mark.slow
def test_knn_lm(train, capsys):
    train("knn_lm", *SMALL, "--config.data.source=text.txt", "--config.data.tokenizer=byte")
    run = ["--workdir=runs/knn_lm", "--max_length=32"]
    assert cli.main(["datastore", *run, "--out=runs/knn_lm/store", "--max_tokens=4096"]) == 0
    capsys.readouterr()
    asked = ["perplexity", *run, "--datastore=runs/knn_lm/store", "--max_tokens=256"]
    assert cli.main(asked) == 0
    alone, mixed = (float(line.split()[2]) for line in capsys.readouterr().out.splitlines()[-2:])
    assert mixed < 0.9 * alone


@pytest.mark.slow
def test_tagging(train, published, capsys):
    sentence = [
        "-DOCSTART- -X- O O",
        "",
        "Ada NNP I-NP I-PER",
        "saw VBD I-VP O",
        "Rome NNP I-NP I-LOC",
    ]
    for name in ("train", "testa"):
        write_lines(f"eng.{name}", [*sentence[:2], *[*sentence[2:], ""] * 40])
    train("tagging", *published)
    assert "new: tagger/bias, tagger/kernel" in capsys.readouterr().out
    assert {"accuracy", "precision", "recall", "f1"} <= set(evaluated(capsys, "tagging").split())


@pytest.mark.slow
def test_qa(train, published, capsys):
    def article(name: str) -> dict:
        context = f"The house of {name} stands in a street with many trees."
        answer = {"text": name, "answer_start": context.index(name)}
        asked = [{"id": f"{name}{i}", "question": "Whose house is it?", "answers": [answer]}
                 for i in range(4)]  # fmt: skip
        return {"title": name, "paragraphs": [{"context": context, "qas": asked}]}

    articles = [article(name) for name in ("Ada", "Bob", "Cleo", "Dan", "Eve", "Fritz", "Gus")]
    Path("train-v1.1.json").write_text(json.dumps({"data": articles}))
    train("qa", *published, "--config.data.seq_len=96")
    assert "exact" in evaluated(capsys, "qa")
