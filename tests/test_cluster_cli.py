"""The command line's own behaviour: what it imports, how it fails, what it prints."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from cluster.cli import VERBS
from cluster.cli.output import Output, table


def shoal(*words: str, home: object = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    import os

    full = {**os.environ, **(env or {}), **({"SHOAL_HOME": str(home)} if home else {})}
    command = [sys.executable, "-m", "cluster", *words]
    return subprocess.run(command, capture_output=True, text=True, env=full, timeout=120, check=False)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from cluster.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.splitlines()[-1]
    for heavy in ("pydantic", "yaml", "ray", "torch", "transformers", "mlflow", "rich.progress"):
        assert f"'{heavy}'" not in modules, heavy
    assert "'click'" in modules


def test_help_names_every_verb():
    done = shoal("--help")
    assert done.returncode == 0
    for verb in VERBS:
        assert f"\n  {verb} " in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_teaches(verb: str):
    done = shoal(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage: shoal" in done.stdout
    assert "--json" in done.stdout or verb in ("ui", "schema", "init", "models"), done.stdout


def test_unknown_verb_names_the_nearest():
    done = shoal("trian", "x.yaml")
    assert done.returncode == 2
    assert "'trian' is no verb; did you mean train?" in done.stderr


def test_a_missing_file_is_one_message_and_exit_2(tmp_path):
    done = shoal("train", str(tmp_path / "no.yaml"), home=tmp_path / "h")
    assert done.returncode == 2
    assert "no.yaml: no such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_json_errors_are_the_last_line(tmp_path):
    done = shoal("train", str(tmp_path / "no.yaml"), "--json", home=tmp_path / "h")
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["exit_code"] == 2
    assert "no such file" in last["error"]


def test_predict_and_down_say_that_nothing_runs(tmp_path):
    asked = shoal("predict", "reviews", "hello", home=tmp_path / "h")
    assert asked.returncode == 2
    assert "nothing is served here" in asked.stderr
    down = shoal("down", home=tmp_path / "h")
    assert (down.returncode, down.stdout.strip()) == (0, "nothing was running")
    named = shoal("down", "reviews", home=tmp_path / "h")
    assert named.returncode == 2
    assert "reviews: not served" in named.stderr


def test_status_without_anything(tmp_path):
    done = shoal("status", "--json", home=tmp_path / "h")
    value = json.loads(done.stdout.splitlines()[-1])
    assert value == {"home": str(tmp_path / "h"), "cluster": None, "endpoints": [], "runs": []}


def test_plain_progress_has_time_left_and_no_repeats(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("cluster.cli.output.time.monotonic", lambda: now[0])
    with Output() as out:
        for step in range(11):
            out.progress("train", step, 10, f"loss {step}")
            now[0] += 1
        out.progress("train", 10, 10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train 0%, loss 0"
    assert lines[1] == "train 30%, 0:07 left, loss 3"
    assert lines[-1] == "train 100%, loss 10"
    assert len(lines) == 5


def test_json_progress_is_one_object_a_line(capsys):
    with Output(as_json=True) as out:
        out.progress("data", 1, 2)
        out.say("halfway")
        out.result({"done": True})
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event.get("event") for event in events] == ["progress", "message", None]
    assert events[-1] == {"done": True}


def test_table_aligns():
    assert table(["a", "bb"], [["long", 1]]) == "a     bb\nlong  1"


def test_a_fault_of_ours_leaves_its_traceback_in_a_file(tmp_path, monkeypatch, capsys):
    from cluster.cli import main

    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    monkeypatch.setattr("cluster.cli.down.command.callback", lambda **_: 1 / 0)
    with pytest.raises(SystemExit) as ended:
        main(["down"])
    assert ended.value.code == 1
    assert "this should not have happened: ZeroDivisionError" in capsys.readouterr().err
    assert "ZeroDivisionError" in (tmp_path / "last-error.txt").read_text()


def test_tail_follows_what_is_added(tmp_path):
    from cluster.cli.logs import tail

    file = tmp_path / "a.log"
    file.write_text("1\n2\n3\n")
    assert [line for _, line in tail([file], 2, follow=False)] == ["2\n", "3\n"]
    lines = tail([file], 1, follow=True)
    assert next(lines)[1] == "3\n"
    with file.open("a") as more:
        more.write("4\n")
    assert next(lines)[1] == "4\n"


def test_progress_on_a_terminal_draws_a_bar(monkeypatch):
    from rich.console import Console

    screen = io.StringIO()
    out = Output()
    out._errors = Console(file=screen, force_terminal=True, width=100)
    with out:
        out.progress("train", 5, 10, "loss 0.3")
    assert "train" in screen.getvalue()
    assert "50%" in screen.getvalue()
