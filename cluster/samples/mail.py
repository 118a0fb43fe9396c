"""What a person reads of a mail: its subject and its body, as one line of text."""

from __future__ import annotations

import email
import email.errors
import email.header
import email.message
from html.parser import HTMLParser

# What lies further down a very long mail (digests, pasted programs) is no reader's first look.
MAX_CHARACTERS = 20_000


def text_of(raw: bytes) -> str:
    """Subject and readable body with white space folded, MAX_CHARACTERS at most; empty where there is neither.

    Plain parts are taken, or HTML parts without their tags where there is no plain one; attachments are left out.
    """
    mail = email.message_from_bytes(raw)
    plain, marked = [], []
    for part in mail.walk():
        if part.get_content_maintype() != "text" or "attachment" in str(part.get("Content-Disposition", "")).lower():
            continue
        if part.get_content_subtype() == "html":
            marked.append(_strip(_decoded(part)))
        else:
            plain.append(_decoded(part))
    body = " ".join(plain) if any(text.strip() for text in plain) else " ".join(marked)
    text = " ".join(f"{_subject(mail)} {body}".replace("\0", " ").split())
    return text[:MAX_CHARACTERS].rstrip()


def _subject(mail: email.message.Message) -> str:
    subject = mail.get("Subject", "")
    try:
        return str(email.header.make_header(email.header.decode_header(subject)))
    except (LookupError, UnicodeError, ValueError, email.errors.HeaderParseError):
        return str(subject)  # a character set that does not exist: as it stands


def _decoded(part: email.message.Message) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    try:
        return payload.decode(part.get_content_charset() or "utf-8")
    except (LookupError, UnicodeDecodeError, ValueError):
        return payload.decode("latin-1")  # gives every byte a character; what old mailers without a charset sent


def _strip(html: str) -> str:
    words = _Words()
    words.feed(html)
    words.close()
    return " ".join(words.found)


class _Words(HTMLParser):
    """Collects the text between tags, without scripts and styles."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._hidden = max(0, self._hidden - 1)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.found.append(data)
