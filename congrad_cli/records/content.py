"""Texts and messages of a record: checked, and brought to one form whatever wrote them."""

from typing import Any

from congrad_cli.records.objects import check_parts, check_text, excerpt, kind
from congrad_cli.records.record import Messages, Place, Text

ROLES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "observation": "tool", "function_call": "assistant",
}  # fmt: skip
"""What ShareGPT and others call the roles that chat templates know."""
MESSAGE = 'write {"role": "user", "content": "..."}'
MAY_BE_EMPTY = ("system", "developer")


def read_text(value: Any, name: str, place: Place) -> str:
    """A text that says something."""
    if not isinstance(value, str):
        place.fail(
            "wrong-type",
            f"'{name}' is a JSON {kind(value)}, not text and not a message list.",
            f"saw: {excerpt(value)}",
            'write "..." or [{"role": "user", "content": "..."}]',
        )
    if not value.strip():
        place.fail("empty", f"'{name}' is empty.", f"saw: {excerpt(value)}",
                   "give it text or remove the line")
    check_text(value, name, place)
    return value


def read_messages(value: Any, name: str, place: Place) -> Messages:
    """A message list; one message alone counts as a list of one."""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        place.fail("wrong-type", f"'{name}' is a JSON {kind(value)}, not a message list.",
                   f"saw: {excerpt(value)}", MESSAGE)
    if not value:
        place.fail("empty", f"'{name}' is empty.", "saw: []",
                   "give it a message or remove the line")
    return [_message(message, f"'{name}', message {i}", name, place)
            for i, message in enumerate(value, start=1)]


def _message(message: Any, where: str, name: str, place: Place) -> dict[str, Any]:
    """One message with ``role`` and ``content`` as text; keys that hold null are left out."""
    if not isinstance(message, dict):
        place.fail("wrong-type", f"{where}: a JSON {kind(message)}, not an object.", MESSAGE)
    check_parts(message, name, place)
    shared = "from" in message and "role" not in message
    keys = ("from", "value") if shared else ("role", "content")
    role, content = message.get(keys[0]), _joined(message.get(keys[1]))
    if content is None and message.get("tool_calls"):
        content = ""
    for key, part in zip(keys, (role, content), strict=True):
        if not isinstance(part, str):
            found = ", ".join(map(str, list(message)[:6])) or "none"
            saw = excerpt(message[key]) if key in message else f"keys {found}"
            place.fail("wrong-type", f"{where}: no text in '{key}'.", f"saw: {saw}", MESSAGE)
    assert isinstance(role, str) and isinstance(content, str)
    may_be_empty = role in MAY_BE_EMPTY or message.get("tool_calls")
    for key, part in zip(keys, (role, content), strict=True):
        if not part.strip() and not (key == keys[1] and may_be_empty):
            place.fail("empty", f"{where}: '{key}' is empty.", "give it text or remove the line")
    rest = {key: part for key, part in message.items() if part is not None and key not in keys}
    return {"role": ROLES.get(role, role), "content": content, **rest}


def _joined(content: Any) -> Any:
    """The text of a content that is a list of text parts; anything else as it is."""
    if isinstance(content, list) and content and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        return "".join(part["text"] for part in content)
    return content


def user(text: str) -> dict[str, Any]:
    """What a user said, as a message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    """An answer, as a message."""
    return {"role": "assistant", "content": text}


def system(text: Any, place: Place) -> Messages:
    """The system message of a column that may be absent or empty."""
    if text is None or (isinstance(text, str) and not text.strip()):
        return []
    return [{"role": "system", "content": read_text(text, "system", place)}]


def check_conversation(prompt: Text, chosen: Text, rejected: Text, place: Place) -> None:
    """Refuse conversations whose turns are in an order that cannot be answered."""
    if isinstance(prompt, str):
        return
    if prompt[-1]["role"] == "assistant":
        place.fail(
            "assistant-prompt",
            "the prompt ends with an assistant turn; an answer would begin a second one.",
            f"saw: {excerpt(prompt[-1]['content'])}",
            "move that turn into both answers, or remove it",
        )
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        last = answer[-1]
        if isinstance(last, dict) and last["role"] == "user":
            place.fail("no-answer", f"'{name}' ends with a user turn, not with an answer.",
                       f"saw: {excerpt(last['content'])}", "add the answer, or remove the turn")
