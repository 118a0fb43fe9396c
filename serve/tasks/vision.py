"""Picture tasks: a replica's four steps from a request's bytes to its answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from cluster import pictures
from cluster.errors import InputError, TooLarge
from cluster.tasks import TASKS
from serve.tasks.classes import Function, Parameters, natural_function, parameters, ranked
from serve.tasks.content import Reader

if TYPE_CHECKING:
    import torch


class ImageClassification:
    """Any AutoModelForImageClassification folder."""

    wants = TASKS["image-classification"].request
    reader = Reader(wants, ("inputs", "image"))
    best_five = Parameters(top_k=5)
    max_pixels = 50_000_000  # a replica sets it to inputs.max_pixels
    inline_bytes = 0  # a few bytes can be many pixels: never unpacked where other requests wait for it
    pads = False

    def setup(self, folder: Path, device: str, dtype: str = "auto") -> None:
        """Load a model folder and run it once. Raises InputError where it holds no sound safetensors weights."""
        from serve import lean, torch_model

        lean.import_transformers()
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        self.model = model = torch_model.load(AutoModelForImageClassification, folder, device=device, dtype=dtype)
        self.processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        self.device = device
        self.labels = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
        self.natural: Function = natural_function(model.config)
        self.mode = pictures.mode_of(model.config)
        trial = [self._pixels(Image.linear_gradient("L").convert(self.mode))]
        torch_model.quicken(model, lambda: np.stack(self.predict(trial)))
        self.predict(trial)
        self.bytes = torch_model.size(model)

    def decode_request(
        self, body: bytes, content_type: str, query: Mapping[str, str]
    ) -> tuple[list[torch.Tensor], Parameters]:
        """The picture as one tensor of shape (channels, height, width), and how to show the scores. Pixels are let go
        here, so that waiting requests hold what the model takes and no more. Raises InputError, TooLarge."""
        content = self.reader.bytes(body, content_type, query)
        chosen = parameters(content.parameters, default=self.best_five)
        try:
            picture = pictures.decode(
                content.file or b"", self.mode, formats=pictures.WEB_FORMATS, max_pixels=self.max_pixels
            )
        except TooLarge:
            raise
        except InputError as error:
            raise InputError(f"the request is {error.message}; this model takes {self.wants}") from None
        return [self._pixels(picture)], chosen

    def length(self, one: torch.Tensor) -> int:
        """Tokens: patches of 16 x 16 pixels."""
        return max(1, one.shape[-1] * one.shape[-2] // 256)

    def predict(self, batch: list[torch.Tensor]) -> list[np.ndarray]:
        """Logits, each of shape (labels,), in the order of the batch."""
        import torch

        with torch.inference_mode():
            pixels = torch.stack(batch).to(self.device, self.model.dtype)
            logits = self.model(pixel_values=pixels).logits
        return list(logits.float().cpu().numpy())

    def encode_response(self, outputs: list[np.ndarray], chosen: Parameters) -> list[dict[str, Any]]:
        """[{label, score}] of the one picture, best first."""
        return ranked(outputs[0], self.labels, chosen, natural=self.natural)

    def _pixels(self, picture: Image.Image) -> torch.Tensor:
        return self.processor(images=picture, return_tensors="pt")["pixel_values"][0]
