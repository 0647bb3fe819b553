"""The shapes that preference data comes in: how each is told apart, and how it is read.

A shape turns a record's columns into prompt, chosen and rejected: three texts, or three message
lists. The first of :data:`SHAPES` that fits a record is its shape; most of a file's first records
decide for the file.
"""

from collections.abc import Callable
from dataclasses import dataclass

from congrad_cli.records.columns import Columns
from congrad_cli.records.content import assistant, read_messages, read_text, system, user
from congrad_cli.records.dialogues import (
    parse_dialogue,
    split_messages,
    split_texts,
    starts_dialogue,
)
from congrad_cli.records.objects import excerpt
from congrad_cli.records.record import Messages, Place, Text

Parts = tuple[Text, Text, Text]
"""Prompt, chosen, rejected."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to write a preference pair. ``columns`` are those that it cannot be without."""

    name: str
    about: str
    columns: tuple[str, ...]
    fits: Callable[[Columns], bool]
    read: Callable[[Columns, Place], Parts]


def _tie(what: str, place: Place) -> Parts:
    return place.fail("tie", f"no preference: {what}.")


def _texts(columns: Columns, place: Place, *wanted: str) -> list[str]:
    return [read_text(columns.require(name, place), columns.name(name), place) for name in wanted]


def _lists(columns: Columns, place: Place, *wanted: str) -> list[Messages]:
    return [read_messages(columns.require(name, place), columns.name(name), place)
            for name in wanted]


def _answers(columns: Columns, place: Place) -> tuple[Messages, Messages]:
    """Chosen and rejected as messages; a text is one assistant message."""
    chosen, rejected = (
        [assistant(_texts(columns, place, name)[0])] if columns.is_text(name)
        else _lists(columns, place, name)[0]
        for name in ("chosen", "rejected")
    )
    return chosen, rejected


def _standard(columns: Columns, place: Place) -> Parts:
    prompt, chosen, rejected = _texts(columns, place, "prompt", "chosen", "rejected")
    return prompt, chosen, rejected


def _implicit(columns: Columns, place: Place) -> Parts:
    chosen, rejected = _texts(columns, place, "chosen", "rejected")
    if chosen == rejected:
        return _same(chosen, rejected)
    return split_texts(chosen, rejected, place)


def _same(chosen: Text, rejected: Text) -> Parts:
    """Two answers that are one: refused by the reader, in the same words for every shape."""
    return "-", chosen, rejected


def _conversational(columns: Columns, place: Place) -> Parts:
    prompt = _lists(columns, place, "prompt")[0]
    chosen, rejected = _answers(columns, place)
    count = len(prompt)
    if chosen[:count] == prompt == rejected[:count] and min(len(chosen), len(rejected)) > count:
        return prompt, chosen[count:], rejected[count:]  # the answers repeat the prompt
    return prompt, chosen, rejected


def _dialogues(columns: Columns, place: Place) -> Parts:
    """Lists that hold the whole dialogue, whatever a prompt column says beside them."""
    chosen, rejected = _lists(columns, place, "chosen", "rejected")
    if chosen == rejected:
        return _same(chosen, rejected)
    prompt = columns.get("prompt")
    if isinstance(prompt, str) and {chosen[0]["role"], rejected[0]["role"]} == {"assistant"}:
        return [user(read_text(prompt, columns.name("prompt"), place))], chosen, rejected
    return split_messages(chosen, rejected, place)


def _hh_rlhf(columns: Columns, place: Place) -> Parts:
    texts = _texts(columns, place, "chosen", "rejected")
    if texts[0] == texts[1]:
        return _same(*texts)
    chosen, rejected = (parse_dialogue(text, columns.name(name), place)
                        for name, text in zip(("chosen", "rejected"), texts, strict=True))
    return split_messages(chosen, rejected, place)


def _orca(columns: Columns, place: Place) -> Parts:
    question, chosen, rejected = _texts(columns, place, "question", "chosen", "rejected")
    prompt = [*system(columns.get("system"), place), user(question)]
    return prompt, [assistant(chosen)], [assistant(rejected)]


def _instruction(columns: Columns, place: Place) -> Parts:
    """distilabel's and Alpaca's columns: an instruction, an input, or one after the other."""
    if columns.get("status") == "tie":
        return _tie("'status' is \"tie\"", place)
    given = [name for name in ("instruction", "input") if columns.get(name) not in (None, "")]
    asked = "\n".join(_texts(columns, place, *(given or ["instruction"])))
    prompt = [*system(columns.get("system"), place), user(asked)]
    return (prompt, *_answers(columns, place))


def _sharegpt(columns: Columns, place: Place) -> Parts:
    talk = _lists(columns, place, "conversations")[0]
    prompt = [*system(columns.get("system"), place), *talk]
    return (prompt, *_answers(columns, place))


def _helpsteer(columns: Columns, place: Place) -> Parts:
    preference = columns.require("overall_preference", place)
    if isinstance(preference, bool) or not isinstance(preference, int | float):
        place.fail("wrong-type", "'overall_preference' is no number.",
                   f"saw: {excerpt(preference)}",
                   "negative: response1 is better, positive: response2")
    if preference == 0:
        return _tie("'overall_preference' is 0", place)
    context = columns.require("context", place)
    prompt = ([user(read_text(context, "context", place))] if isinstance(context, str)
              else read_messages(context, "context", place))
    answers = [[assistant(text)] for text in _texts(columns, place, "response1", "response2")]
    chosen, rejected = answers if preference < 0 else answers[::-1]
    return prompt, chosen, rejected


def _shp(columns: Columns, place: Place) -> Parts:
    history, first, second = _texts(columns, place, "history", "human_ref_A", "human_ref_B")
    chosen, rejected = _chosen_first(columns, place, "labels", 1, 0, (first, second))
    return [user(history)], [assistant(chosen)], [assistant(rejected)]


def _safe_rlhf(columns: Columns, place: Place) -> Parts:
    prompt, first, second = _texts(columns, place, "prompt", "response_0", "response_1")
    chosen, rejected = _chosen_first(
        columns, place, "better_response_id", 0, 1, (first, second))
    return [user(prompt)], [assistant(chosen)], [assistant(rejected)]


def _chosen_first(
    columns: Columns, place: Place, label: str, one: int, other: int, answers: tuple[str, str]
) -> tuple[str, str]:
    """The answers, better one first: ``one`` says that it is the first, ``other`` the second."""
    value = columns.require(label, place)
    if isinstance(value, bool) or value not in (one, other):
        place.fail("wrong-type", f"'{label}' is neither 0 nor 1.", f"saw: {excerpt(value)}",
                   f"{one}: the first answer is better, {other}: the second")
    return answers if value == one else (answers[1], answers[0])


def _arena(columns: Columns, place: Place) -> Parts:
    winner = columns.require("winner", place)
    if isinstance(winner, str) and winner.startswith("tie"):
        return _tie(f"'winner' is {excerpt(winner)}", place)
    if winner not in ("model_a", "model_b"):
        place.fail("wrong-type", "'winner' is neither model_a nor model_b nor tie.",
                   f"saw: {excerpt(winner)}")
    first, second = _lists(columns, place, "conversation_a", "conversation_b")
    chosen, rejected = (first, second) if winner == "model_a" else (second, first)
    if chosen == rejected:
        return _same(chosen, rejected)
    return split_messages(chosen, rejected, place)


_PAIR = ("chosen", "rejected")

SHAPES = (
    Shape("helpsteer3", "context, response1, response2; the sign of overall_preference",
          ("context", "response1", "response2", "overall_preference"),
          lambda c: c.has("response1", "response2", "overall_preference"), _helpsteer),
    Shape("shp", "history, human_ref_A, human_ref_B; labels says which is better",
          ("history", "human_ref_A", "human_ref_B", "labels"),
          lambda c: c.has("human_ref_A", "human_ref_B"), _shp),
    Shape("arena", "conversation_a, conversation_b; winner says which is better",
          ("conversation_a", "conversation_b", "winner"),
          lambda c: c.has("conversation_a", "conversation_b"), _arena),
    Shape("safe-rlhf", "prompt, response_0, response_1; better_response_id says which is better",
          ("prompt", "response_0", "response_1", "better_response_id"),
          lambda c: c.has("response_0", "response_1"), _safe_rlhf),
    Shape("sharegpt", "conversations, and one answer in chosen and in rejected",
          ("conversations", *_PAIR), lambda c: c.is_messages("conversations") and c.has(*_PAIR),
          _sharegpt),
    Shape("hh-rlhf", "dialogues as text, turns after Human: and Assistant:", _PAIR,
          lambda c: not c.has("prompt") and all(map(starts_dialogue, map(c.get, _PAIR))),
          _hh_rlhf),
    Shape("standard", "texts in prompt, chosen, rejected", ("prompt", *_PAIR),
          lambda c: c.is_text("prompt", *_PAIR), _standard),
    Shape("conversational", "message lists in prompt, chosen, rejected", ("prompt", *_PAIR),
          lambda c: c.is_messages("prompt") and c.has(*_PAIR), _conversational),
    Shape("ultrafeedback", "whole dialogues in chosen and rejected; the prompt text is not used",
          ("prompt", *_PAIR), lambda c: c.is_text("prompt") and c.is_messages(*_PAIR), _dialogues),
    Shape("orca", "question, perhaps system, and texts in chosen and rejected",
          ("question", *_PAIR), lambda c: c.is_text("question", *_PAIR), _orca),
    Shape("instruction", "instruction or input, perhaps system, and chosen and rejected", _PAIR,
          lambda c: (c.is_text("instruction") or c.is_text("input")) and c.has(*_PAIR),
          _instruction),
    Shape("implicit-conversational", "whole dialogues in chosen and rejected", _PAIR,
          lambda c: c.is_messages(*_PAIR), _dialogues),
    Shape("implicit", "texts in chosen and rejected that begin with the prompt", _PAIR,
          lambda c: c.is_text(*_PAIR), _implicit),
)
NAMES = tuple(shape.name for shape in SHAPES)


def detect(columns: Columns) -> Shape | None:
    """The record's shape; None where none fits."""
    return next((shape for shape in SHAPES if shape.fits(columns)), None)


def shape_named(name: str) -> Shape:
    """The shape of this name, which must be one of :data:`NAMES`."""
    return next(shape for shape in SHAPES if shape.name == name)


def read_parts(columns: Columns, shape: Shape | None, forced: bool, place: Place) -> Parts:
    """Prompt, chosen and rejected of a record in a file of the given shape (None: not known).

    ``forced``: the user named the shape, so the record is read as such whatever it looks like.
    """
    own = detect(columns)
    if shape is None:
        shape = own
    if shape is None:
        for name in _PAIR:
            columns.require(name, place)
        return _mixed_types(columns, place)
    if own is not shape and not forced:
        for name in shape.columns:
            columns.require(name, place)
        if own is None:
            _mixed_types(columns, place)
        else:
            place.fail(
                "mixed-shapes",
                f"of the shape '{own.name}', while the file's is '{shape.name}'.",
                f"saw: {own.about}",
                "put such records into a file of their own: trainers judge a file by its first",
            )
    return shape.read(columns, place)


def _mixed_types(columns: Columns, place: Place) -> Parts:
    """Say why columns that are there make no pair."""
    kinds = []
    for name in ("prompt", *_PAIR):
        if columns.has(name):
            value = columns.get(name)
            if not isinstance(value, str | list | dict):
                read_text(value, columns.name(name), place)
            what = "text" if isinstance(value, str) else "a message list"
            kinds.append(f"{columns.name(name)} is {what}")
    return place.fail("mixed-types", "texts and message lists are mixed.",
                      f"saw: {', '.join(kinds)}", "use one of the two")
