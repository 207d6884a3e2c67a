"""Which traps there are, system by system, and which tests hold them.

Most are tables of their own in test_traps_*.py: see traps.py. Those below are held elsewhere, for
more cases than one, by tests that fail without the mend; test_traps_numerics.py shows that too.
"""

from __future__ import annotations

import ast
import functools
import importlib
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
# (system, what people get wrong, the test that sees it)
ELSEWHERE = [
    ("Transformer", "the formula of sines and cosines",
     "ops/test_positions.py::test_sinusoidal_is_the_papers_formula"),
    ("Marian", "sines and cosines in turn",
     "ops/test_positions.py::test_concatenated_sinusoids_are_those_of_marian"),
    ("LSTM", "states, gradients and packed rows", "ops/test_recurrent.py::"
     "test_equals_torch_on_packed_rows"),
    ("GRU", "several layers, both directions", "models/test_recurrent.py::test_encoder_is_torchs"),
    ("BERT", "80/10/10", "objectives/test_masked_lm.py::test_eighty_ten_ten"),
    ("BERT", "the loss of both heads", "objectives/test_published.py::test_bert_pretraining"),
    ("BERT", "padding as an answer", "objectives/test_published.py::test_extractive_qa"),
    ("RoBERTa", "static masking", "objectives/test_masked_lm.py::test_dynamic_and_by_row"),
    ("GPT-2", "left padding in a cache",
     "models/test_properties.py::test_cached_left_padding_changes_nothing"),
    ("Llama", "pairs of RoPE mixed up", "ops/test_rope.py::test_interleaved_turns_complex_numbers"),
    ("Llama", "scaled RoPE", "ops/test_rope.py::test_frequencies_are_those_of_transformers"),
    ("T5", "buckets of distances", "ops/test_positions.py::test_buckets_are_those_of_t5"),
    ("XLNet", "gradients of both streams",
     "models/test_xlnet.py::test_two_streams_and_all_gradients"),
    ("XLNet", "a prediction that sees its token",
     "models/test_xlnet_properties.py::test_a_prediction_never_sees_its_token_nor_later_ones"),
    ("XLNet", "same length", "models/test_xlnet.py::test_same_length_with_a_full_memory"),
    ("Transformer-XL", "memory with a gradient",
     "models/test_transformer_xl.py::test_memory_has_no_gradient_but_its_weights_have"),
    ("Transformer-XL", "what is remembered",
     "models/test_transformer_xl.py::test_segments_with_their_memory"),
    ("numbers", "the mean of all values for a row that sees nothing",
     "ops/test_attention.py::test_nothing_to_attend_to_is_zero_with_zero_gradients"),
    ("numbers", "another row for an id outside the table",
     "ops/test_embeddings.py::test_an_id_outside_the_table_gives_nan"),
    ("files", "a transposed matrix, an escaping name, a key given twice",
     "interop/test_bad_input.py::test_what_is_wrong_is_one_line"),
    ("files", "ids given twice or beyond all rows",
     "data/test_tokenizers.py::test_a_damaged_tokenizer_is_refused_in_one_line"),
]  # fmt: skip
SYSTEMS = {
    "Transformer", "Marian", "LSTM", "GRU", "BERT", "RoBERTa", "ALBERT", "DistilBERT", "GPT-1",
    "GPT-2", "Llama", "Mistral", "Qwen 2", "Qwen 3", "Gemma 2", "Gemma 3", "T5", "T5 1.1", "BART",
    "XLNet", "Transformer-XL",
}  # fmt: skip


@functools.cache
def functions(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("system, mistake, test", ELSEWHERE)
def test_what_is_held_elsewhere_is_still_there(system, mistake, test):
    file, _, name = test.partition("::")
    assert name in functions(file), f"{system}, {mistake}: {test} is gone"


def test_every_system_has_its_traps():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    tables = [importlib.import_module(f"tests.parity.test_traps_{part}")
              for part in ("encoders", "decoders", "seq2seq", "others")]  # fmt: skip
    traps = [trap for module in tables for trap in module.TRAPS]
    names = {trap.system for trap in traps} | {system for system, _ in tables[-1].CELLS}
    assert names == SYSTEMS
    assert len({trap.id for trap in traps}) == len(traps)
    for module in tables:
        assert {trap.subject for trap in module.TRAPS} == set(module.SUBJECTS)
