"""multipart/form-data from a body that was read already, with python-multipart's parser: few parts, short headers."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.errors import InputError, TooLarge

MAX_PARTS = 16
_SENT = "send curl's -F file=@NAME, or the bytes as they are"


@dataclass
class Part:
    """One field: its name, its bytes, whether it came with a file's name, and its own content type ("": none)."""

    name: str = ""
    data: bytes = b""
    is_file: bool = False
    media: str = ""
    headers: dict[bytes, bytes] = field(default_factory=dict)


def parts(body: bytes, content_type: str) -> list[Part]:
    """The fields of a form in their order. Raises InputError where it is none, TooLarge where it has too many."""
    import logging

    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # else a line in the log for each bad form
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise InputError(f"multipart/form-data without a boundary; {_SENT}")
    reading = _Reading()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": reading.begin,
                "on_part_data": reading.data,
                "on_part_end": reading.end,
                "on_header_field": reading.header_name,
                "on_header_value": reading.header_value,
                "on_header_end": reading.header_end,
                "on_headers_finished": reading.headers_finished,
                "on_end": reading.close,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InputError(f"the form cannot be read ({str(error)[:120]}); {_SENT}") from None
    if not reading.whole:
        raise InputError(f"the form ends in the middle; {_SENT}")
    return reading.parts


class _Reading:
    """What the parser calls as it goes over a body."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.whole = False
        self.pieces: list[bytes] = []
        self.name = self.value = b""

    def begin(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise TooLarge(f"the form has more than {MAX_PARTS} fields; send one input and `parameters`")
        self.parts.append(Part())
        self.pieces = []

    def data(self, data: bytes, start: int, end: int) -> None:
        self.pieces.append(data[start:end])

    def end(self) -> None:
        self.parts[-1].data = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self.name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def header_end(self) -> None:
        self.parts[-1].headers[self.name.lower()] = self.value
        self.name = self.value = b""

    def headers_finished(self) -> None:
        from python_multipart.multipart import parse_options_header

        part = self.parts[-1]
        kind, options = parse_options_header(part.headers.get(b"content-disposition", b""))
        if kind != b"form-data" or b"name" not in options:
            raise InputError(f"a part of the form has no name; {_SENT}")
        if part.headers.get(b"content-transfer-encoding", b"binary").lower() not in (b"binary", b"8bit", b"7bit"):
            raise InputError(f"a part of the form has a Content-Transfer-Encoding; {_SENT}")
        part.name = options[b"name"].decode("utf-8", "replace")
        part.is_file = b"filename" in options
        part.media = part.headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")

    def close(self) -> None:
        self.whole = True
