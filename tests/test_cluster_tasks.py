from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster import tasks
from cluster.cli.tasks import command
from cluster.errors import InputError
from cluster.spec import parse
from cluster.tasks import row as tasks_row

ROOT = Path(__file__).parent.parent
NAMED = set(
    """text-classification token-classification question-answering summarization translation text-generation
fill-mask zero-shot-classification feature-extraction sentence-similarity text-ranking table-question-answering
document-question-answering image-classification object-detection image-segmentation depth-estimation
zero-shot-image-classification zero-shot-object-detection image-to-text visual-question-answering image-text-to-text
text-to-image image-to-image inpainting virtual-try-on text-to-video image-to-video video-classification
automatic-speech-recognition text-to-speech voice-cloning audio-classification zero-shot-audio-classification
audio-to-audio time-series-forecasting anomaly-detection tabular-classification tabular-regression clustering
content-moderation retrieval-augmented-generation""".split()  # noqa: SIM905 - the list as the plan of the project has it
)


def test_every_task_has_a_row() -> None:
    assert set(tasks.TASKS) >= NAMED
    assert len(NAMED) == 42


def test_a_row_says_what_is_needed() -> None:
    for name, row in tasks.TASKS.items():
        assert row.name == name
        assert row.request
        assert row.response
        assert row.columns
        assert name in row.about()


def test_support_is_what_the_code_holds() -> None:
    """The same answer, found another way: by reading the class lines of the sources."""
    for row in tasks.TASKS.values():
        for target, said in ((row.trainer, row.trainable), (row.server, row.servable)):
            module, _, name = target.partition(":")
            file = ROOT / f"{module.replace('.', '/')}.py"
            there = bool(name) and file.is_file() and f"\nclass {name}" in file.read_text()
            assert said == there, row.name


def test_a_row_whose_class_is_gone_is_no_longer_supported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = tasks_row.Task(
        "x", "text", "r", "r", {"text": True}, trainer="train.tasks.text:Mine", server="serve.tasks.pack:Mine"
    )
    (tmp_path / "cluster").mkdir()
    (tmp_path / "train" / "tasks").mkdir(parents=True)
    (tmp_path / "serve" / "tasks" / "pack").mkdir(parents=True)
    monkeypatch.setattr(tasks_row, "__file__", str(tmp_path / "cluster" / "tasks" / "row.py"))
    try:
        tasks_row._exists.cache_clear()
        assert (row.trainable, row.servable) == (False, False)
        (tmp_path / "train" / "tasks" / "text.py").write_text("class Mine:\n    pass\n")
        (tmp_path / "serve" / "tasks" / "pack" / "__init__.py").write_text("class Mine:\n    pass\n")
        tasks_row._exists.cache_clear()
        assert (row.trainable, row.servable) == (True, True)
        assert "can be trained and served" in row.about()
        (tmp_path / "train" / "tasks" / "text.py").write_text("class Other:\n    pass\n# class Mine:\n")
        tasks_row._exists.cache_clear()
        assert (row.trainable, row.servable) == (False, True)
        assert "can be served" in row.about()
    finally:
        tasks_row._exists.cache_clear()


def test_a_row_without_code_is_no_task_to_run() -> None:
    spec = parse("name: a\ntask: text-to-video\nmodel: ./m\n")
    with pytest.raises(InputError, match=r"^task: text-to-video cannot be trained yet; these can: text-classification"):
        tasks.trainable(spec)
    with pytest.raises(InputError, match=r"^task: text-to-video cannot be served yet; these can: "):
        tasks.servable(spec)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("text-clasification", "did you mean text-classification?"), ("zzz", "`shoal tasks` lists them")],
)
def test_an_unknown_task(name: str, hint: str) -> None:
    with pytest.raises(InputError, match="is not a task") as caught:
        tasks.get(name)
    assert hint in str(caught.value)


def test_the_verb_prints_the_rows() -> None:
    told = json.loads(CliRunner().invoke(command, ["--json"]).stdout.splitlines()[-1])
    assert [row["name"] for row in told] == list(tasks.TASKS)
    for row in told:
        assert type(row["train"]) is bool
        assert type(row["serve"]) is bool
        assert row["train"] == tasks.TASKS[row["name"]].trainable
        assert row["serve"] == tasks.TASKS[row["name"]].servable
    assert told[0] == {
        "name": "text-classification",
        "modality": "text",
        "train": tasks.TASKS["text-classification"].trainable,
        "serve": tasks.TASKS["text-classification"].servable,
        "request": "{inputs: text | [text], parameters}",
        "response": "[[{label, score}]]",
        "columns": tasks.TASKS["text-classification"].columns,
        "metrics": ["accuracy", "precision", "recall", "f1"],
    }


def test_the_verb_by_modality() -> None:
    told = json.loads(CliRunner().invoke(command, ["--json", "--modality", "audio"]).stdout.splitlines()[-1])
    assert {row["modality"] for row in told} == {"audio"}
    assert len(told) == 6
    text = CliRunner().invoke(command, ["--modality", "tabular"]).stdout
    assert "tabular-classification" in text
    assert "text-classification" not in text
    error = CliRunner().invoke(command, ["--modality", "smell"]).exception
    assert isinstance(error, InputError)
    assert "'smell' is none; write one of text" in str(error)


def test_the_matrix_in_markdown() -> None:
    lines = tasks.markdown().splitlines()
    assert lines[0] == "| task | modality | train | serve | request | answer |"
    assert len(lines) == 2 + len(tasks.TASKS)
    for line, row in zip(lines[2:], tasks.TASKS.values()):
        cells = [cell.strip() for cell in line.replace("\\|", "").strip("|").split("|")]
        assert len(cells) == 6
        assert cells[:2] == [row.name, row.modality]
        assert (cells[2] == "yes", cells[3] == "yes") == (row.trainable, row.servable)


def test_the_table_imports_nothing_heavy() -> None:
    code = "import cluster.tasks, cluster.settings, cluster.spec.schema, cluster.plan, sys; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(ast.literal_eval(done.stdout))
    assert not loaded & {"ray", "torch", "transformers", "datasets", "mlflow", "sklearn", "pyarrow", "numpy", "pandas"}
