"""Image classification with any transformers model that has an image-classification head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cluster import pictures
from cluster.errors import InputError
from train.data.pictures import FORMATS, MAX_PIXELS
from train.objective import Classes
from train.tasks import pretrained


class ImageClassification:
    """One picture to one of a set of labels."""

    objective = Classes

    def setup(
        self, folder: Path, *, labels: list[str], from_scratch: bool, seed: int, max_length: int
    ) -> torch.nn.Module:
        """The model to train and, kept here, its image processor. `max_length` is the texts' and means nothing here.

        Raises InputError where the folder does not fit the task.
        """
        auto = pretrained.auto("AutoModelForImageClassification")
        self.processor = pretrained.processor("AutoImageProcessor", folder)
        config = pretrained.config(folder, labels, model=auto, task="image-classification")
        self.mode = pictures.mode_of(config)
        return pretrained.model(auto, folder, config, from_scratch=from_scratch, seed=seed)

    def load(self, folder: Path) -> torch.nn.Module:
        """A finished model, ready to be evaluated."""
        auto = pretrained.auto("AutoModelForImageClassification")
        self.processor = pretrained.processor("AutoImageProcessor", folder)
        model = pretrained.finished(auto, folder)
        self.mode = pictures.mode_of(model.config)
        return model

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows of `image` (encoded bytes) and `label` as one batch: pixel_values [rows, channels, height, width]."""
        decoded = []
        for row in rows:
            try:
                decoded.append(pictures.decode(row["image"], self.mode, formats=FORMATS, max_pixels=MAX_PIXELS))
            except InputError as error:
                raise InputError(
                    f"data: a picture of {len(row['image'])} bytes cannot be decoded: {error.message}"
                ) from None
        batch = self.processor(decoded, return_tensors="pt")
        return {"pixel_values": batch["pixel_values"], "labels": torch.tensor([row["label"] for row in rows])}

    def save(self, model: Any, folder: Path) -> None:
        """The Hugging Face layout: weights as safetensors, config with the labels, image processor."""
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
