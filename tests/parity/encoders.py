"""Rows of the ledger: BERT and its kin, with the heads of pre-training and of tasks."""

from __future__ import annotations

from tests.parity.published import SMALL, V, case, several

ENCODERS = [
    *several(
        "BERT",
        "BertForMaskedLM",
        "BertConfig",
        {
            "small": {},
            "two heads, one layer": dict(num_attention_heads=2, num_hidden_layers=1),
            "relu, three types": dict(hidden_act="relu", type_vocab_size=3),
        },
        kind="masked", decodes=False, token_types=2,
    ),
    *(
        case("BERT", name, f"BertFor{head}", "BertConfig", {**SMALL, **changes}, kind=kind,
             decodes=False, token_types=2)
        for name, head, kind, changes in (
            ("classifier of 5", "SequenceClassification", "pooled", dict(num_labels=5)),
            ("masked and next-sentence heads", "PreTraining", "pretraining", {}),
            ("both heads, relu, three types", "PreTraining", "pretraining",
             dict(hidden_act="relu", type_vocab_size=3, num_hidden_layers=1)),
            ("start and end of an answer", "QuestionAnswering", "span", {}),
            ("tags of 7", "TokenClassification", "tagger", dict(num_labels=7)),
        )
    ),
    *several(
        "RoBERTa",
        "RobertaForMaskedLM",
        "RobertaConfig",
        {
            "small": dict(max_position_embeddings=40, pad_token_id=1),
            "untied": dict(max_position_embeddings=40, tie_word_embeddings=False, pad_token_id=1),
            "three heads, odd width": dict(
                hidden_size=21, num_attention_heads=3, max_position_embeddings=33, pad_token_id=1
            ),
        },
        kind="masked", decodes=False, pad_id=1,
    ),
    case(
        "RoBERTa", "classifier of 3", "RobertaForSequenceClassification", "RobertaConfig",
        {**SMALL, "num_labels": 3, "pad_token_id": 1}, kind="pooled", decodes=False, pad_id=1,
    ),
    *several(
        "ALBERT",
        "AlbertForMaskedLM",
        "AlbertConfig",
        {
            "small": dict(embedding_size=16),
            "embedding as wide": dict(embedding_size=24, num_hidden_layers=2),
            "gelu, two heads": dict(embedding_size=10, hidden_act="gelu", num_attention_heads=2),
        },
        kind="masked", decodes=False, token_types=2,
    ),
    *(
        case("ALBERT", name, f"AlbertFor{head}", "AlbertConfig",
             {**SMALL, "embedding_size": 16, **changes}, kind=kind, decodes=False, token_types=2)
        for name, head, kind, changes in (
            ("masked and sentence-order heads", "PreTraining", "pretraining", {}),
            ("both heads, relu", "PreTraining", "pretraining",
             dict(hidden_act="relu", embedding_size=10)),
            ("classifier of 3", "SequenceClassification", "pooled", dict(num_labels=3)),
            ("start and end of an answer", "QuestionAnswering", "span", {}),
            ("tags of 7", "TokenClassification", "tagger", dict(num_labels=7)),
        )
    ),
    *(
        case("DistilBERT", name, cls, "DistilBertConfig",
             dict(vocab_size=V, dim=24, n_layers=3, n_heads=4, hidden_dim=40) | changes,
             kind=kind, decodes=False)
        for name, cls, kind, changes in (
            ("small", "DistilBertForMaskedLM", "masked", {}),
            ("relu, odd heads", "DistilBertForMaskedLM", "masked",
             dict(activation="relu", n_heads=3)),
            ("classifier of 2", "DistilBertForSequenceClassification", "pooled", {}),
        )
    ),
    *several(
        "ELECTRA",
        "ElectraForMaskedLM",
        "ElectraConfig",
        {
            "generator": dict(embedding_size=16),
            "generator, embedding as wide": dict(embedding_size=24),
            "generator, untied": dict(embedding_size=16, tie_word_embeddings=False),
        },
        kind="masked", decodes=False, token_types=2,
    ),
    *several(
        "ELECTRA",
        "ElectraForPreTraining",
        "ElectraConfig",
        {"discriminator": dict(embedding_size=16), "discriminator, relu": dict(hidden_act="relu")},
        kind="replaced", decodes=False, token_types=2,
    ),
    *several(
        "Longformer",
        "LongformerForMaskedLM",
        "LongformerConfig",
        {
            "small": dict(attention_window=4, max_position_embeddings=40, pad_token_id=1),
            "window of eight, untied": dict(
                attention_window=[8, 8, 8], max_position_embeddings=33, tie_word_embeddings=False,
                pad_token_id=1,
            ),
            "wide window": dict(
                attention_window=16, hidden_size=21, num_attention_heads=3, pad_token_id=1,
                max_position_embeddings=40,
            ),
        },
        kind="masked", decodes=False, pad_id=1,
    ),
    *(
        case("Longformer", name, f"LongformerFor{head}", "LongformerConfig",
             {**SMALL, "attention_window": 4, "pad_token_id": 1, "max_position_embeddings": 40,
              "num_labels": 3}, kind=kind, decodes=False, pad_id=1, quirk=quirk)
        for name, head, kind, quirk in (
            ("classifier of 3, first token global", "SequenceClassification", "pooled",
             "makes the first token global by itself"),
            ("tags of 3", "TokenClassification", "tagger", ""),
        )
    ),
    *(
        case("BigBird", name, f"BigBirdFor{head}", "BigBirdConfig",
             {**SMALL, "block_size": 2, "num_random_blocks": 1, "max_position_embeddings": 64,
              **changes},
             kind=kind, decodes=False, token_types=2, left_padding=False, length_counts=True,
             lengths=(17, 19, 20),
             running={"attention": f"bigbird(block=2, num_random={random}, random='zero')"},
             quirk="all random blocks are block 0 in evaluation")
        for name, head, kind, random, changes in (
            ("small", "MaskedLM", "masked", 1, {}),
            ("three heads, odd width", "MaskedLM", "masked", 1,
             dict(hidden_size=21, num_attention_heads=3)),
            ("two random blocks, rescaled embeddings", "MaskedLM", "masked", 2,
             dict(num_random_blocks=2, rescale_embeddings=True)),
            ("classifier of 3", "SequenceClassification", "pooled", 1, dict(num_labels=3)),
            ("tags of 5", "TokenClassification", "tagger", 1, dict(num_labels=5)),
        )
    ),
    case(
        "BigBird", "full attention", "BigBirdForMaskedLM", "BigBirdConfig",
        {**SMALL, "attention_type": "original_full", "max_position_embeddings": 64},
        kind="masked", decodes=False, token_types=2,
    ),
    *several(
        "ModernBERT",
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        {
            "small": dict(local_attention=6),
            "every second global": dict(
                local_attention=4, num_hidden_layers=5, global_attn_every_n_layers=2
            ),
            "biases": dict(
                local_attention=6, attention_bias=True, mlp_bias=True, norm_bias=True,
                classifier_bias=True,
            ),
        },
        kind="masked", decodes=False,
        quirk="its first layer has no attention norm",
    ),
]  # fmt: skip
