"""Text tasks: a replica's four steps from a request's bytes to its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import InputError, TooLarge
from cluster.tasks import TASKS
from serve.scaling import parts
from serve.tasks.classes import Function, Parameters, natural_function, parameters, ranked
from serve.tasks.content import Reader

MAX_INPUTS = 1024
# A character is a token at most, but for a few scripts; past this a text is cut before the tokenizer sees it, which
# would otherwise spend seconds on what truncation throws away.
_CHARACTERS_A_TOKEN = 64


@dataclass(frozen=True)
class Tokens:
    """A text as its model reads it: token ids, and which of two texts each belongs to, where the model asks. int32."""

    ids: np.ndarray
    types: np.ndarray | None


class TextClassification:
    """Any AutoModelForSequenceClassification folder."""

    pads = True

    wants = TASKS["text-classification"].request
    reader = Reader(wants)
    everything = Parameters()

    def setup(self, folder: Path, device: str, dtype: str = "auto") -> None:
        """Load a model folder and run it once. Raises InputError where it holds no sound safetensors weights."""
        from serve import lean, torch_model

        lean.import_transformers()
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        parts.mark("imports")
        self.model = torch_model.load(AutoModelForSequenceClassification, folder, device=device, dtype=dtype)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        self.device = device
        config = self.model.config
        self.labels = [str(config.id2label[index]) for index in range(config.num_labels)]
        self.natural: Function = natural_function(config)
        self.max_length = _max_length(self.tokenizer, self.model)
        self.wants_types = "token_type_ids" in self.tokenizer.model_input_names
        # Asked directly the fast tokenizer costs half; its settings belong to this handler alone.
        self.fast = self.tokenizer.backend_tokenizer if self.tokenizer.is_fast else None
        if self.fast is not None:
            self.fast.enable_truncation(self.max_length, direction=self.tokenizer.truncation_side)
            self.fast.no_padding()
        parts.mark("weights")
        trial = self._tokens([("warm up " * 8, None)] * 4)
        torch_model.quicken(self.model, lambda: np.stack(self.predict(trial)))
        self.predict(trial)
        self.bytes = torch_model.size(self.model)
        parts.mark("warm")

    def decode_request(
        self, body: bytes, content_type: str, query: Mapping[str, str]
    ) -> tuple[list[Tokens], Parameters]:
        """The tokens of each text, or pair of texts, and how to show the scores. Raises InputError."""
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
        return self._tokens([self._pair(one) for one in inputs]), chosen

    def length(self, one: Tokens) -> int:
        """Tokens."""
        return len(one.ids)

    def predict(self, batch: list[Tokens]) -> list[np.ndarray]:
        """Logits, each of shape (labels,), in the order of the batch."""
        import torch

        with torch.inference_mode():
            logits = self.model(**self._padded(batch)).logits
            return list(logits.float().cpu().numpy())

    def encode_response(self, outputs: list[np.ndarray], chosen: Parameters) -> list[list[dict[str, Any]]]:
        """[[{label, score}]]: a list for each input, best first. Both the Python and the JS client read this shape."""
        return [ranked(logits, self.labels, chosen, natural=self.natural) for logits in outputs]

    def _tokens(self, pairs: list[tuple[str, str | None]]) -> list[Tokens]:
        """Each pair's tokens, cut to what the model takes."""
        texts = [text if second is None else (text, second) for text, second in pairs]
        if self.fast is not None:
            found = [(one.ids, one.type_ids) for one in self.fast.encode_batch(texts)]
        else:
            encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length, return_token_type_ids=True)
            found = list(zip(encoded["input_ids"], encoded["token_type_ids"]))
        return [
            Tokens(np.array(ids, np.int32), np.array(types, np.int32) if self.wants_types else None)
            for ids, types in found
        ]

    def _padded(self, batch: list[Tokens]) -> dict[str, Any]:
        """The model's arguments: tensors of shape (batch, longest). Where all are of one length there is no mask, and
        attention is spared it."""
        import torch

        longest = max(len(one.ids) for one in batch)
        left = self.tokenizer.padding_side == "left"
        spans = [slice(longest - len(one.ids), None) if left else slice(len(one.ids)) for one in batch]

        def rows(values: list[np.ndarray], fill: int) -> torch.Tensor:
            array = np.full((len(batch), longest), fill, np.int64)
            for row, span, value in zip(array, spans, values):
                row[span] = value
            return torch.from_numpy(array).to(self.device)

        ids = [one.ids for one in batch]
        padding = self.tokenizer.pad_token_id
        if padding is None and any(len(one) != longest for one in ids):
            raise ValueError("its tokenizer has no padding token")
        given = {"input_ids": rows(ids, padding or 0)}
        if any(len(one) != longest for one in ids):
            given["attention_mask"] = rows([np.ones(len(one), np.int64) for one in ids], 0)
        if self.wants_types:
            types = [one.types for one in batch if one.types is not None]
            given["token_type_ids"] = rows(types, self.tokenizer.pad_token_type_id)
        return given

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
