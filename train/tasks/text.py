"""Text classification with any transformers model that has a sequence-classification head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cluster.errors import InputError
from train.objective import Classes
from train.tasks import pretrained


class TextClassification:
    """One text, or a pair of texts, to one of a set of labels."""

    objective = Classes

    def setup(
        self, folder: Path, *, labels: list[str], from_scratch: bool, seed: int, max_length: int
    ) -> torch.nn.Module:
        """The model to train and, kept here, its tokenizer. Raises InputError where the folder does not fit."""
        auto = pretrained.auto("AutoModelForSequenceClassification")
        self.tokenizer = pretrained.processor("AutoTokenizer", folder)
        config = pretrained.config(folder, labels, model=auto, task="text-classification")
        if self.tokenizer.pad_token is None:
            if self.tokenizer.eos_token is None:
                raise InputError(f"model: {folder}: the tokenizer has neither a padding nor an end token; add one")
            self.tokenizer.pad_token = self.tokenizer.eos_token
        config.pad_token_id = self.tokenizer.pad_token_id
        # What the model was trained on it is also evaluated and served on: the limit is saved with the tokenizer.
        self.tokenizer.model_max_length = min(max_length, _limit(self.tokenizer, config))
        return pretrained.model(auto, folder, config, from_scratch=from_scratch, seed=seed)

    def load(self, folder: Path) -> torch.nn.Module:
        """A finished model, ready to be evaluated."""
        auto = pretrained.auto("AutoModelForSequenceClassification")
        self.tokenizer = pretrained.processor("AutoTokenizer", folder)
        return pretrained.finished(auto, folder)

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows of `text`, perhaps `text_pair`, and `label` as one batch padded to its longest: [rows, tokens]."""
        pairs = [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None
        batch = self.tokenizer([row["text"] for row in rows], pairs, padding=True, truncation=True, return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["label"] for row in rows])}

    def save(self, model: Any, folder: Path) -> None:
        """The Hugging Face layout: weights as safetensors, config with the labels, tokenizer."""
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def _limit(tokenizer: Any, config: Any) -> int:
    """The longest input in tokens. A tokenizer that does not know says 1e30; then the positions of the model count,
    two fewer because RoBERTa's kin start to count after the padding's."""
    if tokenizer.model_max_length < 1_000_000:
        return tokenizer.model_max_length
    return (getattr(config, "max_position_embeddings", None) or 1_000_002) - 2
