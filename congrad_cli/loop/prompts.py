"""Prompts: read into one pool for each language, and dealt out in slices that no two rounds share.

A pool's order is that of a hash of its prompts' ids, so that it hangs on the seed and the prompts
and not on files and lines.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from hashlib import sha256
from itertools import chain, zip_longest
from json import dumps
from pathlib import Path
from typing import Any, Self

from congrad_cli.errors import InputError
from congrad_cli.loop.model_access import Message
from congrad_cli.loop.settings import PromptsSection
from congrad_cli.records.columns import SUSPECTS, Fields
from congrad_cli.records.containers import read_items
from congrad_cli.records.content import read_messages, read_text
from congrad_cli.records.files import find_files
from congrad_cli.records.groups import Grouping
from congrad_cli.records.languages import canonical, nearest
from congrad_cli.records.objects import check_text, excerpt, names, parse_object
from congrad_cli.records.record import BadRecord, DataFile, Place
from congrad_cli.settings import RecordSettings


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked of the model: messages, of which the last one is the user's."""

    id: str
    language: str
    messages: tuple[Message, ...]

    def to_json(self) -> dict[str, Any]:
        """The item of a stage that this prompt is."""
        return {"key": self.id, "language": self.language, "messages": list(self.messages)}

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> Self:
        """The prompt of an item that has ``key``, ``language`` and ``messages``."""
        return cls(item["key"], item["language"], tuple(item["messages"]))


class Pools(dict[str, list[Prompt]]):
    """Prompts by language. ``duplicates`` counts those dropped because they stood there before."""

    def __init__(self) -> None:
        super().__init__()
        self.duplicates: Counter[str] = Counter()


def read_pools(section: PromptsSection, base: Path, option: str = "prompts.files") -> Pools:
    """The prompts of the section's files, by language; files are relative to ``base``.

    Languages that the section does not name are left out, save ``translate_from``. A prompt that
    its language has already is dropped and counted. An id that several languages use gets the
    language in front (``de/7``), so that every id is unique.

    Raises :class:`InputError` for a line that is no prompt, for two prompts of one language with
    one id, and for a language of the section that the files do not have and nothing is
    translated into.
    """
    wanted = {canonical(label) for label in section.languages}
    if wanted and section.translate_from is not None:
        wanted.add(canonical(section.translate_from))
    pools = Pools()
    seen: dict[tuple[str, str], Place] = {}
    content: set[tuple[str, str]] = set()
    for prompt, place in _read_files(locate(section.files, base)):
        if wanted and prompt.language not in wanted:
            continue
        digest = _digest(prompt)
        if (prompt.language, digest) in content:
            pools.duplicates[prompt.language] += 1
            continue
        identity = (prompt.language, prompt.id)
        if (first := seen.setdefault(identity, place)) is not place:
            place.fail("same-id", f"the id {prompt.id!r} stands at {first.source}:{first.line} too,"
                       " with another prompt.", "give each prompt of a language an id of its own")
        content.add((prompt.language, digest))
        pools.setdefault(prompt.language, []).append(prompt)
    _require(pools, wanted, section, option)
    _make_unique(pools, option)
    return pools


def trained_languages(section: PromptsSection, pools: Mapping[str, Sequence[Prompt]]) -> set[str]:
    """The languages that are trained on; ``translate_from`` need not be one of them."""
    named = set(map(canonical, section.languages)) or set(pools)
    return named | set(map(canonical, section.translate_into))


def slice_of_round(
    pools: Mapping[str, Sequence[Prompt]], number: int, per_language: int, seed: int
) -> list[Prompt]:
    """The prompts of round ``number``, from 1: ``per_language`` of each, languages in turn.

    The slices of different rounds are disjoint. Raises :class:`InputError` where a pool is too
    small for so many rounds.
    """
    end = number * per_language
    short = [f"{language} has {len(pool):,}" for language, pool in sorted(pools.items())
             if len(pool) < end]
    if short:
        raise InputError(
            f"prompts: too few for round {number}: {', '.join(short)}.",
            f"what is needed: {end:,} of each language, {per_language:,} for each round",
            "add prompts, or lower prompts.per_language or run.rounds",
        )
    dealt = [shuffled(pool, seed)[end - per_language : end] for _, pool in sorted(pools.items())]
    return [prompt for turn in zip_longest(*dealt) for prompt in turn if prompt is not None]


def shuffled(prompts: Iterable[Prompt], seed: int) -> list[Prompt]:
    """The prompts in an order that hangs on the seed and their ids alone."""
    return sorted(prompts, key=lambda prompt: sha256(f"{seed}\0{prompt.id}".encode()).digest())


def shared_prompts(
    pools: Mapping[str, Sequence[Prompt]], held_out: Iterable[Prompt]
) -> list[Prompt]:
    """Those of the held-out prompts that the pools have too, word for word."""
    trained = {(prompt.language, _digest(prompt)) for prompt in chain(*pools.values())}
    return [prompt for prompt in held_out if (prompt.language, _digest(prompt)) in trained]


def locate(arguments: Sequence[str], base: Path) -> list[DataFile]:
    """The files that names, patterns and ``{lang}`` paths relative to ``base`` stand for."""
    folder = Path(escape(str(base)))
    return find_files([
        str(base / name) if (base / name).exists() else str(folder / name) for name in arguments
    ])


def read_objects(files: Iterable[DataFile]) -> Iterator[tuple[Fields, str, Place]]:
    """Every JSON object of the files with its language and place.

    Raises :class:`InputError` at the first one that is damaged or names no language.
    """
    for file in files:
        grouping = Grouping(RecordSettings(), file, None)
        for item in read_items(file):
            if item.damage is not None:
                raise item.damage
            place = Place(file.name, item.line)
            fields = parse_object(item.raw, place)
            yield fields, _language(grouping, fields, place), place


def without_options(error: BadRecord) -> BadRecord:
    """The error with cures for a configuration file, where those of a command are options."""
    hints = [hint for hint in error.hints if "--" not in hint]
    if len(hints) == len(error.hints):
        return error
    cure = ("add a field 'language', or name the file with {lang} in its path"
            if error.code == "no-language" else "add the field, or rename the one that is meant")
    return BadRecord(error.source, error.line, error.code, error.what, *hints, cure)


def _language(grouping: Grouping, fields: Fields, place: Place) -> str:
    try:
        return grouping.group(fields, "", "", place)
    except BadRecord as error:
        raise without_options(error) from error


def _read_files(files: Iterable[DataFile]) -> Iterator[tuple[Prompt, Place]]:
    for fields, language, place in read_objects(files):
        messages = _messages(fields, place)
        prompt = Prompt("", language, messages)
        identifier = fields.get("id")
        if isinstance(identifier, bool) or not isinstance(identifier, str | int | None):
            place.fail("wrong-type", "'id' is no text and no whole number.",
                       f"saw: {excerpt(identifier)}", 'write "id": "..." or leave it out')
        name = _digest(prompt)[:16] if identifier in (None, "") else str(identifier)
        check_text(name, "id", place)
        yield Prompt(name, language, messages), place


def _messages(fields: Fields, place: Place) -> tuple[Message, ...]:
    value = fields.get("prompt")
    if value is None:
        meant = next((name for name in SUSPECTS["prompt"] if name in fields), None)
        place.fail("missing-field", "no field 'prompt'.", f"fields here: {names(fields)}",
                   f"if '{meant}' is it, call it 'prompt'" if meant else "add the field")
    if isinstance(value, str):
        return ({"role": "user", "content": read_text(value, "prompt", place)},)
    return plain_messages(read_messages(value, "prompt", place), "prompt", place)


def plain_messages(
    messages: Sequence[Mapping[str, Any]], name: str, place: Place, last: str = "user"
) -> tuple[Message, ...]:
    """Messages that hold a role and a content alone and end with a turn of ``last``."""
    for message in messages:
        if other := sorted(set(message) - {"role", "content"}):
            place.fail("unknown-key", f"'{name}': a message has the key {excerpt(other[0])}.",
                       "the loop takes messages of 'role' and 'content' alone")
    if messages[-1]["role"] != last:
        place.fail("wrong-turn", f"'{name}' does not end with a turn of the {last}.",
                   f"saw: role {excerpt(messages[-1]['role'])}", "remove what follows that turn")
    return tuple(dict(message) for message in messages)


def _digest(prompt: Prompt) -> str:
    """What names a prompt's words, whatever its id is and whatever white space is around them."""
    said = [[message["role"], message["content"].strip()] for message in prompt.messages]
    return sha256(dumps(said).encode()).hexdigest()


def _require(pools: Pools, wanted: set[str], section: PromptsSection, option: str) -> None:
    if not pools:
        asked = f"prompts.languages asks for {', '.join(sorted(wanted))}"
        raise InputError(f"{option}: there is no prompt in them.",
                         asked if wanted else "add prompts to the files")
    needed = wanted - set(map(canonical, section.translate_into))
    if section.translate_from is not None:
        needed.add(canonical(section.translate_from))
    for language in sorted(needed - pools.keys()):
        meant = nearest(language, pools)
        raise InputError(
            f"prompts.languages: the files have no prompt in {language!r}.",
            f"what they have: {', '.join(sorted(pools))}",
            f"did you mean {meant!r}?" if meant else "add prompts, or leave the language out",
        )


def _make_unique(pools: Pools, option: str) -> None:
    """Put the language before ids that several languages use."""
    uses = Counter(prompt.id for pool in pools.values() for prompt in pool)
    for language, pool in pools.items():
        pools[language] = [
            prompt if uses[prompt.id] == 1
            else Prompt(f"{language}/{prompt.id}", language, prompt.messages)
            for prompt in pool
        ]
    again = Counter(prompt.id for pool in pools.values() for prompt in pool)
    twice = next((name for name, count in again.items() if count > 1), None)
    if twice is not None:
        raise InputError(f"{option}: two prompts have the id {twice!r}.",
                         "give each prompt an id of its own")
