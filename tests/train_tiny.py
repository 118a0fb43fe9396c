"""Tiny real models and data for the tests of training: a word-level BERT, a ViT, and rows that can be learned."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from cluster.spec import Spec
from train.data import Prepared

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"good{i}" for i in range(20)), *(f"bad{i}" for i in range(20))]


def bert(folder: Path, *, dropout: float = 0.0, weights: bool = True, labels: int = 2) -> Path:
    """A BERT folder of about 10,000 parameters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=40,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    config.num_labels = labels
    if weights:
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    return folder


def vit(folder: Path) -> Path:
    """A ViT folder for 8 x 8 grey pictures, without weights."""
    from transformers import ViTConfig, ViTImageProcessorPil

    ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        architectures=["ViTForImageClassification"],
    ).save_pretrained(folder)
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    processor.save_pretrained(folder)
    return folder


def texts(count: int, *, seed: int, noise: float = 0.1) -> tuple[list[str], list[int]]:
    """Sentences of good and bad words; a label is what most words say, and now and then the opposite."""
    generator = np.random.default_rng(seed)
    sentences, labels = [], []
    for _ in range(count):
        label = int(generator.random() < 0.35)
        words = [
            f"{'bad' if (generator.random() < 0.8) == bool(label) else 'good'}{generator.integers(20)}"
            for _ in range(generator.integers(3, 12))
        ]
        sentences.append(" ".join(words))
        labels.append(label if generator.random() > noise else 1 - label)
    return sentences, labels


def text_data(folder: Path, *, rows: int = 60, held_out: int = 20, noise: float = 0.1) -> Prepared:
    """Prepared rows of `texts`."""
    tables = {}
    for split, count, seed in (("train", rows, 1), ("validation", held_out, 2)):
        sentences, labels = texts(count, seed=seed, noise=noise)
        tables[split] = pa.table({"text": sentences, "label": pa.array(labels, pa.int64())})
    return write(folder, tables, ["bad", "good"])


def digits_data(folder: Path, *, rows: int, held_out: int) -> Prepared:
    """scikit-learn's digits as PNG files."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))[: rows + held_out]
    images = []
    for place in order:
        stream = io.BytesIO()
        Image.fromarray((digits.images[place] * 15.9).astype(np.uint8)).save(stream, "PNG")
        images.append(stream.getvalue())
    table = pa.table({"image": pa.array(images, pa.large_binary()), "label": pa.array(digits.target[order])})
    return write(folder, {"train": table[:rows], "validation": table[rows:]}, [str(i) for i in range(10)])


def iris_data(folder: Path) -> Prepared:
    """Iris with a categorical column that says nothing and some cells missing."""
    from sklearn.datasets import load_iris

    iris: Any = load_iris()
    order = np.random.default_rng(0).permutation(150)
    columns: dict[str, Any] = {f"f{i}": pa.array(iris.data[order, i]) for i in range(4)}
    columns["f0"] = pa.array([None if i % 10 == 0 else v for i, v in enumerate(iris.data[order, 0])])
    columns["place"] = pa.array([None if i % 7 == 0 else "north" if i % 2 else "south" for i in range(150)])
    table = pa.table({**columns, "label": pa.array(iris.target[order].astype(np.int64))})
    features = {**{f"f{i}": "numeric" for i in range(4)}, "place": "categorical"}
    return write(folder, {"train": table[:100], "validation": table[100:]}, list(iris.target_names), features=features)


def write(folder: Path, tables: dict[str, pa.Table], labels: list[str], **report: Any) -> Prepared:
    folder.mkdir(parents=True, exist_ok=True)
    for split, table in tables.items():
        parquet.write_table(table, folder / f"{split}.parquet")
    rows = {split: len(table) for split, table in tables.items()}
    sources = {"train": {"name": "tiny.csv", "sha256": "ab" * 32}}
    content = {"digest": folder.name, "labels": [str(label) for label in labels], "rows": rows, "sources": sources}
    content |= report
    (folder / "data.json").write_text(json.dumps(content))
    prepared = Prepared.open(folder)
    assert prepared is not None
    return prepared


def spec(model: Path | str, *, task: str = "text-classification", name: str = "tiny", **train: Any) -> Spec:
    return Spec.model_validate({"name": name, "task": task, "model": str(model), "train": train})
