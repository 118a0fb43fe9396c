"""Text tasks: a replica's four steps from a request's bytes to its answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cluster import weights
from cluster.errors import InputError, TooLarge
from cluster.tasks import TASKS
from serve.tasks.classes import Function, Parameters, natural_function, parameters, ranked
from serve.tasks.content import Reader

MAX_INPUTS = 1024
# A character is a token at most, but for a few scripts; past this a text is cut before the tokenizer sees it, which
# would otherwise spend seconds on what truncation throws away.
_CHARACTERS_A_TOKEN = 64


class TextClassification:
    """Any AutoModelForSequenceClassification folder."""

    wants = TASKS["text-classification"].request
    reader = Reader(wants)
    everything = Parameters()

    def setup(self, folder: Path, device: str) -> None:
        """Load a model folder and run it once. Raises InputError where it holds no sound safetensors weights."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        weights.inspect(folder)
        safe: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, **safe
        )
        self.model = model.to(device).eval()
        self.device = device
        self.labels = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
        self.natural: Function = natural_function(model.config)
        self.max_length = _max_length(self.tokenizer, model)
        self.predict([("warm up", None)])

    def decode_request(
        self, body: bytes, content_type: str, query: Mapping[str, str]
    ) -> tuple[list[tuple[str, str | None]], Parameters]:
        """One (text, second text or None) for each input, and how to show the scores. Raises InputError."""
        content = self.reader.json(body, content_type, query)
        value = content.value
        if not isinstance(value, dict) or "inputs" not in value:
            raise InputError(f"the request has no `inputs`; this model takes {self.wants}")
        chosen = parameters(content.parameters, default=self.everything)
        inputs = value["inputs"] if isinstance(value["inputs"], list) else [value["inputs"]]
        if not inputs:
            raise InputError(f"inputs: the list is empty; this model takes {self.wants}")
        if len(inputs) > MAX_INPUTS:
            raise TooLarge(f"inputs: {len(inputs)} texts; send {MAX_INPUTS} at most in a request")
        return [self._pair(one) for one in inputs], chosen

    def predict(self, batch: list[tuple[str, str | None]]) -> list[np.ndarray]:
        """Logits, each of shape (labels,), in the order of the batch."""
        import torch

        texts = [text if second is None else (text, second) for text, second in batch]
        encoded = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        with torch.inference_mode():
            logits = self.model(**encoded.to(self.device)).logits
        return list(logits.float().cpu().numpy())

    def encode_response(self, outputs: list[np.ndarray], chosen: Parameters) -> list[list[dict[str, Any]]]:
        """[[{label, score}]]: a list for each input, best first. Both the Python and the JS client read this shape."""
        return [ranked(logits, self.labels, chosen, natural=self.natural) for logits in outputs]

    def _pair(self, value: Any) -> tuple[str, str | None]:
        if isinstance(value, str):
            return self._text(value), None
        if isinstance(value, dict) and isinstance(value.get("text"), str):
            second = value.get("text_pair")
            if second is None:
                return self._text(value["text"]), None
            if isinstance(second, str):
                return self._text(value["text"]), self._text(second)
        raise InputError(f"inputs: {value!r:.80} is no text and no {{text, text_pair}}; this model takes {self.wants}")

    def _text(self, text: str) -> str:
        text = text[: self.max_length * _CHARACTERS_A_TOKEN]
        # JSON can hold half a surrogate pair, which no tokenizer takes: alone it must fail, not with its batch.
        return text.encode("utf-8", errors="replace").decode("utf-8") if not text.isascii() else text


def _max_length(tokenizer: Any, model: Any) -> int:
    """Tokens a model takes: what its tokenizer says, and no more than it has positions for."""
    import torch

    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 1_000_000]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa and its kin count positions from behind the padding index.
            taken = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - taken)
    return int(min(limits))
