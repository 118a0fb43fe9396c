"""Learning to write: which tokens are learned, exact losses, adapters, with any number of workers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import llm_tiny
import pytest
from test_train_loop import Alone, curve, events, run

from cluster.errors import InputError
from cluster.spec import Spec
from train.data import Prepared, prepare


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llm_tiny.llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("data")
    llm_tiny.lines(folder / "train.jsonl", llm_tiny.chats(26, first=100))
    return prepare(spec_of(folder, {"train": "train.jsonl"}), into=folder / "home")


def spec_of(folder: Path, data: dict[str, Any], *, model: str = "./llama", **sections: Any) -> Spec:
    tree = {"name": "tiny", "task": "text-generation", "model": model, "data": data, **sections}
    return Spec.model_validate(tree).at(folder)


def trained(model: Path, **train: Any) -> Spec:
    settings = {"batch_size": 5, "epochs": 1, "learning_rate": 1e-3, "max_length": 64, **train}
    return spec_of(model, {}, model=str(model), train=settings)


def opened(model: Path, *, max_length: int = 64, **options: Any) -> tuple[Any, Any]:
    from train.tasks.generation import TextGeneration

    task = TextGeneration()
    settings = {"labels": [], "from_scratch": False, "seed": 1, "max_length": max_length, **options}
    return task, task.setup(model, **settings)


def learned(task: Any, row: dict[str, Any]) -> tuple[str, str]:
    """All of a row as the model gets it, and what of it is learned, as text."""
    batch = task.collate([row])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    assert labels[labels != -100].tolist() == ids[labels != -100].tolist()
    return task.tokenizer.decode(ids), task.tokenizer.decode(ids[labels != -100])


def test_of_a_chat_only_the_assistant_is_learned(model: Path) -> None:
    task, _ = opened(model, max_length=500)
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yo"), ("user", "Bye"), ("assistant", "So long")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    whole, said = learned(task, row)
    assert whole == "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    assert said == "Yo<|im_end|>So long<|im_end|>"
    # Token by token: one for each byte and each special.
    labels = task.collate([row])["labels"][0].tolist()
    before = len("system\nBe brief.\nuser\nHi\nassistant\n") + 2 + 2 + 1
    assert [place for place, label in enumerate(labels) if label != -100][:3] == [before, before + 1, before + 2]
    assert labels[before : before + 3] == [*task.tokenizer("Yo").input_ids, task.tokenizer.eos_token_id]
    between = len("\nuser\nBye\nassistant\n") + 2 + 1
    assert labels[before + 3 : before + 3 + between] == [-100] * between
    assert labels[before + 3 + between] == task.tokenizer("S").input_ids[0]
    assert labels[-1] == -100  # the line break behind the end


def test_of_a_completion_all_and_the_end_is_learned_and_of_a_text_all_but_its_first_token(model: Path) -> None:
    task, _ = opened(model)
    assert learned(task, {"prompt": "2+2=", "completion": "4"}) == ("2+2=4<|im_end|>", "4<|im_end|>")
    assert learned(task, {"prompt": "", "completion": "4"}) == ("4<|im_end|>", "<|im_end|>")
    assert learned(task, {"text": "abc"}) == ("abc<|im_end|>", "bc<|im_end|>")


def test_a_batch_is_padded_to_its_longest_and_cut_to_max_length(model: Path) -> None:
    task, _ = opened(model, max_length=6)
    rows = [
        {"prompt": "ab", "completion": "c"},
        {"prompt": "abc", "completion": "defg"},
        {"prompt": "abcdefg", "completion": "h"},
    ]
    batch = task.collate(rows)
    assert batch["attention_mask"].tolist() == [[1] * 4 + [0] * 2, [1] * 6, [1] * 6]
    assert [(row != -100).tolist() for row in batch["labels"]] == [
        [False, False, True, True, False, False],
        [False, False, False, True, True, True],
        [False] * 6,
    ]
    assert task.targets(rows) == [2, 3, 0]


def test_templates_that_cannot_be_learned_from(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}
    bare, _ = opened(llm_tiny.llama(tmp_path / "bare", template=None))
    with pytest.raises(InputError, match=r"data: messages need a model with a chat template.* take an instruct model"):
        bare.collate([row])
    strict, _ = opened(llm_tiny.llama(tmp_path / "strict", template="{{ raise_exception('no chat today') }}"))
    with pytest.raises(InputError, match="template refuses the chat that begins 'Hi': no chat today"):
        strict.collate([row])
    odd, _ = opened(llm_tiny.llama(tmp_path / "odd", template="{% if add_generation_prompt %}X{% else %}Y{% endif %}"))
    with pytest.raises(InputError, match="does not write an answer where its own prompt for one ends"):
        odd.collate([row])


def test_a_template_that_rewrites_earlier_answers_is_learned_by_its_last(tmp_path: Path) -> None:
    forgetful = (
        "{% for m in messages %}{{ m['role'] + ':' }}"
        "{{ m['content'] if loop.last or m['role'] != 'assistant' else '...' }}{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    task, _ = opened(llm_tiny.llama(tmp_path / "m", template=forgetful))
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    whole, said = learned(task, {"messages": [{"role": role, "content": content} for role, content in turns]})
    assert whole == "user:a<|im_end|>assistant:...<|im_end|>user:c<|im_end|>assistant:d<|im_end|>"
    assert said == "d<|im_end|>"


def test_the_loss_is_the_mean_over_the_tokens_of_the_whole_batch(model: Path, data: Prepared, tmp_path: Path) -> None:
    import torch
    from pyarrow import parquet

    from train import batches

    spec = trained(model, gradient_accumulation_steps=2)
    run(spec, data, tmp_path)
    # The first step's batch, in one piece, by torch alone.
    task, net = opened(model)
    rows = parquet.read_table(data.file("train")).to_pylist()
    first = batches.batch_of(0, rows=len(rows), batch_size=5, seed=42)
    batch = task.collate([rows[place] for place in first])
    labels = batch.pop("labels")
    logits = net(**batch).logits
    counts = (labels[:, 1:] != -100).sum(1)
    assert len(set(counts.tolist())) > 1  # or a mean of means would do as well
    direct = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    assert curve(tmp_path)[1] == pytest.approx(direct.item(), rel=1e-5)
    # The held-out rows, after the last step.
    from transformers import AutoModelForCausalLM

    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert tuned.config.use_cache
    held = task.collate(parquet.read_table(data.file("validation")).to_pylist())
    labels = held.pop("labels")
    with torch.no_grad():
        logits = tuned(**held).logits
    direct = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    told = [event["metrics"] for event in events(tmp_path) if "validation/loss" in event.get("metrics", {})][-1]
    assert told["validation/loss"] == pytest.approx(direct.item(), rel=1e-4)
    assert told["validation/perplexity"] == pytest.approx(math.exp(direct.item()), rel=1e-4)
    right = (logits[:, :-1].argmax(-1) == labels[:, 1:]).sum().item() / (labels[:, 1:] != -100).sum().item()
    assert told["validation/token_accuracy"] == pytest.approx(right)
    assert "validation/accuracy" not in told


def test_it_learns(model: Path, data: Prepared, tmp_path: Path) -> None:
    metrics = run(trained(model, epochs=8, learning_rate=3e-3), data, tmp_path)
    assert curve(tmp_path)[1] == pytest.approx(math.log(259), abs=0.3)  # as good as a guess among 259 tokens
    assert metrics["validation/perplexity"] < 12


def test_answers_that_are_cut_off_are_told_and_all_of_them_refused(model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "x" * length, "completion": "yes"} for length in (1, 2, 3, 4, 5, 6, 7, 30, 40)]
    llm_tiny.lines(tmp_path / "rows.jsonl", rows)
    llm_tiny.lines(tmp_path / "held.jsonl", rows[:2])
    prepared = prepare(spec_of(tmp_path, {"train": "rows.jsonl", "validation": "held.jsonl"}), into=tmp_path / "home")
    assert prepared.labels == []
    run(trained(model, max_length=20, batch_size=2), prepared, tmp_path / "run")
    warnings = [event["warning"] for event in events(tmp_path / "run") if "warning" in event]
    assert warnings == ["2 of 9 rows teach nothing: their answers begin after train.max_length: 20 tokens"]
    assert all(math.isfinite(loss) for loss in curve(tmp_path / "run").values())
    llm_tiny.lines(tmp_path / "long.jsonl", rows[7:])
    prepared = prepare(spec_of(tmp_path, {"train": "long.jsonl", "validation": "held.jsonl"}), into=tmp_path / "home")
    with pytest.raises(InputError, match=r"train\.max_length: 20 tokens, and in none of 2 rows .* raise it"):
        run(trained(model, max_length=20), prepared, tmp_path / "none")


def test_adapters_alone_learn_and_are_saved_apart(model: Path, data: Prepared, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from cluster import weights
    from train.tasks.generation import TextGeneration

    before = weights.digest(model)
    spec = trained(model, epochs=8, learning_rate=2e-2, lora={"rank": 4, "alpha": 8})
    metrics = run(spec, data, tmp_path)
    assert weights.digest(model) == before
    folder = tmp_path / "model"
    assert {file.name for file in folder.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "shoal.json",
        "tokenizer.json",
        "chat_template.jinja",
    }
    assert not (folder / "model.safetensors").exists()
    tensors = load_file(folder / "adapter_model.safetensors")
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert {name.split(".")[-3] for name in tensors} == set(modules)
    assert len(tensors) == 2 * 2 * len(modules)  # A and B, two layers
    assert all(tensor.abs().sum() > 0 for tensor in tensors.values())
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == (str(model), 4, 8)
    assert json.loads((folder / "shoal.json").read_text()) == {"base": str(model), "base_digest": before}

    # Loaded on its base it gives what it gave in training.
    task = TextGeneration()
    net = task.load(folder, base=model, max_length=64)
    from pyarrow import parquet

    held = task.collate(parquet.read_table(data.file("validation")).to_pylist())
    labels = held.pop("labels")
    with torch.no_grad():
        nll = task.objective.losses(net(**held).logits, labels).sum() / (labels != -100).sum()
    assert nll.item() == pytest.approx(metrics["validation/loss"], rel=1e-4)
    assert metrics["validation/loss"] < 5.2  # the base, which is random, is at log 259 = 5.6

    # The base is asked for, and no other is taken.
    with pytest.raises(InputError, match=r"an adapter of .*llama, which is needed to load it; name that as `model`"):
        task.load(folder)
    other = llm_tiny.llama(tmp_path / "other", tied=False)
    with pytest.raises(InputError, match=r"model: .*other is not what the adapter .* was trained on"):
        task.load(folder, base=other)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors in it; pickled adapters are never loaded"):
        task.load(folder, base=model)


def test_lora_keys_that_cannot_work(model: Path) -> None:
    from cluster.spec import Lora

    with pytest.raises(InputError, match=r"train\.lora\.target_modules: .*q_prj.* it has down_proj, .*q_proj"):
        opened(model, lora=Lora(target_modules=["q_prj"]))
    with pytest.raises(InputError, match=r"train\.lora\.target_modules: no nope in the model; it has down_proj"):
        opened(model, lora=Lora(target_modules=["q_proj", "nope"]))
    with pytest.raises(InputError, match=r"train\.lora: adapters stand beside learned weights"):
        opened(model, lora=Lora(), from_scratch=True)


def test_adapters_without_a_gradient_end_the_run(
    model: Path, data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.errors import RunFailed
    from train.tasks import generation

    whole = generation._adapted

    def dead(*arguments: Any) -> Any:
        net = whole(*arguments)
        for name, parameter in net.named_parameters():
            if "lora_B" in name:
                parameter.requires_grad_(False)  # A's gradient is 0 as long as B is
        return net

    monkeypatch.setattr(generation, "_adapted", dead)
    with pytest.raises(RunFailed, match=r"train\.lora: the adapters get no gradient at the first step"):
        run(trained(model, lora={}), data, tmp_path)


def test_a_killed_lora_run_ends_with_the_same_adapter(model: Path, data: Prepared, tmp_path: Path) -> None:
    spec = trained(model, lora={"dropout": 0.1}, checkpoints_per_epoch=2)
    run(spec, data, tmp_path / "whole")
    session = Alone(dies_at=3)
    with pytest.raises(KeyboardInterrupt):
        run(spec, data, tmp_path / "broken", session)
    session.dies_at = None
    run(spec, data, tmp_path / "broken", session)
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")
    adapters = [(tmp_path / name / "model" / "adapter_model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert adapters[0] == adapters[1]
