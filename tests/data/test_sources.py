"""Where text comes from, and what a user is told who points at the wrong place."""

from __future__ import annotations

import gzip
import importlib.util

import numpy as np
import pytest

from jaxformer import data
from jaxformer.config import build
from jaxformer.data import documents, records, sources
from jaxformer.errors import UserError
from tests.data.conftest import prose, write_rows


def read(source, **config):
    config = data.Config(source=str(source), **config)
    return list(documents.read(sources.find(config.source, config), config))


@pytest.fixture
def rows_file(tmp_path):
    """rows.jsonl: 200 rows of text, label and number."""
    return write_rows(
        tmp_path / "rows.jsonl",
        [{"text": prose(i, 8), "label": "abc"[i % 3], "number": i} for i in range(200)],
    )


def test_the_standard_library():
    config = data.Config()
    source = sources.find("stdlib", config)
    assert {"ast.py", "json/decoder.py", "asyncio/tasks.py"} <= set(source.names)
    assert not [n for n in source.names if "site-packages" in n or "/test/" in n or "tests/" in n]
    assert source.size() > 5_000_000
    labelled = data.Config(labels="package", layout="padded")
    packages = {sources.package(name) for name in sources.find("stdlib", labelled).names}
    assert {"asyncio", "email", "unittest"} <= packages
    assert "" not in packages


def test_files_in_order_with_stable_names(folder):
    source = sources.find(f"{folder}/**/*.txt", data.Config())
    assert source.names[0] == "left/00.txt"
    assert list(source.names) == sorted(source.names)
    texts = read(f"{folder}/**/*.txt")
    assert [d.text for d in texts] == [f.read_text() for f in source.files]
    assert texts[0].key == sources.key("left/00.txt")


def test_bytes_that_are_not_text_are_tolerated(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfa\xff\r\nb")
    assert read(tmp_path / "x.txt")[0].text == "a�\nb"


def test_snippets_and_limits(folder, rows_file):
    file = folder / "left" / "05.txt"
    snippets = read(file, snippet_lines=3)
    assert "".join(s.text for s in snippets) == file.read_text()
    assert all(s.text.count("\n") <= 3 for s in snippets)
    assert len({s.key for s in snippets}) == 1
    assert len(read(f"{folder}/*/*.txt", max_documents=3)) == 3
    assert sum(len(d.text) for d in read(f"{folder}/*/*.txt", max_bytes=1000)) == 1000
    assert len(read(rows_file, max_documents=3)) == 3
    assert sum(len(d.text) for d in read(rows_file, max_bytes=1000)) == 1000


def test_equal_rows_stay_together(load, tmp_path):
    file = write_rows(tmp_path / "x.jsonl", [{"text": f"text {i % 50}"} for i in range(500)])
    dataset = load(file, layout="padded", seq_len=16)
    texts = []
    for split in (dataset.train, dataset.validation):
        rows = split.layout.gather(np.arange(split.num_rows), np.zeros(split.num_rows, int))
        texts.append({row.tobytes() for row in rows["tokens"]})
    assert texts[0]
    assert texts[1]
    assert not texts[0] & texts[1]


def test_gzip(tmp_path):
    with gzip.open(tmp_path / "x.jsonl.gz", "wt") as stream:
        stream.write('{"text": "a"}\n{"text": "b"}\n')
    assert [d.text for d in read(tmp_path / "x.jsonl.gz")] == ["a", "b"]
    with gzip.open(tmp_path / "x.txt.gz", "wt") as stream:
        stream.write("hello")
    assert read(tmp_path / "x.txt.gz")[0].text == "hello"


def test_csv_quotes_and_tsv_does_not(tmp_path):
    (tmp_path / "x.csv").write_text('text,label\n"a, ""b""\nc",1\nd,2\n')
    rows = read(tmp_path / "x.csv", labels="field", layout="padded")
    assert [(d.text, d.label) for d in rows] == [('a, "b"\nc', "1"), ("d", "2")]
    (tmp_path / "x.tsv").write_text('label\ttext\n1\t"a\n2\tb "c"\tx\n')
    assert [d.text for d in read(tmp_path / "x.tsv")] == ['"a', 'b "c"\tx']
    rows = read(tmp_path / "x.tsv", fields=("label", "text"))
    assert [d.text for d in rows] == ["text", '"a', 'b "c"\tx']


def test_numbers_are_classes_in_their_order(load, tmp_path):
    rows = [{"text": f"{i} {prose(i, 5)}", "label": i % 11} for i in range(300)]
    info = load(write_rows(tmp_path / "x.jsonl", rows), layout="padded", labels="field").info
    assert info.class_names == tuple(map(str, range(11)))


def test_sst2(load, shared_data):
    folder = shared_data / "classification"
    dataset = load(
        folder / "sst2.train.txt",
        validation_source=str(folder / "sst2.dev.txt"),
        fields=("label", "text"),
        delimiter=" ",
        layout="padded",
        labels="field",
        seq_len=64,
    )
    assert dataset.info.class_names == ("0", "1")
    assert (dataset.train.num_rows, dataset.validation.num_rows) == (6920, 872)
    assert dataset.info.majority == pytest.approx(444 / 872)
    batch = dataset.validation.batch(0)
    assert dataset.tokenizer.decode(batch["tokens"][0]) == "one long string of cliches ."
    assert batch["labels"][0] == 0


def test_sms_spam_and_cola_without_headers(shared_data):
    folder = shared_data / "classification"
    labelled = {"layout": "padded", "labels": "field"}
    spam = read(folder / "sms_spam.tsv", fields=("label", "text"), **labelled)
    assert len(spam) == 5574
    assert {d.label for d in spam} == {"ham", "spam"}
    fields = ("source", "label", "mark", "text")
    cola = read(folder / "cola.in_domain_dev.tsv", fields=fields, **labelled)
    assert cola[0].text == "The sailors rode the breeze clear of the rocks."
    assert {d.label for d in cola} == {"0", "1"}


def test_mrpc_pairs_with_a_header(load, shared_data):
    options = {
        "text_field": "#1 String",
        "text_pair_field": "#2 String",
        "label_field": "Quality",
        "delimiter": "\t",
        "layout": "padded",
        "labels": "field",
    }
    file = shared_data / "classification" / "msr_paraphrase_train.txt"
    documents = read(file, **options)
    assert len(documents) == 4076
    assert documents[0].text.startswith("Amrozi accused his brother")
    assert documents[0].pair.startswith("Referring to him as only")
    batch = load(file, seq_len=300, **options).train.batch(0, 0)
    assert set(np.unique(batch["token_types"])) == {0, 1}
    assert ((batch["tokens"] == 259).sum(1) == 2).all()  # two [SEP] of the byte tokenizer


BAD = [  # config, what the line must name
    ({"source": "no/such.txt"}, "no such file"),
    ({"source": "{folder}/left/00.tx"}, "did you mean '00.txt'"),
    ({"source": "{folder}"}, r"is a folder; give a glob"),
    ({"source": "{folder}/*.none"}, "no such file"),
    ({"validation_source": "none.txt"}, "data.validation_source='none.txt': no such file"),
    ({"source": "{rows}", "text_field": "txt"}, r"rows.jsonl:1 has no field 'txt'.*text, label"),
    (
        {"source": "{rows}", "labels": "field", "label_field": "lable", "layout": "padded"},
        "'label'",
    ),
    ({"source": "{broken}"}, "broken.jsonl:2 is not JSON"),
    ({"source": "{list}"}, "list.jsonl:1 is not a JSON object"),
    ({"source": "{null}"}, "null.jsonl:1: field 'text'.*NoneType"),
    ({"source": "{short}"}, r"short.tsv:2 has 1 columns, not 2 \(text, label\)"),
    ({"source": "{one}", "labels": "field", "layout": "padded"}, "all documents have the label"),
    ({"source": "{blank}"}, "holds no text"),
    ({"source": "{rows}", "max_documents": 1}, "split of .* is empty"),
    ({"source": "{rows}", "tokenizer": "bpe"}, "bpe:4096"),
    ({"source": "{rows}", "tokenizer": "bpe:12"}, "300 or more"),
    ({"source": "{rows}", "tokenizer": "chars"}, "did you mean 'char'"),
    ({"source": "{rows}", "labels": "package", "layout": "padded"}, "not one document a file"),
    ({"source": "hf:no-such-organisation/no-such-set"}, "hf:no-such|datasets"),
    ({"source": ""}, "source is empty"),
    ({"layout": "window"}, "did you mean 'windows'"),
    ({"labels": "field"}, r"data\.layout='padded'"),
    ({"eval_stride": 9, "seq_len": 8}, r"data\.eval_stride=9"),
    ({"eval_stride": 4, "layout": "packed"}, "needs data.layout='windows'"),
    ({"validation_fraction": 1.0}, "between 0 and 1"),
    ({"batch_size": 0}, r"data\.batch_size"),
    ({"max_bytes": -1}, r"data\.max_bytes"),
    ({"seq_len": 2, "layout": "padded"}, "no room"),
    ({"text_pair_field": "b"}, "needs data.layout='padded'"),
]


@pytest.mark.parametrize(("config", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_mistakes_are_told_in_one_line(load, folder, rows_file, tmp_path, config, message):
    paths = {"folder": folder, "rows": rows_file}
    for name, content in {
        "broken.jsonl": '{"text": "a"}\n{"text": \n',
        "list.jsonl": "[1]\n",
        "null.jsonl": '{"text": null}\n',
        "short.tsv": "text\tlabel\na\n",
        "one.jsonl": '{"text": "a", "label": 1}\n' * 3 + '{"text": "b", "label": 1}\n' * 20,
        "blank.jsonl": '{"text": "  "}\n\n',
    }.items():
        paths[name.split(".")[0]] = tmp_path / name
        (tmp_path / name).write_text(content)
    filled = {k: v.format(**paths) if isinstance(v, str) else v for k, v in config.items()}
    if filled.get("source", "").endswith("one.jsonl"):
        filled["split"] = "tail"
    with pytest.raises(UserError, match=message) as error:
        load(**{"source": str(rows_file), **filled})
    assert "\n" not in str(error.value)


def test_config_is_built_from_a_mapping():
    config = build(data.Config, {"fields": ["label", "text"], "seq_len": 64}, "data")
    assert config.fields == ("label", "text")
    with pytest.raises(UserError, match="did you mean 'tokenizer'"):
        build(data.Config, {"tokeniser": "byte"}, "data")


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs datasets (hf)")
@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face(load, rows_file, tmp_path, streaming):
    """A local folder is a data set to the library: the same rows as by our own reader."""
    (tmp_path / "set").mkdir()
    rows_file = rows_file.rename(tmp_path / "set" / "rows.jsonl")
    source = f"hf:{rows_file.parent}@train"
    got = read(source, hf_streaming=streaming, labels="field", layout="padded")
    assert got == read(rows_file, labels="field", layout="padded")
    dataset = load(source, hf_streaming=streaming, layout="packed")
    assert dataset.info.fingerprint == load(rows_file, layout="packed").info.fingerprint
    with pytest.raises(UserError, match="hf:.*@nosplit"):
        read(f"hf:{rows_file.parent}@nosplit")


def test_hugging_face_without_the_package(monkeypatch):
    monkeypatch.setattr(records.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"jaxformer\[hf\]"):
        read("hf:glue:sst2@validation")
