"""Rows to learn to write from: three forms, kept as they are; no classes; bad rows each with its message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llm_tiny
import pyarrow as pa
import pytest
from pyarrow import parquet
from test_train_generation import spec_of

from cluster.errors import InputError
from train.data import Prepared, prepare

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}


def made(folder: Path, rows: list[dict[str, Any]], **data: Any) -> Prepared:
    llm_tiny.lines(folder / "rows.jsonl", rows)
    return prepare(spec_of(folder, {"train": "rows.jsonl", **data}), into=folder / "home")


def stored(prepared: Prepared, split: str) -> list[dict[str, Any]]:
    return parquet.read_table(prepared.file(split)).to_pylist()


def test_every_form_arrives_as_it_was_written(tmp_path: Path) -> None:
    forms = {
        "messages": [
            {"messages": [{"role": "system", "content": "é\n"}, USER, {**ASSISTANT, "content": str(n)}]}
            for n in range(10)
        ],
        "pairs": [{"prompt": "" if n else "Hi ", "completion": f" {n}\n"} for n in range(10)],
        "texts": [{"text": f"{n} 🦈"} for n in range(10)],
    }
    for name, rows in forms.items():
        prepared = made(tmp_path / name, rows)
        assert prepared.rows == {"train": 9, "validation": 1}
        assert prepared.labels == []
        both = stored(prepared, "train") + stored(prepared, "validation")
        assert sorted(map(json.dumps, both)) == sorted(map(json.dumps, rows))
        assert stored(prepared, "validation") != rows[-1:]  # drawn, not the tail
        assert prepared.report["classes"] == {}
        assert Prepared.open(prepared.folder) == prepared


def test_parquet_and_csv_give_the_same(tmp_path: Path) -> None:
    chats = llm_tiny.chats(4)
    parquet.write_table(pa.Table.from_pylist([{**row, "id": n} for n, row in enumerate(chats)]), tmp_path / "a.parquet")
    found = prepare(spec_of(tmp_path, {"train": "a.parquet", "validation": "a.parquet"}), into=tmp_path / "home")
    assert stored(found, "train") == chats
    (tmp_path / "a.csv").write_text('question,answer\n2+2,4\n"a, b",c\n')
    columns = {"prompt": "question", "completion": "answer"}
    spec = spec_of(tmp_path, {"train": "a.csv", "validation": "a.csv", "columns": columns})
    rows = [{"prompt": "2+2", "completion": "4"}, {"prompt": "a, b", "completion": "c"}]
    assert stored(prepare(spec, into=tmp_path / "home"), "train") == rows


def test_columns_choose_where_there_is_more_than_one_form(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "prompt": "p", "completion": "c"} for n in range(3)]
    with pytest.raises(InputError, match="more than one form to learn from: 'text', 'prompt', 'completion'; name one"):
        made(tmp_path, rows)
    prepared = made(tmp_path, rows, columns={"text": "text"})
    assert set(stored(prepared, "train")[0]) == {"text"}


def test_duplicates_are_counted_and_dropped(tmp_path: Path) -> None:
    rows = [*llm_tiny.chats(5), *llm_tiny.chats(2)]
    llm_tiny.lines(tmp_path / "held.jsonl", llm_tiny.chats(1, first=4))
    counted = made(tmp_path, rows, validation="held.jsonl")
    assert counted.report["duplicates"] == {"train": 2, "validation": 0, "train-validation": 1}
    assert counted.report["conflicting_labels"] == 0
    dropped = made(tmp_path, rows, validation="held.jsonl", drop_duplicates=True)
    assert dropped.rows == {"train": 4, "validation": 1}
    assert dropped.report["notes"] == ["duplicates dropped: 3 in train"]


def chat(*turns: Any) -> dict[str, Any]:
    return {"messages": list(turns)}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (chat(USER), r"row 2 ends with a turn of user; a chat to learn from ends with the assistant's"),
        (chat(), r"row 2 is a chat without turns; remove it"),
        ({"messages": None}, r"row 2 has nothing, not a list of \{role, content\}"),
        ({"messages": "Hi"}, r"row 2 has text where row 1 has a list"),
        (
            chat(USER, {"role": "bot", "content": "x"}),
            r"row 2, turn 2: role 'bot'; write one of system, user, assistant",
        ),
        (chat({"content": "x"}, ASSISTANT), r"row 2, turn 1: role nothing; write one of"),
        (chat(USER, {"role": "assistant"}), r"row 2, turn 2: content is nothing, not text"),
        (chat(USER, {**ASSISTANT, "content": " "}), r"row 2, turn 2: the assistant says nothing"),
        (chat(USER, {"role": "system", "content": "x"}, ASSISTANT), r"row 2, turn 2: a system turn in the middle"),
        (chat(USER, {**ASSISTANT, "tool_calls": "f()"}), r"row 2, turn 2: has tool_calls; only role and content"),
        (chat(*[USER] * 1001), r"row 2 has 1001 turns; 1000 at most"),
    ],
    ids=str,
)
def test_bad_chats_are_one_message(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=rf"^data\.train: rows\.jsonl: column 'messages': {told}"):
        made(tmp_path, [chat(USER, ASSISTANT), row])
    assert not list((tmp_path / "home").glob("*/data.json"))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a"}], r"column 'completion': row 2 has no text; fill or"),
        ([{"prompt": "a", "completion": " "}], r"column 'completion': row 1 has no text"),
        ([{"text": 1}], r"column 'text': row 1 has 1, not text; name a column of text"),
        ([{"prompt": "a"}], r"a prompt and no completion; add the column, or name it by data\.columns\.completion"),
        ([{"completion": "a"}], r"a completion and no prompt"),
        ([{"text": "a", "prompt": "b"}], r"text and prompt; leave out one by naming the other in data\.columns"),
        ([{"body": "a"}], r"nothing to learn from in the columns 'body'; write messages \(a chat\), prompt and"),
        ([{"text": "a" * 10_000_001}], r"column 'text': row 1 has 10000001 characters; 10000000 at most"),
    ],
    ids=range(8),
)
def test_bad_rows_are_one_message(tmp_path: Path, rows: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(InputError, match=rf"^data\.train: rows\.jsonl: {told}"):
        made(tmp_path, rows)


def test_other_faults(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.validation_split: one row, so none can be held out; add rows"):
        made(tmp_path, [{"text": "a"}])
    with pytest.raises(InputError, match=r"no column 'body', needed as text"):
        made(tmp_path, [{"text": "a"}], columns={"text": "body"})
    (tmp_path / "folder").mkdir()
    spec = spec_of(tmp_path, {"train": "folder"})
    with pytest.raises(InputError, match=r"needs a file with columns text, prompt, completion, messages"):
        prepare(spec, into=tmp_path / "home")
