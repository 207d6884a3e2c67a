"""The sweep's documented example runs as it stands, on a published folder."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from jaxformer.evaluate import sweep
from jaxformer.evaluate.prompting import few_shot, score_choices
from tests.test_cli_models import make_decoder


def test_the_example_of_the_documentation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, params, tokenizer = make_decoder(Path("gpt2"), max_length=128)
    capsys.readouterr()
    assert sweep.__doc__
    code = sweep.__doc__[
        sweep.__doc__.index("    from jaxformer") : sweep.__doc__.index("It prints")
    ]
    names: dict = {}
    exec(textwrap.dedent(code), names)
    results, dev, words = names["results"], names["dev"], names["words"]
    assert {(r.template, r.shots, r.examples) for r in results} == {
        (name, shots, 3) for name in ("plain", "asked") for shots in (0, 2)
    }
    assert [r.score for r in results] == sorted((r.score for r in results), reverse=True)
    assert capsys.readouterr().out == sweep.table(results) + "\n"
    # One line by hand.
    prompt = few_shot(
        names["templates"]["asked"], lambda row: words[row["label"]], names["train"], 2
    )
    scores = score_choices(
        model, params, tokenizer, [prompt(row) for row in dev], [words] * 3, normalise="tokens"
    )
    right = [score.argmax() == row["label"] for score, row in zip(scores, dev, strict=True)]
    [found] = [r.score for r in results if (r.template, r.shots) == ("asked", 2)]
    assert found == pytest.approx(sum(right) / 3)
