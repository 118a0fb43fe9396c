"""Handlers, each in this process: real tiny models, bytes in, answers compared with what the model says directly."""

import base64
import io
import json
import shutil
import zlib
from pathlib import Path

import pytest
import serve_tiny as tiny

from cluster.errors import InputError, TooLarge
from serve.tasks.tabular import TabularClassification
from serve.tasks.text import TextClassification
from serve.tasks.vision import ImageClassification


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"text": tiny.bert(root / "text"), "image": tiny.vit(root / "image"), "table": tiny.table(root / "table")}


@pytest.fixture(scope="module")
def text(folders):
    return _ready(TextClassification(), folders["text"])


@pytest.fixture(scope="module")
def image(folders):
    return _ready(ImageClassification(), folders["image"])


@pytest.fixture(scope="module")
def table(folders):
    return _ready(TabularClassification(), folders["table"])


def _ready(handler, folder: Path):
    handler.setup(folder, "cpu")
    return handler


def ask(handler, value, query=None):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    inputs, parameters = handler.decode_request(body, "", query or {})
    return handler.encode_response(handler.predict(inputs), parameters)


def refused(handler, value, status=400, query=None) -> str:
    with pytest.raises(InputError) as error:
        ask(handler, value, query)
    assert error.value.status == status
    return str(error.value)


def test_one_text_is_scored_as_the_model_scores_it(text, folders):
    (answer,) = ask(text, {"inputs": "win a prize"})
    expected = tiny.bert_scores(folders["text"], "win a prize")
    assert {one["label"]: one["score"] for one in answer} == pytest.approx(expected, abs=1e-5)
    assert [one["score"] for one in answer] == sorted((one["score"] for one in answer), reverse=True)


def test_texts_of_different_length_do_not_change_each_other(text, folders):
    texts = ["a", "a much longer text than that", {"text": "one half", "text_pair": "the other"}]
    answers = ask(text, {"inputs": texts})
    expected = [("a", None), ("a much longer text than that", None), ("one half", "the other")]
    for answer, (first, second) in zip(answers, expected, strict=True):
        scores = tiny.bert_scores(folders["text"], first, second)
        assert {one["label"]: one["score"] for one in answer} == pytest.approx(scores, abs=1e-5)


def test_a_text_is_cut_into_the_tokens_that_its_tokenizer_makes(text, folders):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders["text"])
    values = ["one two", "", {"text": "a b", "text_pair": "c"}, {"text": "long " * 400, "text_pair": "too " * 400}]
    inputs, _ = text.decode_request(json.dumps({"inputs": values}).encode(), "", {})
    for one, value in zip(inputs, values, strict=True):
        first, second = (value, None) if isinstance(value, str) else (value["text"], value["text_pair"])
        expected = tokenizer(first, second, truncation=True, max_length=512)
        assert one.ids.tolist() == expected["input_ids"]
        assert one.types.tolist() == expected["token_type_ids"]
        assert text.length(one) == len(expected["input_ids"])


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_tokenizer_in_python_and_padding_on_its_side(text, folders, side):
    slow = _ready(TextClassification(), folders["text"])
    slow.fast = None
    slow.tokenizer.padding_side = side
    texts = ["a", "a longer text", "mid"]
    inputs, _ = slow.decode_request(json.dumps({"inputs": texts}).encode(), "", {})
    padded = slow._padded(inputs)
    expected = slow.tokenizer(texts, padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert padded[name].tolist() == expected[name].tolist()
    alone = slow._padded(inputs[:1])
    assert "attention_mask" not in alone
    assert alone["input_ids"].shape == (1, 3)


def test_text_parameters_choose_how_many_labels_and_which_function(text):
    (best,) = ask(text, {"inputs": "hello", "parameters": {"top_k": 1}})
    assert len(best) == 1
    (raw,) = ask(text, {"inputs": "hello", "parameters": {"function_to_apply": "none"}})
    (squashed,) = ask(text, {"inputs": "hello", "parameters": {"function_to_apply": "sigmoid"}})
    for before, after in zip(raw, squashed, strict=True):
        assert after["score"] == pytest.approx(1 / (1 + 2.718281828459045 ** -before["score"]))


def test_a_text_beyond_what_the_model_takes_is_cut(text, folders):
    (long,) = ask(text, {"inputs": "word " * 100_000})
    expected = tiny.bert_scores(folders["text"], "word " * 2000)
    assert {one["label"]: one["score"] for one in long} == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"", "empty"),
        (b"not json", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b'{"inputs": NaN}', "not JSON"),
        (b"[1]", "no `inputs`"),
        ({"inputs": 3}, "no text"),
        ({"inputs": []}, "empty"),
        ({"inputs": {"text": 3}}, "no text"),
        ({"inputs": "a", "parameters": {"topk": 1}}, "did you mean top_k?"),
        ({"inputs": "a", "parameters": {"top_k": 0}}, "top_k: 0"),
        ({"inputs": "a", "parameters": {"function_to_apply": "exec"}}, "softmax, sigmoid, none"),
        ({"table": {"a": [1]}}, "{inputs: text | [text], parameters}"),
    ],
)
def test_text_refuses(text, value, said):
    assert said in refused(text, value)


def test_half_a_surrogate_pair_is_no_fault_of_its_neighbours(text):
    assert len(ask(text, b'{"inputs": ["fine", "\\ud800"]}')) == 2


def test_too_many_texts_are_refused(text):
    assert "1024 at most" in refused(text, {"inputs": ["a"] * 1025}, status=413)


def test_corrupt_weights_are_refused_with_their_file(folders, tmp_path):
    folder = Path(shutil.copytree(folders["text"], tmp_path / "cut"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        TextClassification().setup(folder, "cpu")


def test_a_pickle_is_refused(folders, tmp_path):
    import torch

    folder = Path(shutil.copytree(folders["text"], tmp_path / "pickled"))
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        TextClassification().setup(folder, "cpu")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_picture_is_scored_as_the_model_scores_it(image, folders, form):
    from PIL import Image

    data = io.BytesIO()
    tiny.picture(3).save(data, form)
    answer = ask(image, data.getvalue())
    expected = tiny.vit_scores(folders["image"], Image.open(data))
    best = sorted(expected.items(), key=lambda item: -item[1])[:5]
    assert [(one["label"], one["score"]) for one in answer] == [
        (label, pytest.approx(s, abs=1e-5)) for label, s in best
    ]


def test_a_picture_in_json_and_parameters_in_the_query(image):
    data = io.BytesIO()
    tiny.picture(4).save(data, "PNG")
    raw = ask(image, data.getvalue(), {"top_k": "2"})
    text = base64.b64encode(data.getvalue()).decode()
    assert raw == ask(image, {"inputs": text, "parameters": {"top_k": 2}})
    assert raw == ask(image, {"inputs": f"data:image/png;base64,{text}", "parameters": {"top_k": 2}})
    assert len(raw) == 2


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n garbage", "no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
        (b"\x00" * 5000, "no picture"),
        ({"inputs": "some text!"}, "not base64"),
        ({"inputs": base64.b64encode(b"text").decode()}, "no picture"),
        ({"table": {}}, "base64"),
        ({"inputs": ["a"]}, "base64"),
    ],
)
def test_image_refuses(image, value, said):
    assert said in refused(image, value)


def test_a_picture_is_as_long_as_its_pixels(image):
    data = io.BytesIO()
    tiny.picture(4, (300, 200)).save(data, "PNG")
    (one,), _ = image.decode_request(data.getvalue(), "", {})
    assert one.shape == (3, 32, 32)
    assert image.length(one) == 4


def test_half_a_picture_is_refused(image):
    data = io.BytesIO()
    tiny.picture(4, (300, 300)).save(data, "JPEG")
    assert "no picture" in refused(image, data.getvalue()[:5000])


def test_a_decompression_bomb_is_refused_by_its_header(image):
    """A PNG of 30,000 x 30,000 black pixels is under a megabyte, and 2.7 GB in memory."""
    assert "50000000 pixels at most" in refused(image, png_bomb(30_000), status=413)
    assert "50000000 pixels at most" in refused(image, png_bomb(8_000), status=413)


def png_bomb(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    data = b"".join(packer.compress(row) for _ in range(200)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_table_is_labelled_in_all_the_forms_clients_send(table):
    frame, target = tiny.iris()
    rows = frame.iloc[::10]
    columns = {name: rows[name].tolist() for name in rows}
    expected = [["setosa", "versicolor", "virginica"][index] for index in target[::10]]
    assert set(expected) == {"setosa", "versicolor", "virginica"}
    texts = {name: [str(value) for value in values] for name, values in columns.items()}
    records = rows.to_dict("records")
    for value in ({"table": columns}, {"inputs": {"data": columns}}, {"data": columns}, columns, {"inputs": texts}):
        assert ask(table, value) == expected
    for value in ({"table": records}, {"inputs": records}, {"data": records}, records):
        assert ask(table, value) == expected


def test_tables_of_several_requests_come_back_apart(table):
    frame, _ = tiny.iris()
    both = table.predict([frame.iloc[:2], frame.iloc[100:103]])
    assert both == [["setosa", "setosa"], ["virginica"] * 3]
    assert table.length(frame.iloc[:7]) == 7


def test_a_missing_value_is_filled_as_in_training(table):
    answer = ask(table, {"table": {"sepal": [None], "petal": [1.4], "garden": ["south"]}})
    assert answer == ["setosa"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"table": {"sepal": [1], "petals": [2], "garden": ["x"]}}, "missing columns: petal; unknown column 'petals'"),
        ({"table": {"sepal": [1]}}, "missing columns: petal, garden"),
        ({"table": {"sepal": [1, 2], "petal": [1], "garden": ["x"]}}, "differ in length"),
        ({"table": {"sepal": ["wide"], "petal": [1], "garden": ["x"]}}, "table.sepal[0]: 'wide' is no number"),
        ({"table": {"sepal": ["1e999"], "petal": [1], "garden": ["x"]}}, "infinite"),
        ({"table": {"sepal": [1], "petal": [1], "garden": [{}]}}, "table.garden[0]"),
        ({"table": {"sepal": [], "petal": [], "garden": []}}, "no rows"),
        ({"inputs": "a text"}, "no table"),
        ([], "no table"),
    ],
)
def test_table_refuses(table, value, said):
    assert said in refused(table, value)


def test_a_function_in_a_skops_file_is_not_loaded(tmp_path):
    import os

    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    from cluster.skops_file import dump_skops, load_skops

    file = tmp_path / "model.skops"
    skops.io.dump(FunctionTransformer(os.system), file)
    with pytest.raises(InputError, match="system"):
        load_skops(file)
    with pytest.raises(InputError, match="system"):
        dump_skops(FunctionTransformer(os.system), tmp_path / "other.skops")
    file.write_bytes(b"\x80\x04pickle")
    with pytest.raises(InputError, match="not a skops file"):
        load_skops(file)


def test_too_large_is_its_own_status():
    assert TooLarge("x").status == 413
