"""What rounds are measured by: prompts, preference pairs and texts that no round trains on."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from congrad_cli.errors import InputError
from congrad_cli.loop.model_access import Message
from congrad_cli.loop.prompts import (
    Prompt,
    locate,
    plain_messages,
    read_objects,
    read_pools,
    shared_prompts,
    shuffled,
    without_options,
)
from congrad_cli.loop.settings import EvaluateSection, PromptsSection
from congrad_cli.records.content import read_text
from congrad_cli.records.objects import names
from congrad_cli.records.reader import read_records
from congrad_cli.records.record import Place, Record, Rejected, Text
from congrad_cli.settings import RecordSettings


@dataclass(frozen=True, slots=True)
class HeldOutPair:
    """A preference pair, ready to be weighed."""

    id: str
    language: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class HeldOutText:
    """A text, ready to be weighed."""

    id: str
    language: str
    text: str


Part = TypeVar("Part", HeldOutPair, HeldOutText)


def read_prompts(section: EvaluateSection, base: Path, seed: int) -> list[Prompt]:
    """At most ``per_language`` prompts of each language, drawn by the seed.

    Raises :class:`InputError` as :func:`congrad_cli.loop.prompts.read_pools` does.
    """
    if not section.prompts:
        return []
    pools = read_pools(replace(PromptsSection(), files=section.prompts), base, "evaluate.prompts")
    return [prompt for _, pool in sorted(pools.items())
            for prompt in shuffled(pool, seed)[: section.per_language]]


def read_pairs(section: EvaluateSection, base: Path) -> list[HeldOutPair]:
    """The first ``per_language`` pairs of each language; any shape that ``congrad sketch`` reads.

    Pairs and texts are named by their content, and one that stands there twice is read once.
    Raises :class:`InputError` for a record that is no pair, or whose answers are more than one
    turn of the assistant.
    """
    if not section.pairs:
        return []
    files = locate(section.pairs, base)
    return list(_first(map(_pair, _records(read_records(files, RecordSettings()))),
                       section.per_language))


def read_texts(section: EvaluateSection, base: Path) -> list[HeldOutText]:
    """The first ``per_language`` texts of each language, from objects with a field ``text``.

    Raises :class:`InputError` for a line that has no text or no language.
    """
    if not section.text:
        return []
    return list(_first(_texts(section, base), section.per_language))


def _texts(section: EvaluateSection, base: Path) -> Iterator[HeldOutText]:
    for fields, language, place in read_objects(locate(section.text, base)):
        if fields.get("text") is None:
            place.fail("missing-field", "no field 'text'.", f"fields here: {names(fields)}",
                       'write {"language": "de", "text": "..."}')
        text = read_text(fields["text"], "text", place)
        yield HeldOutText(sha256(f"{language}\0{text}".encode()).hexdigest()[:16], language, text)


def _records(found: Iterable[Record | Rejected]) -> Iterator[Record]:
    for record in found:
        if isinstance(record, Rejected):
            raise without_options(record.error)
        yield record


def _pair(record: Record) -> HeldOutPair:
    place = Place(record.source, record.line)
    prompt = record.prompt
    if isinstance(prompt, str):
        messages: tuple[Message, ...] = ({"role": "user", "content": prompt},)
    else:
        messages = plain_messages(prompt, "prompt", place)
    return HeldOutPair(f"{record.group}-{record.digest().hex()[:16]}", record.group, messages,
                       _answer(record.chosen, "chosen", place),
                       _answer(record.rejected, "rejected", place))


def _answer(answer: Text, name: str, place: Place) -> str:
    if isinstance(answer, str):
        return answer
    if len(answer) != 1:
        place.fail("wrong-turn", f"'{name}' is {len(answer)} turns, not one answer.",
                   "evaluation takes pairs whose answers are one turn of the assistant")
    return plain_messages(answer, name, place, last="assistant")[0]["content"]


def _first(parts: Iterable[Part], count: int) -> Iterator[Part]:
    """The first ``count`` parts of each language, in order, each but once."""
    taken: Counter[str] = Counter()
    seen: set[str] = set()
    for part in parts:
        if part.id not in seen and taken[part.language] < count:
            taken[part.language] += 1
            seen.add(part.id)
            yield part


def require_held_out(
    prompts: Sequence[Prompt], pairs: Sequence[HeldOutPair],
    pools: Mapping[str, Sequence[Prompt]],
) -> None:  # fmt: skip
    """Raise :class:`InputError` where prompts to measure by stand in the pools, word for word."""
    of_pairs = [Prompt(pair.id, pair.language, pair.messages) for pair in pairs]
    for name, held_out in (("prompts", prompts), ("pairs", of_pairs)):
        if shared := shared_prompts(pools, held_out):
            first = shared[0]
            raise InputError(
                f"evaluate.{name}: {len(shared):,} of {len(held_out):,} are in prompts.files too.",
                f"the first one: {first.id} ({first.language})",
                "measure by prompts that no round trains on",
            )
