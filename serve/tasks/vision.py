"""Picture tasks: a replica's four steps from a request's bytes to its answer."""

from __future__ import annotations

import binascii
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from cluster.errors import InputError, TooLarge
from cluster.tasks import TASKS
from serve.asgi import read_json
from serve.tasks.classes import Function, Parameters, natural_function, parameters, ranked

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 50_000_000
# Formats that decode in plain memory; Pillow knows forty more, some of which start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO")


class ImageClassification:
    """Any AutoModelForImageClassification folder."""

    wants = TASKS["image-classification"].request
    best_five = Parameters(top_k=5)
    pads = False

    def setup(self, folder: Path, device: str, dtype: str = "auto") -> None:
        """Load a model folder and run it once. Raises InputError where it holds no sound safetensors weights."""
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        from serve import torch_model

        self.model = model = torch_model.load(AutoModelForImageClassification, folder, device=device, dtype=dtype)
        self.processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        self.device = device
        self.labels = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
        self.natural: Function = natural_function(model.config)
        trial = [self._pixels(Image.linear_gradient("L").convert("RGB"))]
        torch_model.quicken(model, lambda: np.stack(self.predict(trial)))
        self.predict(trial)
        self.bytes = torch_model.size(model)

    def decode_request(
        self, body: bytes, content_type: str, query: Mapping[str, str]
    ) -> tuple[list[torch.Tensor], Parameters]:
        """The picture as one tensor of shape (channels, height, width), and how to show the scores. Pixels are let go
        here, so that waiting requests hold what the model takes and no more. Raises InputError, TooLarge."""
        if not body:
            raise InputError(f"the request is empty; this model takes {self.wants}")
        # Clients send raw bytes without a content type: no picture starts with a brace.
        if body.lstrip()[:1] != b"{":
            return [self._pixels(_open(body, wants=self.wants))], _from_query(query, self.best_five)
        value = read_json(body, wants=self.wants)
        if not isinstance(value.get("inputs"), str):
            raise InputError(f"the request has no `inputs` in base64; this model takes {self.wants}")
        text = value["inputs"]
        if text.startswith("data:"):
            text = text.partition(",")[2]
        try:
            picture = binascii.a2b_base64(text, strict_mode=True)
        except ValueError:
            raise InputError(f"inputs: not base64; this model takes {self.wants}") from None
        return [self._pixels(_open(picture, wants=self.wants))], parameters(
            value.get("parameters"), default=self.best_five
        )

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


def _open(data: bytes, *, wants: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            # Only the header is read yet: a bomb is small until it is unpacked.
            if picture.width * picture.height <= MAX_PIXELS:
                return ImageOps.exif_transpose(picture).convert("RGB")
    except Image.DecompressionBombError:
        pass  # Pillow's own limit, above ours
    except Exception:
        # Other people's bytes: Pillow raises what each format's reader happens to trip over.
        raise InputError(f"the request is no picture that can be read; this model takes {wants}") from None
    raise TooLarge(f"the picture is too large; {MAX_PIXELS} pixels at most")


def _from_query(query: Mapping[str, str], default: Parameters) -> Parameters:
    """Parameters of a raw request, from its query string: JS clients can send them nowhere else."""
    value: dict[str, Any] = {name: query[name] for name in ("top_k", "function_to_apply") if name in query}
    if value.get("top_k", "").isdecimal():
        value["top_k"] = int(value["top_k"])
    return parameters(value, default=default)
