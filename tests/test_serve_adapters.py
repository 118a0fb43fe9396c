"""Adapters from anyone: what is taken, and what is refused before vLLM sees it."""

import json
import shutil
from pathlib import Path

import llm_served_tiny as tiny
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cluster.errors import InputError
from serve import adapters


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    base = tiny.llama(root / "base")
    return {"base": base, "good": tiny.adapter(base, root / "good"), "wider": tiny.llama(root / "wider", hidden=192)}


@pytest.fixture
def copy(folders, tmp_path):
    """Copies of the good adapter, with the configuration changed, or the tensors."""

    def make(*, tensors=None, **config) -> Path:
        folder = Path(shutil.copytree(folders["good"], tmp_path / f"copy{len(list(tmp_path.iterdir()))}"))
        file = folder / adapters.CONFIG
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
        if tensors is not None:
            save_file(tensors(load_file(folder / adapters.WEIGHTS)), folder / adapters.WEIGHTS)
        return folder

    return make


def test_what_peft_saves_is_taken(folders):
    adapter = adapters.inspect(folders["good"], max_rank=16)
    assert (adapter.rank, len(adapter.shapes)) == (8, 6)
    assert adapter.shapes["base_model.model.model.layers.0.mlp.down_proj"] == (256, 128)
    adapters.check_fit(adapter, folders["base"])
    assert adapters.is_adapter(folders["good"])
    assert not adapters.is_adapter(folders["base"])


def test_another_models_adapter_does_not_fit(folders, copy):
    with pytest.raises(InputError, match=r"made for another model: .*_proj wants"):
        adapters.check_fit(adapters.inspect(folders["good"], max_rank=16), folders["wider"])
    deeper = copy(tensors=lambda found: {name.replace("layers.1.", "layers.7."): one for name, one in found.items()})
    with pytest.raises(InputError, match=r"layers\.7\..* has no such weight"):
        adapters.check_fit(adapters.inspect(deeper, max_rank=16), folders["base"])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"r": 32}, "r: 32 is more than serve.llm.max_lora_rank: 16"),
        ({"r": 4}, "has rank 8, and adapter_config.json says r: 4"),
        ({"r": True}, "r: True is no rank"),
        ({"r": "8"}, "r: '8' is no rank"),
        ({"r": 0}, "r: 0 is no rank"),
        ({"peft_type": "IA3"}, "peft_type: 'IA3' is not served"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias: 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"target_modules": ".*(a+)+$"}, "write a list of module names"),
        ({"target_modules": []}, "write a list of module names"),
        ({"target_modules": ["q_proj", "(a+)+"]}, "write a list of module names"),
        ({"target_modules": ["q"] * 1000}, "write a list of module names"),
    ],
)
def test_a_configuration_that_is_not_plain_is_refused(copy, config, words):
    with pytest.raises(InputError) as caught:
        adapters.inspect(copy(**config), max_rank=16)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_a_loras_are_refused(copy):
    def extra(name, shape):
        return lambda found: {**found, name: np.zeros(shape, np.float32)}

    module = "base_model.model.model.layers.0.self_attn.k_proj"
    for change, words in (
        (extra("base_model.model.lm_head.weight", (4, 4)), "no matrix of a plain LoRA"),
        (extra(f"{module}.lora_A.weight", (8,)), "no matrix of a plain LoRA"),
        (extra(f"{module}.lora_A.weight", (8, 128)), "one of its two matrices only"),
        (extra(f"{module}.lora_A.weight", (9, 128)), "has rank 9"),
        (lambda found: {}, "no weights in it"),
    ):
        with pytest.raises(InputError, match=words):
            adapters.inspect(copy(tensors=change), max_rank=16)


def test_files_that_are_missing_cut_or_pickled_are_refused(copy):
    cut = copy()
    content = (cut / adapters.WEIGHTS).read_bytes()
    (cut / adapters.WEIGHTS).write_bytes(content[:5000])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        adapters.inspect(cut, max_rank=16)
    (cut / adapters.WEIGHTS).rename(cut / "adapter_model.bin")
    with pytest.raises(InputError, match="pickles are never loaded"):
        adapters.inspect(cut, max_rank=16)
    for text in ("[]", "{", "[" * 100_000, " " * (1 << 20) + "{}"):
        (cut / adapters.CONFIG).write_text(text)
        with pytest.raises(InputError, match="no JSON object"):
            adapters.inspect(cut, max_rank=16)
    (cut / adapters.CONFIG).unlink()
    with pytest.raises(InputError, match="No such file"):
        adapters.inspect(cut, max_rank=16)


def test_one_that_is_too_large_is_not_opened(copy):
    folder = copy()
    with open(folder / adapters.WEIGHTS, "r+b") as file:
        file.truncate(adapters.MAX_BYTES + 1)  # sparse: no disk is used
    with pytest.raises(InputError, match="at most for an adapter"):
        adapters.inspect(folder, max_rank=16)
