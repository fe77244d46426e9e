"""Tiny checkpoints in the formats of f1chexbert 0.0.2 and radgraph 0.1.18, and reports for them to read."""

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np

SENTENCES = (
    "There is a small left pleural effusion.",
    "No pneumothorax.",
    "Heart size is mildly enlarged.",
    "Patchy opacity in the right lower lobe may represent pneumonia.",
    "Endotracheal tube ends 4 cm above the carina.",
    "The lungs are clear, without consolidation.",
    "Stable cardiomegaly with mild interstitial edema.",
    "Bibasilar atelectasis, unchanged.",
)
WORDS = sorted({word for text in SENTENCES for word in text.lower().replace(",", " ").replace(".", " ").split()})
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_reports(n: int, seed: int) -> list[str]:
    """Reports of one to five sentences; some are equal, as systems write them."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(SENTENCES, size=rng.integers(1, 6))) for _ in range(n)]


def write_encoder(folder: Path) -> Path:
    """A BERT of 2 x 32 with a vocabulary of the reports' words and letters: configuration and tokenizer, no weights."""
    from transformers import BertConfig

    folder.mkdir(parents=True)
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789", ".", ",", "-"]
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *WORDS]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": True, "tokenizer_class": "BertTokenizer", "model_max_length": 512})
    )
    BertConfig(
        vocab_size=len(dict.fromkeys(pieces)),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
        initializer_range=0.5,
    ).save_pretrained(folder)
    return folder


def write_chexbert(path: Path, encoder: Path, seed: int = 0) -> Path:
    """``chexbert.pth``: model_state_dict with `module.` prefixes, beside what a training leaves in it."""
    import torch
    from transformers import AutoConfig

    from dive.scores.chexbert import build_labeler

    torch.manual_seed(seed)
    model = build_labeler(AutoConfig.from_pretrained(encoder))
    for head in model.linear_heads:
        torch.nn.init.normal_(head.weight, std=1.0)
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {"state": {}}}, path)
    return path


def write_radgraph(folder: Path, encoder: Path, archive: str = "radgraph", seed: int = 0) -> Path:
    """``<folder>/<archive>/{config.json, weights.th, vocabulary/}``, its weights drawn by the package's own model."""
    import torch
    from radgraph import RadGraph
    from radgraph.dygie.models.dygie import DyGIE

    place = folder / archive
    (place / "vocabulary").mkdir(parents=True)
    bert = {"model_name": str(encoder.resolve()), "max_length": 512}
    config = {
        "dataset_reader": {"max_span_width": 3, "token_indexers": {"bert": bert}},
        "model": {
            "type": "dygie",
            "embedder": {"token_embedders": {"bert": bert}},
            "initializer": {},
            "module_initializer": {},
            "modules": {
                "coref": {"coref_prop": 0, "max_antecedents": 100, "spans_per_word": 0.3},
                "ner": {},
                "relation": {"spans_per_word": 0.5},
                "events": {
                    "trigger_spans_per_word": 0.3,
                    "argument_spans_per_word": 0.8,
                    "loss_weights": {"trigger": 0.2, "arguments": 1.0},
                },
            },
            "feature_size": 4,
            "max_span_width": 3,
            "target_task": "ner",
            "feedforward_params": {"num_layers": 1, "hidden_dims": 16, "dropout": 0.4},
            "loss_weights": {"ner": 0.2, "relation": 1.0, "coref": 0.0, "events": 0.0},
        },
    }
    (place / "config.json").write_text(json.dumps(config))
    labels = ("", "OBS-DP", "ANAT-DP", "OBS-DA", "OBS-U")  # the first line is the null label
    (place / "vocabulary" / f"{archive}__ner_labels.txt").write_text("\n".join(labels) + "\n")
    relations = ("modify", "located_at", "suggestive_of")
    (place / "vocabulary" / f"{archive}__relation_labels.txt").write_text("\n".join(relations) + "\n")
    (place / "vocabulary" / "non_padded_namespaces.txt").write_text("*labels\n*tags\n")
    torch.manual_seed(seed)
    with (
        patch("radgraph.radgraph.torch.load", lambda *_, **__: None),
        patch.object(DyGIE, "load_state_dict", lambda *_, **__: None),
    ):
        model = RadGraph(model_type=archive, model_cache_dir=str(folder), cuda=-1).model
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and "_embedder" not in name:
                value.normal_(std=0.5)
            if name.endswith("bias") and value.numel() == len(labels) - 1:
                value.fill_(-6.0)  # entities are rare
            if name.endswith("bias") and "_relation_scorers" in name:
                value.fill_(3.0)  # relations are not
    torch.save(model.state_dict(), place / "weights.th")
    return folder
