from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster import tasks
from cluster.cli.init import command as init
from cluster.cli.schema import command as schema_command
from cluster.errors import InputError
from cluster.settings import Settings
from cluster.spec import Spec, data_ref, load, model_ref, parse
from cluster.spec.load import MAX_BYTES
from cluster.spec.schema import schema_of, spec_schema

BASE = "name: a\ntask: text-classification\nmodel: ./m\n"
ROOT = Path(__file__).parent.parent
ABLE = [row.name for row in tasks.TASKS.values() if row.trainable or row.servable]


def fault(text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        parse(text, overrides)
    return str(caught.value)


def test_three_keys_are_enough_and_the_rest_are_defaults() -> None:
    spec = parse(BASE)
    assert (spec.name, spec.task, spec.model) == ("a", "text-classification", "./m")
    assert (spec.train.epochs, spec.train.learning_rate, spec.train.batch_size) == (3, 5e-5, 16)
    assert (spec.serve.min_replicas, spec.serve.max_replicas) == (1, 1)
    assert spec.data.train is None


def test_a_section_with_nothing_under_it_is_all_defaults() -> None:
    assert parse(BASE + "train:\nserve:\n").train == parse(BASE).train


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(BASE).name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-5", 5e-5), ("1e-3", 1e-3), ("5.0e-05", 5e-5), (".5", 0.5), ("1", 1.0), ("+2", 2.0), ("'3'", 3.0)],
)
def test_numbers_are_read_as_people_write_them(text: str, value: float) -> None:
    assert parse(f"{BASE}train: {{learning_rate: {text}}}").train.learning_rate == value
    assert parse(BASE, [f"train.learning_rate={text}"]).train.learning_rate == value


@pytest.mark.parametrize("word", ["no", "on", "yes", "off", "y"])
def test_words_that_yaml_1_1_took_for_booleans_are_text(word: str) -> None:
    assert parse(BASE.replace("name: a", f"name: {word}")).name == word
    assert parse(f"{BASE}data: {{columns: {{text: {word}}}}}").data.columns == {"text": word}
    assert parse(f"{BASE}train: {{parameters: {{a: {word}, b: 0o17, c: 2020-01-01}}}}").train.parameters == {
        "a": word,
        "b": "0o17",
        "c": "2020-01-01",
    }


def test_scalars_that_are_no_text() -> None:
    text = f"{BASE}train: {{parameters: {{a: true, b: null, c: 0x10, d: -3, e: ~, f: 1.5, g: '1'}}}}"
    assert parse(text).train.parameters == {"a": True, "b": None, "c": 16, "d": -3, "e": None, "f": 1.5, "g": "1"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("trian: {}\n", "spec:4: trian: unknown key; did you mean train?"),
        ("train:\n  epochs: 1\n  epochz: 3\n", "spec:6: train.epochz: unknown key; did you mean epochs?"),
        ("zzz: 1\n", "spec:4: zzz: unknown key; the file has name, task, model, data, train, tune, evaluate, serve"),
        ("data:\n  wwwwww: 1\n", "spec:5: data.wwwwww: unknown key; data has train, validation, test, columns,"),
        ("<<: {a: b}\n", "spec:4: <<: unknown key;"),
        ("train: {epochs: many}\n", "spec:4: train.epochs: 'many': input should be a valid number"),
        ("train:\n  workers: 2.5\n", "spec:5: train.workers: 2.5: input should be a valid integer"),
        ("train: {workers: 0}\n", "spec:4: train.workers: 0: input should be greater than or equal to 1"),
        ("train: {epochs: 0}\n", "spec:4: train.epochs: 0: input should be greater than 0"),
        ("train: {epochs: true}\n", "spec:4: train.epochs: True: true and false are no numbers"),
        ("train: {epochs: .inf}\n", "spec:4: train.epochs: inf: input should be a finite number"),
        ("train: {epochs: .nan}\n", "spec:4: train.epochs: nan: input should be a finite number"),
        ("train: {epochs: }\n", "spec:4: train.epochs: nothing: input should be a valid number"),
        ("train: {schedule: liner}\n", "'liner': input should be 'linear', 'cosine' or 'constant'"),
        ("train: {from_scratch: maybe}\n", "spec:4: train.from_scratch: 'maybe': input should be a valid boolean"),
        ("train: 5\n", "spec:4: train: 5: must be a mapping of keys: epochs, learning_rate"),
        ("train: [1]\n", "spec:4: train: [1]: must be a mapping of keys: epochs, learning_rate"),
        ("evaluate: {gate: {f1: 85}}\n", "spec:4: evaluate.gate.f1: 85: input should be less than or equal to 1"),
        ("evaluate: {gate: {f1: true}}\n", "spec:4: evaluate.gate: {'f1': True}: true and false are no numbers"),
        ("evaluate: {metrics: f1}\n", "spec:4: evaluate.metrics: 'f1': input should be a valid list"),
        ("evaluate:\n  metrics:\n  - f1\n  - 1\n", "spec:7: evaluate.metrics.1: 1: input should be a valid string"),
        ("data: {columns: {text: {a: b}}}\n", "spec:4: data.columns.text: {'a': 'b'}: input should be a valid string"),
        ("data: {columns: {1: a}}\n", "spec:4: data.columns.1: 1: input should be a valid string"),
        ("data: {validation_split: 1}\n", "spec:4: data.validation_split: 1: input should be less than 1"),
        ("serve:\n  min_replicas: 3\n", "spec:4: serve: min_replicas: 3 is more than max_replicas: 1"),
        ("1: 2\n", "spec:4: 1: 1: keys should be strings"),
        ("name: b\n", "spec:4: name stands twice; keep one"),
        ("train:\n  epochs: 1\n  epochs: 2\n", "spec:6: train.epochs stands twice; keep one"),
        ("? [a]\n: b\n", "spec:4: a key must be a word, not a list or a mapping"),
        ("\ttrain: {}\n", "spec:4: not YAML that can be read: a tab where spaces belong; indent with spaces"),
        ("train:\n\tepochs: 1\n", "spec:5: not YAML that can be read: a tab where spaces belong; indent with spaces"),
        ("a: b: c\n", "spec:4: not YAML that can be read: mapping values are not allowed here"),
        ("data: {a: [1\n", "not YAML that can be read"),
        ("---\nname: b\n", "spec:4: not YAML that can be read: a second document (---) begins here"),
        ("a: &x 1\nb: *x\n", "spec:5: not YAML that can be read: anchors and aliases (& and *) are not supported"),
        ("x: !!python/object/apply:os.system [a]\n", "spec:4: not YAML that can be read: the tag tag:yaml.org"),
        ("x: !!bool maybe\n", "spec:4: not YAML that can be read: the tag tag:yaml.org,2002:bool is not supported"),
        ("x: !mine 1\n", "spec:4: not YAML that can be read: the tag !mine is not supported; write the plain value"),
        ("x: " + "[" * 50_000, "spec: not YAML that can be read: nested too deep"),
        ("train: {epochs: 1" + "0" * 400 + "}", "spec:4: train.epochs: 1000"),
        ("train: {epochs: 1" + "0" * 5000 + "}", "not YAML that can be read: Exceeds the limit"),
    ],
)
def test_a_fault_is_told_by_place_key_value_and_remedy(more: str, message: str) -> None:
    said = fault(BASE + more)
    assert message in said
    assert len(said.splitlines()) <= 2
    assert max(len(line) for line in said.splitlines()) < 700


def test_every_fault_is_told_at_once() -> None:
    said = fault("name: A b\ntask: 3\ntrain: {workers: 0}\n").splitlines()
    assert said == [
        "spec:1: name: 'A b' does not fit; What the model is called in the registry and in URLs: small letters, digits "
        "and hyphens, 63 at most.",
        "spec:2: task: 3: input should be a valid string",
        "spec: model: missing; Where learning starts: a Hub id (org/name[@revision]), a local folder, "
        "models:/name@alias, models:/name/version, or a scikit-learn estimator such as "
        "sklearn.ensemble.RandomForestClassifier.",
        "spec:3: train.workers: 0: input should be greater than or equal to 1",
    ]


@pytest.mark.parametrize("text", ["[1]", "hello", "5", "- a: b"])
def test_a_file_is_a_mapping(text: str) -> None:
    assert fault(text).startswith("spec: the file must be a mapping of keys, not ")


@pytest.mark.parametrize("name", ["a", "a-b", "0", "x" * 63, "a1-2-3b"])
def test_names_that_fit(name: str) -> None:
    assert parse(BASE, [f"name='{name}'"]).name == name


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "x" * 64, "a b", "a/b", "..", "ä", "a\\n"])
def test_names_that_do_not_fit(name: str) -> None:
    said = fault(BASE, f'name="{name}"')
    assert said.startswith("override: name: ")
    assert "small letters, digits and hyphens, 63 at most" in said


def test_an_alias_bomb_is_refused_before_it_unfolds() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for one, two in zip("abcdefgh", "bcdefghi"):
        bomb += f"{two}: &{two} [{', '.join([f'*{one}'] * 9)}]\n"
    assert fault(bomb).startswith("spec:2: not YAML that can be read: anchors and aliases")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": empty; `shoal init TASK > model.yaml` writes one to start from"),
        (b" \n\n", ": empty; `shoal init TASK > model.yaml`"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", ": a binary file; write YAML as UTF-8 text"),
        (b"name: a\ntask: \xff\xfe\n", ":2: not UTF-8 text; save the file as UTF-8"),
        ("name: a".encode("utf-16"), ": a binary file"),
        (b"#" * (MAX_BYTES + 1), f": larger than {MAX_BYTES} bytes"),
        (b"# only a comment\n", ": the file must be a mapping of keys, not nothing"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "model.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}{message}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: no such file; `shoal init TASK > none\.yaml` writes one"):
        load(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="a folder; name the YAML file in it"):
        load(tmp_path)
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        load(tmp_path / ("x" * 300))
    with pytest.raises(InputError, match="cannot be read: embedded null byte"):
        load("a\0b")
    with pytest.raises(InputError, match="larger than"):
        load("/dev/zero")  # no size, no end


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbf" + BASE.encode())
    assert load(tmp_path / "a.yaml").name == "a"


def test_the_place_in_a_file_is_the_file_as_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text(BASE + "\n\ntrain:\n  epochs: x\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^a\.yaml:7: train\.epochs: 'x'"):
        load("a.yaml")


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "inner" / "m").mkdir(parents=True)
    (tmp_path / "inner" / "t.csv").write_text("a\n")
    (tmp_path / "inner" / "a.yaml").write_text(BASE + "data: {train: t.csv#3}")
    spec = load(tmp_path / "inner" / "a.yaml")
    assert spec.model_ref().path == tmp_path / "inner" / "m"
    ref = spec.data_ref("train")
    assert ref is not None
    assert (ref.path, ref.rows) == (tmp_path / "inner" / "t.csv", 3)
    assert spec.data_ref("test") is None


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.epochs=1", "train", "epochs", 1),
        ("train.learning_rate=5e-5", "train", "learning_rate", 5e-5),
        ("train={epochs: 7}", "train", "epochs", 7),
        ("data.columns={text: review}", "data", "columns", {"text": "review"}),
        ("data.columns.text=[a, b]", "data", "columns", {"text": ["a", "b"]}),
        ("train.parameters.n_estimators=5", "train", "parameters", {"n_estimators": 5}),
        ("evaluate.metrics=[f1, accuracy]", "evaluate", "metrics", ["f1", "accuracy"]),
        ("evaluate.gate.f1=0.5", "evaluate", "gate", {"f1": 0.5}),
        ("data.train=", "data", "train", None),
        ("data.train=a=b.csv", "data", "train", "a=b.csv"),
        ("train.early_stopping_patience=null", "train", "early_stopping_patience", None),
    ],
)
def test_overrides(override: str, section: str, key: str, value: object) -> None:
    spec = parse(BASE + "train: {epochs: 2}\ndata:\n", [override])
    assert getattr(getattr(spec, section), key) == value


def test_the_last_override_wins_and_the_others_stay() -> None:
    spec = parse(BASE + "train: {epochs: 2, workers: 2}", ["train.epochs=3", "train.epochs=4", "name=no"])
    assert (spec.train.epochs, spec.train.workers, spec.name) == (4, 2, "no")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=x", "override: train.epochs: 'x': input should be a valid number"),
        ("train={epochz: 3}", "override: train.epochz: unknown key; did you mean epochs?"),
        ("trian.epochs=3", "override: trian: unknown key; did you mean train?"),
        ("train=5", "override: train: 5: must be a mapping of keys: epochs"),
        ("train.epochs.x=3", "'train.epochs.x=3': epochs holds 2, so it has no key x"),
        ("evaluate.gate.f1=2", "override: evaluate.gate.f1: 2: input should be less than or equal to 1"),
        ("train.epochs=", "override: train.epochs: nothing: input should be a valid number"),
        ("=3", "'=3': write key=value, e.g. train.epochs=1"),
        ("epochs", "'epochs': write key=value, e.g. train.epochs=1"),
        ("a..b=1", "'a..b=1': write key=value"),
        ("train.epochs={", "not YAML that can be read"),
        ("data.train=*files", "anchors and aliases (& and *) are not supported"),
        ("train.schedule=fast", "override: train.schedule: 'fast': input should be 'linear', 'cosine' or 'constant'"),
    ],
)
def test_bad_overrides(override: str, message: str) -> None:
    said = fault(BASE + "train:\n  epochs: 2\n", override)
    assert message in said
    assert "spec:" not in said


@pytest.mark.parametrize(
    ("text", "kind", "name", "revision", "alias", "version"),
    [
        ("distilbert/distilbert-base-uncased", "hub", "distilbert/distilbert-base-uncased", None, None, None),
        ("gpt2", "hub", "gpt2", None, None, None),
        ("org/name@main", "hub", "org/name", "main", None, None),
        ("org/name@refs/pr/3", "hub", "org/name", "refs/pr/3", None, None),
        ("models:/reviews@champion", "registry", "reviews", None, "champion", None),
        ("models:/reviews/12", "registry", "reviews", None, None, "12"),
        (
            "sklearn.ensemble.RandomForestClassifier",
            "estimator",
            "sklearn.ensemble.RandomForestClassifier",
            *[None] * 3,
        ),
    ],
)
def test_model_references(
    tmp_path: Path, text: str, kind: str, name: str, revision: str, alias: str, version: str
) -> None:
    ref = model_ref(text, base=tmp_path)
    assert (ref.kind, ref.name, ref.revision, ref.alias, ref.version) == (kind, name, revision, alias, version)
    assert ref.path is None


def test_local_models(tmp_path: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    for text in ("./org/name", str(tmp_path / "org" / "name"), "org/name", "org/../org/name"):
        ref = model_ref(text, base=tmp_path)
        assert (ref.kind, ref.path) == ("local", tmp_path / "org" / "name")
    assert model_ref("../x", base=tmp_path).path == tmp_path.parent / "x"
    assert model_ref("~/x", base=tmp_path).path == Path.home() / "x"


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "a b", "org/name/more", "org//name", "org/../name", "-org/name", "org/name@", "org/name@../../x"),
        *("org/name@a b", "org/na..me", "org/na--me", "https://a.b/c", "org\\name", "org/name\n", "a\0b", "ä/ö"),
        *("models:/", "models:/a", "models:/a@", "models:/a/b", "models:/../x@y", "models:/a/1/2", "models:/a@b\n"),
        *("models:/a/\u0661", "~nosuchuser/x", "./a\0b", "x" * 97, "./" + "x" * 5000, "hf://org/name"),
    ],
)
def test_texts_that_are_no_model(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"^model: ") as caught:
        model_ref(text, base=tmp_path)
    assert len(str(caught.value)) < 500


def test_a_bad_model_is_told_with_its_line() -> None:
    said = fault("name: a\ntask: t\n\nmodel: models:/a\n")
    assert said.startswith("spec:4: model: 'models:/a' is no registry reference; write models:/name@alias or")


@pytest.mark.parametrize(
    ("ending", "form"), [("csv", "csv"), ("TSV", "tsv"), ("jsonl", "json"), ("parquet", "parquet")]
)
def test_data_files(tmp_path: Path, ending: str, form: str) -> None:
    (tmp_path / f"t.{ending}").write_text("x\n")
    for text, rows in ((f"t.{ending}", None), (f"./t.{ending}#7", 7), (f"t.{ending}#007", 7)):
        ref = data_ref(text, base=tmp_path, key="data.train")
        assert (ref.kind, ref.format, ref.rows, ref.path) == ("file", form, rows, tmp_path / f"t.{ending}")


def test_data_folders_and_the_hub(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    ref = data_ref("pictures#20", base=tmp_path, key="data.train")
    assert (ref.kind, ref.path, ref.rows) == ("folder", tmp_path / "pictures", 20)
    ref = data_ref("hf://stanfordnlp/imdb", base=tmp_path, key="data.train")
    assert (ref.kind, ref.name, ref.config, ref.rows) == ("hub", "stanfordnlp/imdb", None, None)
    ref = data_ref("hf://glue:sst2#100", base=tmp_path, key="data.train")
    assert (ref.kind, ref.name, ref.config, ref.rows) == ("hub", "glue", "sst2", 100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none.csv", "no such file or folder"),
        ("t.csv#0", r"after # stands the number of rows to take, e\.g\. t\.csv#1000"),
        ("t.csv#", "after # stands the number of rows"),
        ("t.csv#-1", "after # stands the number of rows"),
        ("t.csv#1e3", "after # stands the number of rows"),
        ("t.csv#²", "after # stands the number of rows"),
        ("t.csv#" + "9" * 20, "after # stands the number of rows"),
        ("", "names no data"),
        ("#5", "names no data"),
        ("t.xlsx", r"the ending '\.xlsx' is not known; write a \.csv, \.tsv"),
        ("pipe.csv", "neither a file nor a folder"),
        ("loop.csv", "is no path|no such file"),
        ("a\0b.csv", "is no path"),
        ("x" * 300 + ".csv", "is no path: File name too long"),
        ("hf://", "names no dataset; write hf://org/name"),
        ("hf://a/b/c", "names no dataset"),
        ("hf://../x", "names no dataset"),
        ("hf://a/b:", "names no dataset"),
        ("hf://a/b:c d", "names no dataset"),
    ],
)
def test_texts_that_are_no_data(tmp_path: Path, text: str, message: str) -> None:
    import os

    (tmp_path / "t.csv").write_text("a\n1\n")
    (tmp_path / "t.xlsx").write_text("x")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    with pytest.raises(InputError, match=message) as caught:
        data_ref(text, base=tmp_path, key="data.train")
    assert str(caught.value).startswith("data.train: ")


@pytest.mark.parametrize(
    "file", sorted(ROOT.glob("*/examples/*.yaml")), ids=lambda file: f"{file.parts[-3]}-{file.stem}"
)
def test_every_shipped_file_loads(file: Path) -> None:
    spec = load(file)
    row = tasks.get(spec.task)
    assert set(spec.evaluate.gate) <= set(row.metrics)
    assert "Hub" in file.read_text()
    # The assistant's is all of a model's life, the other files of serve/examples take up what train/examples made.
    assert (spec.data.train is not None) == (file.parts[-3] == "train" or file.stem == "assistant")


def test_examples_ship() -> None:
    assert {path.stem for path in (ROOT / "train" / "examples").glob("*.yaml")} >= {"spam", "digits", "iris"}
    assert {path.stem for path in (ROOT / "serve" / "examples").glob("*.yaml")} >= {"spam", "assistant"}


def test_the_schema_is_a_schema_and_agrees_with_the_loader() -> None:
    import jsonschema

    schema = json.loads(CliRunner().invoke(schema_command, []).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "Shoal model"
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["name", "task", "model"]
    assert schema["properties"]["task"]["enum"] == list(tasks.TASKS)
    train = schema["$defs"]["Train"]
    assert train["additionalProperties"] is False
    assert train["properties"]["learning_rate"]["default"] == 5e-5
    assert train["properties"]["learning_rate"]["description"] == "Peak learning rate of AdamW."
    judge = jsonschema.Draft202012Validator(schema)
    good = {"name": "a", "task": "text-classification", "model": "m", "train": {"epochs": 1.5}, "serve": None}
    assert judge.is_valid(good)
    for bad in ({"tusk": 1}, {"task": "nothing"}, {"name": "A"}, {"train": {"epochz": 1}}, {"train": {"workers": 0}}):
        assert not judge.is_valid(good | bad)


def test_every_key_of_the_schema_says_what_it_is() -> None:
    schema = spec_schema({"text-classification": "x"})
    for part in (schema, *schema["$defs"].values()):
        for key, field in part["properties"].items():
            described = field.get("description") or schema["$defs"][field["$ref"].split("/")[-1]]["description"]
            assert described, key
            assert "\n" not in described


def test_the_schema_of_the_cluster() -> None:
    import jsonschema

    schema = json.loads(CliRunner().invoke(schema_command, ["cluster"]).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema == json.loads(json.dumps(schema_of(Settings, identifier=schema["$id"], title=schema["title"])))
    assert set(schema["properties"]) == set(Settings.model_fields)


@pytest.mark.parametrize("task", ABLE)
def test_a_starting_file_loads_as_it_stands(task: str) -> None:
    text = CliRunner().invoke(init, [task]).stdout
    spec = parse(text)
    assert spec.task == task
    # Nothing but the placeholders differs from the defaults.
    assert spec.train == Spec(name="a", task=task, model="m").train
    assert spec.serve == Spec(name="a", task=task, model="m").serve
    assert spec.model_dump(exclude_defaults=True).keys() == {"name", "task", "model", "data"}


@pytest.mark.parametrize("task", ABLE)
def test_a_starting_file_shows_every_default_as_it_is(task: str) -> None:
    import re

    text = CliRunner().invoke(init, [task]).stdout
    awake = re.sub(r"^( *)#(\w)", r"\1\2", text, flags=re.MULTILINE)
    assert awake != text
    assert parse(awake) == parse(text)
    shown = ["seed", "validation_split", "gate", *(["max_queued_requests"] if tasks.get(task).servable else [])]
    for key in shown:
        assert f"  #{key}: " in text
    assert ("lora" in text) == (task == "text-generation") != ("class_weights" in text)
    assert ("max_length" in text) == (tasks.get(task).modality == "text")


def test_init_writes_a_file_once(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    assert CliRunner().invoke(init, ["text-classification", "-o", str(file)]).exit_code == 0
    before = file.read_text()
    again = CliRunner().invoke(init, ["image-classification", "-o", str(file)])
    assert isinstance(again.exception, InputError)
    assert "is there already and is not overwritten" in str(again.exception)
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("text-to-video", "text-to-video can be neither trained nor served yet; these can: text-classification"),
        ("text-clasification", "'text-clasification' is not a task; did you mean text-classification?"),
    ],
)
def test_init_refuses_what_cannot_be_done(task: str, message: str) -> None:
    error = CliRunner().invoke(init, [task]).exception
    assert isinstance(error, InputError)
    assert message in str(error)
