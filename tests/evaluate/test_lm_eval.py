"""The adapter under the real lm-eval: local tasks, their numbers equal to those made by hand."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from jaxformer.data.tokenizers import CharTokenizer
from jaxformer.errors import UserError

NUMBER = 12  # sentences of BLiMP

BLIMP = """
task: blimp_local
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {file}
output_type: multiple_choice
validation_split: validation
doc_to_text: ""
doc_to_target: 0
target_delimiter: ""
doc_to_choice: "{{{{[sentence_good, sentence_bad]}}}}"
metric_list:
  - metric: acc
"""
WRITING = """
task: writing_local
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {file}
output_type: generate_until
validation_split: validation
doc_to_text: "{{{{one_prefix_prefix}}}}"
doc_to_target: "{{{{one_prefix_word_good}}}}"
generation_kwargs:
  until: ["e"]
  max_gen_toks: 9
metric_list:
  - metric: exact_match
"""
ROLLING = """
task: rolling_local
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {file}
output_type: loglikelihood_rolling
validation_split: validation
doc_to_text: ""
doc_to_target: "{{{{sentence_good}}}}"
metric_list:
  - metric: bits_per_byte
  - metric: word_perplexity
"""


def test_without_the_package_one_line():
    """In a process of its own, as this one may have imported it."""
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "from jaxformer.errors import UserError\n"
        "try: import jaxformer.evaluate.lm_eval\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        'jaxformer.evaluate.lm_eval needs lm-eval; run pip install "jaxformer[eval]"\n'
    )


@pytest.fixture(scope="module")
def adapter():
    pytest.importorskip("lm_eval")
    from jaxformer.evaluate import lm_eval

    return lm_eval


@pytest.fixture(scope="module")
def lm(adapter, speaker):
    return adapter.JaxformerLM(*speaker.all, batch_size=8, max_new_tokens=8)


@pytest.fixture
def run(lm, shared_data, tmp_path, monkeypatch):
    """Runs a task over the first sentences of BLiMP; returns its figures and its samples."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def run(yaml):
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        lines = (shared_data / "eval" / "determiner_noun_agreement_1.jsonl").read_text()
        file = tmp_path / "blimp.jsonl"
        file.write_text("".join(lines.splitlines(keepends=True)[:NUMBER]))
        (tmp_path / "task.yaml").write_text(yaml.format(file=file))
        name = yaml.split()[1]
        manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
        found = simple_evaluate(lm, tasks=[name], task_manager=manager, bootstrap_iters=0)
        documents = [json.loads(line) for line in file.read_text().splitlines()]
        return found["results"][name], found["samples"][name], documents

    return run


@pytest.mark.slow
def test_choices_of_a_task_equal_a_computation_by_hand(run, speaker):
    results, samples, documents = run(BLIMP)
    assert len(samples) == NUMBER
    right = []
    for sample in samples:
        document = documents[sample["doc_id"]]
        want = []
        for place, name in enumerate(("sentence_good", "sentence_bad")):
            ids = speaker.tokenizer.encode(document[name])
            # Longer than the model reads: 48 tokens after <eos>, the rest after what fits.
            total = speaker.by_hand([261], ids[:48])[0]
            if len(ids) > 48:
                total += speaker.by_hand(ids[len(ids) - 49 : 48], ids[48:])[0]
            (found, _), *_ = sample["resps"][place]
            assert float(found) == pytest.approx(total, rel=1e-5)
            want.append(total)
        right.append(want[0] > want[1])
    assert results["acc,none"] == pytest.approx(np.mean(right))
    assert 0 < np.mean(right) < 1  # or nothing was compared


def test_rolling_equals_a_computation_by_hand(run, speaker):
    results, _, documents = run(ROLLING)
    total = num_bytes = 0
    for document in documents:
        text = document["sentence_good"]
        ids = speaker.tokenizer.encode(text)
        total += speaker.by_hand([261], ids[:48])[0]
        if len(ids) > 48:
            total += speaker.by_hand(ids[len(ids) - 49 : 48], ids[48:])[0]
        num_bytes += len(text.encode())
    assert results["bits_per_byte,none"] == pytest.approx(-total / num_bytes / np.log(2), rel=1e-5)


@pytest.mark.slow
def test_writing_stops_where_the_task_says(run, speaker):
    from jaxformer.evaluate.prompting import generate_texts
    from jaxformer.generate import Config

    _, samples, documents = run(WRITING)
    config = Config(max_new_tokens=9, temperature=0.0)
    prompts = [document["one_prefix_prefix"] for document in documents]
    written = generate_texts(*speaker.all, prompts, config, truncate=True, batch_size=8)
    texts = [text for [text] in written]
    for sample in samples:
        [[found]] = sample["resps"]
        assert found == texts[sample["doc_id"]].partition("e")[0]


def request(kind, *arguments):
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_requests_keep_their_order_and_may_be_blank(lm, speaker):
    encode = speaker.tokenizer.encode
    pairs = [("", "a b"), ("a longer context", " ends"), (" ", "x"), ("abc ", "d")]
    found = lm.loglikelihood([request("loglikelihood", *pair) for pair in pairs])
    ids = [([261], "a b"), (encode("a longer context"), " ends"), ([261], " x"),
           (encode("abc"), " d")]  # fmt: skip
    for (total, greedy), (context, continuation) in zip(found, ids, strict=True):
        want, want_greedy = speaker.by_hand(context, encode(continuation))
        assert total == pytest.approx(want, rel=1e-5) and greedy == want_greedy


def test_groups_of_options_keep_their_order(lm):
    requests = [
        request("generate_until", prompt, {"until": [], "max_gen_toks": most})
        for prompt, most in [("one", 3), ("two", 7), ("three", 3), ("a" * 90, 7)]
    ]
    texts = lm.generate_until(requests)
    alone = [lm.generate_until([one])[0] for one in requests]
    assert texts == alone and [len(text) <= most for text, most in zip(texts, (3, 7, 3, 7))]


def test_options_of_tasks(adapter, lm, speaker):
    assert lm._config({"until": "\n"}).stop == ("\n",)
    assert lm._config({}).max_new_tokens == 8
    assert lm._config({"max_gen_toks": 5, "max_new_tokens": 6}).max_new_tokens == 5
    assert lm._config({"temperature": 0.7}).temperature == 0.7
    assert lm._config({"temperature": 0.7, "do_sample": False}).temperature == 0.0
    assert lm._config({"do_sample": True}).temperature == 1.0
    with pytest.raises(UserError, match="did you mean 'top_p'"):
        lm._config({"top_pp": 0.9})
    with pytest.raises(UserError, match="has no BOS or EOS"):
        adapter.JaxformerLM(speaker.model, speaker.params, CharTokenizer("abc"))
    with_bos = adapter.JaxformerLM(*speaker.all, add_bos=True)
    assert with_bos.tok_encode("a") == [261, 97]
    assert with_bos.tok_encode("a", add_special_tokens=False) == [97]
    assert lm.tok_encode("a") == [97]
