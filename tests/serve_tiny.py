"""Tiny real models for the tests of serving, in the folders that training leaves: BERT, ViT, a forest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cluster.skops_file import dump_skops

_LETTERS = [chr(code) for code in range(33, 127)]


def bert(
    folder: Path, *, labels: tuple[str, ...] = ("ham", "spam"), seed: int = 1, hidden: int = 32, layers: int = 2
) -> Path:
    """A BERT over characters whose scores depend on every one of them."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    pieces = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * hidden,
        initializer_range=0.4 if hidden < 100 else 0.05,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def bert_scores(folder: Path, text: str, second: str | None = None) -> dict[str, float]:
    """What the model says, computed here and directly."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    encoded = AutoTokenizer.from_pretrained(folder)(text, second, truncation=True, max_length=512, return_tensors="pt")
    with torch.inference_mode():
        scores = model(**encoded).logits[0].softmax(-1).tolist()
    return {model.config.id2label[index]: score for index, score in enumerate(scores)}


def vit(folder: Path, *, seed: int = 1) -> Path:
    """A ViT on 32 x 32 pictures with seven labels."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.4,
        id2label={index: f"class{index}" for index in range(7)},
        label2id={f"class{index}": index for index in range(7)},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


def vit_scores(folder: Path, picture: Any) -> dict[str, float]:
    """What the model says, computed here and directly."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    pixels = AutoImageProcessor.from_pretrained(folder)(images=picture.convert("RGB"), return_tensors="pt")
    with torch.inference_mode():
        scores = model(**pixels).logits[0].softmax(-1).tolist()
    return {model.config.id2label[index]: score for index, score in enumerate(scores)}


def picture(seed: int = 0, size: tuple[int, int] = (48, 40)) -> Any:
    from PIL import Image

    noise = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def table(folder: Path) -> Path:
    """A forest over iris and a made-up categorical column that decides alone between two of the flowers."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder

    frame, target = iris()
    prepare = ColumnTransformer(
        [
            ("numeric", SimpleImputer(), ["sepal", "petal"]),
            ("categorical", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["garden"]),
        ]
    )
    pipe = Pipeline([("prepare", prepare), ("model", RandomForestClassifier(20, random_state=0))]).fit(frame, target)
    folder.mkdir(parents=True, exist_ok=True)
    dump_skops(pipe, folder / "model.skops")
    about = {
        "task": "tabular-classification",
        "labels": ["setosa", "versicolor", "virginica"],
        "features": {"sepal": "numeric", "petal": "numeric", "garden": "categorical"},
    }
    (folder / "config.json").write_text(json.dumps({"shoal": about}))
    return folder


def iris() -> tuple[Any, Any]:
    """Rows with sepal and petal (cm) and garden (north, south), and the flowers' numbers."""
    import pandas as pd
    from sklearn.datasets import load_iris

    data: Any = load_iris()
    garden = np.where(data.target == 1, "north", "south").astype(object)
    frame = pd.DataFrame({"sepal": data.data[:, 0], "petal": data.data[:, 2], "garden": garden})
    return frame, data.target


def replicas(way, url, *applications):
    """Let a gateway in this process know of two replicas at `url` for each application."""
    address = url.removeprefix("http://")
    way.directory.update(
        {"id": f"{name}{number}", "application": name, "address": address, "state": "up", "facts": {}, "beat": 1}
        for name in applications
        for number in range(2)
    )
