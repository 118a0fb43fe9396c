"""Requests in every form that clients send, and in those that hostile ones do: what a task is given of them."""

import base64
import json
import time

import pytest

from cluster.errors import InputError, TooLarge
from serve.tasks.content import Reader, read_query
from serve.tasks.multipart import parts

TEXT = Reader("{inputs: text}")
FILE = Reader("picture bytes", ("inputs", "image"))
BYTES = bytes(range(256))
FORM = "multipart/form-data; boundary=XyZ"


def form(*fields: tuple[str, bytes, str]) -> bytes:
    """A body of (name, bytes, what else the headers say)."""
    return (
        b"".join(
            b'--XyZ\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name.encode(), more.encode(), data)
            for name, data, more in fields
        )
        + b"--XyZ--\r\n"
    )


IN_A_FILE = '; filename="../../etc/passwd"\r\nContent-Type: image/png'


def as_json(**members) -> bytes:
    return json.dumps(members).encode()


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (BYTES, ""),
        (BYTES, "image/png"),
        (BYTES, "application/octet-stream"),
        (as_json(inputs=base64.b64encode(BYTES).decode()), "application/json"),
        (as_json(inputs=base64.b64encode(BYTES).decode()), "application/x-www-form-urlencoded"),  # curl -d
        (as_json(inputs=base64.encodebytes(BYTES).decode()), ""),  # in lines
        (as_json(image="data:image/png;base64," + base64.b64encode(BYTES).decode()), ""),
        (form(("file", BYTES, IN_A_FILE)), FORM),
        (form(("image", BYTES, IN_A_FILE)), FORM),
        (form(("inputs", base64.b64encode(BYTES), "")), 'Multipart/Form-Data; boundary="XyZ"'),
    ],
)
def test_a_file_comes_raw_in_json_and_in_a_form(body, content_type):
    content = FILE.bytes(body, content_type, {})
    assert (content.file, content.parameters) == (BYTES, None)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (as_json(inputs="hello"), "application/json"),
        (as_json(inputs="hello"), "text/plain;charset=UTF-8"),  # a browser's fetch() that was told no type
        (as_json(inputs="hello"), ""),
        (b"hello", "text/plain"),
        (form(("inputs", b"hello", "")), FORM),
        (form(("file", b"hello", IN_A_FILE)), FORM),
    ],
)
def test_a_text_comes_in_json_plain_and_in_a_form(body, content_type):
    assert TEXT.json(body, content_type, {}).value == {"inputs": "hello"}


def test_a_form_of_json_is_json():
    rows = [{"a": 1}]
    body = form(("table", json.dumps(rows).encode(), ""))
    assert Reader("{table}", ("table", "inputs")).json(body, FORM, {}).value == {"table": rows}


def test_parameters_come_in_the_body_the_form_and_the_query_and_the_body_wins():
    given = {"top_k": 2}
    assert TEXT.json(as_json(inputs="a", parameters=given), "", {}).parameters == given
    assert (
        FILE.bytes(form(("file", BYTES, IN_A_FILE), ("parameters", b'{"top_k": 2}', "")), FORM, {}).parameters == given
    )
    assert FILE.bytes(BYTES, "", read_query(b"top_k=2")).parameters == given
    assert FILE.bytes(BYTES, "", read_query(b"parameters=%7B%22top_k%22%3A2%7D")).parameters == given
    body = as_json(inputs="a", parameters=given)
    both = TEXT.json(body, "", read_query(b"top_k=9&function_to_apply=none")).parameters
    assert both == {"top_k": 2, "function_to_apply": "none"}


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest/meta-data/",
        "https://example.com/a.png",
        "HTTPS://example.com/a.png",
        "  http://127.0.0.1:8265/",
        "file:///etc/passwd",
        "ftp://example.com/a",
        "gopher://127.0.0.1:6379/_",
        "s3://bucket/key",
    ],
)
def test_an_address_is_not_fetched_and_the_rule_is_told(address):
    scheme = address.strip().partition(":")[0].lower()
    for body, media in ((as_json(inputs=address), ""), (form(("file", address.encode(), "")), FORM)):
        with pytest.raises(InputError, match=f"{scheme}:// addresses are not fetched; send the file's bytes"):
            FILE.bytes(body, media, {})
    # To a model of texts it is a text.
    assert TEXT.json(as_json(inputs=address), "", {}).value == {"inputs": address}


@pytest.mark.parametrize(
    ("body", "media", "said"),
    [
        (b"", "", "empty"),
        (as_json(inputs=3), "", "no `inputs` in base64"),
        (as_json(inputs="data:image/png,%89PNG"), "", "data: URI that is not base64"),
        (as_json(inputs="data:" + "x" * 10**6), "", "data: URI that is not base64"),
        (as_json(inputs="no base64!"), "", "not base64"),
        (as_json(inputs="QUJD=QUJD"), "", "not base64"),
        (b'{"inputs": ' + b"[" * 10**6, "", "not JSON"),
        (form(("file", b"a", ""), ("image", b"b", "")), FORM, "both file and image"),
        (form(("file", b"a", ""), ("file", b"b", "")), FORM, "file twice"),
        (form(("parameters", b"{}", "")), FORM, "no field inputs or file"),
        (form(("fille", b"a", "")), FORM, "'fille' is none of inputs, file"),
        (form(("file", b"a", ""), ("parameters", b"{", "")), FORM, "not JSON"),
        (form(("file", b"a", "")), "multipart/form-data", "without a boundary"),
        (form(("file", b"a", ""))[:-6], FORM, "ends in the middle"),
        (b"no form", FORM, "cannot be read"),
        (form(("file", b"a", '"\r\nContent-Transfer-Encoding: base64')), FORM, "Content-Transfer-Encoding"),
        (b"--XyZ\r\n\r\na\r\n--XyZ--\r\n", FORM, "no name"),
        (b"--XyZ\r\nA: " + b"a" * 10_000, FORM, "header size"),
        (form(("inputs", b"\xff\xfe", "")), FORM, "not UTF-8"),
    ],
)
def test_what_is_none_of_these_is_refused_by_name(body, media, said):
    with pytest.raises(InputError, match=said) as error:
        FILE.bytes(body, media, {})
    assert len(error.value.message) < 400


def test_too_many_fields_are_refused():
    with pytest.raises(TooLarge, match="more than 16 fields"):
        FILE.bytes(form(*[("file", b"", "")] * 17), FORM, {})
    with pytest.raises(InputError, match="more than 64 fields"):
        read_query(b"&".join(b"a=1" for _ in range(65)))


@pytest.mark.parametrize("filler", [b"\r", b"\n", b"\r\n", b"\r\n--Xy", b"--XyZ", b"-"])
def test_a_form_is_read_in_time_that_grows_with_it_and_no_faster(filler):
    data = filler * (4_000_000 // len(filler))
    began = time.process_time()
    (part,) = parts(form(("file", data, "")), FORM)
    assert part.data == data
    assert time.process_time() - began < 2  # 0.05 s were measured
