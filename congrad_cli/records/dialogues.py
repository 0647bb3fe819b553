"""Where a conversation's prompt ends, for data that does not say so."""

import re
import unicodedata
from itertools import takewhile

from congrad_cli.records.record import Messages, Place

_TURN = re.compile(r"\r?\n\r?\n(Human|Assistant):[ \t]?")
_ROLES = {"Human": "user", "Assistant": "assistant"}
NO_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U0001b000-\U0001b16f\U00020000-\U0003fffd]"
)
"""Letters of scripts that set no spaces between words (and Hangul, whose syllables are whole)."""


def starts_dialogue(text: object) -> bool:
    """Whether a text is a dialogue as hh-rlhf writes it."""
    return isinstance(text, str) and text.lstrip("\r\n").startswith("Human:")


def parse_dialogue(text: str, name: str, place: Place) -> Messages:
    """The turns of ``"\\n\\nHuman: ...\\n\\nAssistant: ..."``, without white space around."""
    parts = _TURN.split("\n\n" + text.lstrip("\r\n"))
    if parts[0].strip() or len(parts) < 2:
        place.fail("wrong-type", f"'{name}' is no dialogue.", f"saw: {text[:60]!a}",
                   "each turn begins with a blank line and Human: or Assistant:")
    messages = [
        {"role": _ROLES[role], "content": content.strip()}
        for role, content in zip(parts[1::2], parts[2::2], strict=True)
    ]
    for index, message in enumerate(messages, start=1):
        if not message["content"]:
            place.fail("empty", f"'{name}', turn {index} ({message['role']}) is empty.",
                       "give it text or remove the line")
    return messages


def split_messages(
    chosen: Messages, rejected: Messages, place: Place
) -> tuple[Messages, Messages, Messages]:
    """Prompt and answers of two dialogues: the prompt is what they share, up to an answer.

    The prompt never ends with an assistant turn: what such a turn adds to both answers cancels in
    the pair's gradient, while as a prompt it would be closed and a second one begun.
    """
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1],
                                      zip(chosen, rejected, strict=False)))
    end = min(shared, len(chosen) - 1, len(rejected) - 1)
    while end and chosen[end - 1]["role"] == "assistant":
        end -= 1
    if not end:
        place.fail(
            "no-prompt",
            "no prompt: the two dialogues share no first turn to answer.",
            f"saw: first roles {chosen[0]['role']!a} and {rejected[0]['role']!a}",
            "add a field 'prompt', or name it with --prompt-field",
        )
    return chosen[:end], chosen[end:], rejected[end:]


def split_texts(chosen: str, rejected: str, place: Place) -> tuple[str, str, str]:
    """Prompt and answers of two texts: the prompt is what they share, up to a whole word.

    As in TRL a space before the answers belongs to them. TRL also cuts inside words; here the
    common part of the first word stays with the answers, where it cancels in the pair's gradient.
    """
    end = 0
    most = min(len(chosen), len(rejected)) - 1
    while end < most and chosen[end] == rejected[end]:
        end += 1
    while end and (_inside_word(chosen, end) or _inside_word(rejected, end)):
        end -= 1
    if end and chosen[end - 1] == " ":
        end -= 1
    if not chosen[:end].strip():
        place.fail("no-prompt", "no field 'prompt', and the answers share no beginning.",
                   f"saw: {chosen[:30]!a} and {rejected[:30]!a}",
                   "add the field, or name it with --prompt-field")
    return chosen[:end], chosen[end:], rejected[end:]


def _inside_word(text: str, place: int) -> bool:
    """Whether a cut before ``text[place]`` parts a word or a character from its marks."""
    if unicodedata.combining(text[place]) or text[place] in "\u200d\ufe0f":
        return True
    return _wordlike(text[place - 1]) and _wordlike(text[place])


def _wordlike(char: str) -> bool:
    if NO_SPACES.match(char):
        return unicodedata.category(char) in ("Mn", "Mc")
    return char.isalnum() or unicodedata.category(char)[0] == "M"
