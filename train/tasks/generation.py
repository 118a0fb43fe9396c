"""Text generation with any causal language model of transformers: all weights, or low-rank adapters beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from cluster import weights
from cluster.errors import InputError
from cluster.spec import Lora
from train.objective import IGNORED, Tokens
from train.tasks import pretrained
from train.tasks.spans import encode

ADAPTER = "adapter_config.json"
BASE = "shoal.json"  # beside an adapter: {"base": the file's `model`, "base_digest": cluster.weights.digest of it}


class TextGeneration:
    """Texts, prompts with completions, or chats; see train.tasks.spans for what of them is learned."""

    objective = Tokens

    def setup(
        self,
        folder: Path,
        *,
        labels: list[str],
        from_scratch: bool,
        seed: int,
        max_length: int,
        lora: Lora | None = None,
        base: str = "",
    ) -> torch.nn.Module:
        """The model to train and, kept here, its tokenizer; `base` is what the file calls the model, for an adapter to
        name. Raises InputError where the folder does not fit."""
        if lora is not None and from_scratch:
            raise InputError("train.lora: adapters stand beside learned weights; leave out it, or train.from_scratch")
        auto = pretrained.auto("AutoModelForCausalLM")
        self._open(folder, max_length)
        config = pretrained.config(folder, None, model=auto, task="text-generation")
        self._limit(config)
        model = pretrained.model(auto, folder, config, from_scratch=from_scratch, seed=seed)
        model.config.use_cache = False  # past keys and values are for generating
        if lora is None:
            return model
        self._base = {"base": base or str(folder), "base_digest": weights.digest(folder)}
        return _adapted(model, lora, seed)

    def load(self, folder: Path, *, base: Path | None = None, max_length: int | None = None) -> torch.nn.Module:
        """A finished model, ready to be evaluated. An adapter's `base` is the folder of the model that it was trained
        on. Raises InputError where that is missing or another."""
        self._open(folder, max_length or 1 << 20)
        auto = pretrained.auto("AutoModelForCausalLM")
        if not (folder / ADAPTER).is_file():
            model = pretrained.finished(auto, folder)
        else:
            model = _loaded(folder, base, auto)
        self._limit(model.config)
        return model

    def _open(self, folder: Path, max_length: int) -> None:
        self.tokenizer = pretrained.processor("AutoTokenizer", folder)
        self.max_length = max_length
        # Padding is masked and never learned: any token does.
        self._padding = self.tokenizer.pad_token_id or 0

    def _limit(self, config: Any) -> None:
        self.max_length = min(self.max_length, getattr(config, "max_position_embeddings", None) or self.max_length)

    def targets(self, rows: list[dict[str, Any]]) -> list[int]:
        """How many tokens of each row are learned; 0 where its answer is cut off entirely."""
        return [sum(encode(row, self.tokenizer, max_length=self.max_length)[1]) for row in rows]

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch, padded on the right to its longest row: input_ids, attention_mask, labels [rows, tokens]. A label
        is its token's own id, IGNORED where it is not learned."""
        encoded = [encode(row, self.tokenizer, max_length=self.max_length) for row in rows]
        shape = len(rows), max(1, *(len(ids) for ids, _ in encoded))
        input_ids = torch.full(shape, self._padding)
        attention_mask = torch.zeros(shape, dtype=torch.int64)
        labels = torch.full(shape, IGNORED)
        for place, (ids, learned) in enumerate(encoded):
            tokens = torch.tensor(ids, dtype=torch.int64)
            input_ids[place, : len(ids)] = tokens
            attention_mask[place, : len(ids)] = 1
            labels[place, : len(ids)] = torch.where(torch.tensor(learned, dtype=torch.bool), tokens, IGNORED)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def save(self, model: Any, folder: Path) -> None:
        """The Hugging Face layout with the tokenizer and its chat template. Of adapters peft's layout, which names the
        base as the file does, and the base's digest beside it."""
        if hasattr(model, "peft_config"):
            for one in model.peft_config.values():
                one.base_model_name_or_path = self._base["base"]
                one.inference_mode = True
            # Asked to find out by itself whether embeddings have grown, peft would ask the Hub.
            model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
            (folder / "README.md").unlink(missing_ok=True)  # a form that nobody has filled in
            (folder / BASE).write_text(json.dumps(self._base, indent=1), encoding="utf-8")
        else:
            model.config.use_cache = True
            model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def _adapted(model: Any, lora: Lora, seed: int) -> Any:
    """Adapters beside frozen weights, random by the seed; they change nothing until the first step."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a float scales as well
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules or "all-linear",
    )
    torch.manual_seed(seed)
    linear = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if _linear(part)} - {"lm_head"})
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise InputError(
            f"train.lora.target_modules: {', '.join(lora.target_modules)}: {str(error).splitlines()[0][:200]}; it has "
            f"{', '.join(linear)}"
        ) from None
    if unknown := [name for name in lora.target_modules if not _adapts(adapted, name)]:
        raise InputError(f"train.lora.target_modules: no {', '.join(unknown)} in the model; it has {', '.join(linear)}")
    return adapted


def _linear(part: torch.nn.Module) -> bool:
    return isinstance(part, torch.nn.Linear) or type(part).__name__ == "Conv1D"


def _adapts(model: Any, name: str) -> bool:
    return any(key.endswith(f"{name}.lora_A") for key, _ in model.named_modules())


def _loaded(folder: Path, base: Path | None, auto: Any) -> Any:
    """An adapter on its base, in evaluation mode. Raises InputError."""
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").is_file():
        raise InputError(f"{folder}: no adapter_model.safetensors in it; pickled adapters are never loaded")
    try:
        told = json.loads((folder / BASE).read_text(encoding="utf-8"))
        name, digest = str(told["base"]), str(told["base_digest"])
    except (OSError, ValueError, KeyError, TypeError):
        name, digest = "its base model", ""
    if base is None:
        raise InputError(f"{folder}: an adapter of {name}, which is needed to load it; name that as `model`")
    if digest and weights.digest(base) != digest:
        raise InputError(
            f"model: {base} is not what the adapter in {folder} was trained on ({name}); give that, or tune again"
        )
    try:
        return PeftModel.from_pretrained(pretrained.finished(auto, base), str(folder)).eval()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: {(str(error).strip() or type(error).__name__).splitlines()[0][:300]}") from None
