"""What the messages of a chat may hold for a model that reads text: text.

An engine fetches what a message's `image_url` names as soon as its model sees pictures, and unpacks what a data: URI
holds. For a model of texts both are refused here, so that it doesn't hang on the engine whether they are looked at.
"""

from __future__ import annotations

from typing import Any

from cluster.errors import InputError

# Of the forms in which OpenAI's clients and vLLM's write a part of a message, those that are text.
_TEXT = ("text", "input_text", "output_text", "refusal", "thinking", "tool_reference")
_OTHERS = ("image", "audio", "video", "file", "embeds")


def check(request: dict[str, Any], model: str) -> None:
    """Raises InputError with the place of the first part of a chat that is no text."""
    messages = request.get("messages")
    if not isinstance(messages, list):
        return  # the engine says what is wrong with it
    for row, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        for column, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and (kind := _not_text(part)):
                raise InputError(
                    f"messages[{row}].content[{column}]: {kind[:40]}: {model} reads text only; send "
                    '{"type": "text", "text": ...}. Addresses are fetched for no model'
                )


def _not_text(part: dict[str, Any]) -> str:
    """What a part is where it is no text. A part without a type is what its keys say, to vLLM."""
    kind = part.get("type", "text")
    if not isinstance(kind, str) or kind not in _TEXT:
        return str(kind)
    return next((key for key in part if any(word in key for word in _OTHERS)), "")
