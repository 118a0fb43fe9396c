"""Which tokens of a row are learned: of a text all, of prompt and completion the completion, of a chat what the
assistant says, each with the token that ends it.

Parts are tokenized one by one, as a server does with the prompt and the model with its answer: no token straddles the
place where the model's own words begin.
"""

from __future__ import annotations

from typing import Any

from cluster.errors import InputError

Span = tuple[str, bool]  # text, and whether it is learned


def encode(row: dict[str, Any], tokenizer: Any, *, max_length: int) -> tuple[list[int], list[bool]]:
    """Tokens of a row of `text`, of `prompt` and `completion`, or of `messages`, `max_length` at most, and for each
    whether it is learned. The first token never is: nothing stands before it to tell it from.

    Raises InputError where the model's chat template is missing or refuses the row.
    """
    ids: list[int] = []
    learned: list[bool] = []
    if "messages" in row:
        parts = [(tokenizer(text, add_special_tokens=False).input_ids, yes) for text, yes in _turns(row, tokenizer)]
    elif "prompt" in row:
        parts = [
            (tokenizer(row["prompt"]).input_ids, False),
            (_ended(tokenizer(row["completion"], add_special_tokens=False).input_ids, tokenizer), True),
        ]
    else:
        parts = [(_ended(tokenizer(row["text"]).input_ids, tokenizer), True)]
    for tokens, yes in parts:
        ids += tokens
        learned += [yes] * len(tokens)
    ids, learned = ids[:max_length], learned[:max_length]
    learned[:1] = [False] * len(ids[:1])
    return ids, learned


def _ended(ids: list[int], tokenizer: Any) -> list[int]:
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _turns(row: dict[str, Any], tokenizer: Any) -> list[Span]:
    """A chat as the template writes it, cut where the assistant begins and where it has ended.

    A template that writes an answer otherwise once others follow it (some leave its thoughts out) is trained on the
    last answer only.
    """
    messages = row["messages"]
    whole = _written(messages, tokenizer, prompt=False)
    answers = [place for place, turn in enumerate(messages) if turn["role"] == "assistant"]
    spans: list[tuple[int, int]] = []
    for place in answers:
        before = _written(messages[:place], tokenizer, prompt=True)
        after = _written(messages[: place + 1], tokenizer, prompt=False)
        if whole.startswith(after) and after.startswith(before):
            spans.append((len(before), len(before) + _end(after[len(before) :], tokenizer)))
    if not spans or spans[-1][1] <= len(_written(messages[: answers[-1]], tokenizer, prompt=True)):
        raise InputError(
            "model: its chat template does not write an answer where its own prompt for one ends; give data of prompt "
            "and completion, or of text"
        )
    parts, done = [], 0
    for begin, end in spans:
        parts += [(whole[done:begin], False), (whole[begin:end], True)]
        done = end
    return [part for part in [*parts, (whole[done:], False)] if part[0]]


def _end(answer: str, tokenizer: Any) -> int:
    """Characters of an answer up to and with the token that ends it; what a template puts behind is not learned."""
    end = tokenizer.eos_token
    place = answer.rfind(end) if end else -1
    return place + len(end) if place >= 0 else len(answer)


def _written(messages: list[dict[str, Any]], tokenizer: Any, *, prompt: bool) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise InputError(
            "data: messages need a model with a chat template, and this one's tokenizer has none; take an instruct "
            "model, or give data of prompt and completion, or of text"
        )
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except (TemplateError, ValueError, TypeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        opening = str(messages[0]["content"])[:40] if messages else ""
        raise InputError(f"data: the model's chat template refuses the chat that begins {opening!r}: {said}") from None
