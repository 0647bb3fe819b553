"""What ``rounds.py`` runs the loop on and measures by; no script.

Held-out pairs and texts are those of ``downstream.py``, and held-out prompts are the prompts of
those pairs. The loop's prompts are first halves of other paragraphs, of pages that no held-out pair
is from, in the ten languages that trainings see; nothing of the learning-rate sweep is among them.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from conflicts import Table, text
from downstream_data import (
    BETWEEN,
    SEEN,
    HeldOut,
    free_paragraphs,
    page_of,
    parts_of_bundled,
    parts_of_text,
)
from rounds_judge import Judge, Truth
from scenarios import Row


@dataclass(frozen=True)
class Data:
    """The loop's prompts (``id``, ``language``, ``prompt``, ``rest``), and what is measured by."""

    prompts: list[Row]
    held_out: HeldOut

    def digest(self) -> str:
        """Of the prompts and how they go on."""
        return hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()

    def judge(self) -> Judge:
        """Who knows how all prompts go on, the held-out ones too."""
        known = {row["prompt"]: Truth(row["language"], row["chosen"])
                 for row in self.held_out.pairs}
        asked = {row["prompt"]: Truth(row["language"], row["rest"]) for row in self.prompts}
        return Judge(known | asked, frozenset(truth.language for truth in asked.values()))

    def write_prompts(self, path: Path) -> None:
        """As ``prompts.files`` of the loop."""
        rows = ({name: row[name] for name in ("id", "language", "prompt")} for row in self.prompts)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
                        encoding="utf-8", newline="\n")


def prompts_of(table: Table, keys: Iterable[text.Key], languages: Sequence[str]) -> list[Row]:
    """The halves of paragraphs whose first half is new in every language."""
    seen: set[str] = set()
    rows = []
    for key in keys:
        halves = {one: text.halves_of(table[key][one], one) for one in languages}
        firsts = {half.first.strip() for half in halves.values()}
        if not firsts & seen and len(firsts) == len(languages):
            seen |= firsts
            rows += [{"id": f"{'/'.join(key)}/{one}", "language": one, "prompt": half.first,
                      "rest": half.rest} for one, half in halves.items()]
    return rows


def data_of_text(path: Path, pool: list[Row], pairs: int, texts: int) -> Data:
    """From the parallel text and the pool of ``conflicts.py``."""
    held_out = parts_of_text(path, pool, pairs, texts).held_out
    table, pages = text.read_translations(path), {page_of(row["item"]) for row in pool}
    near = [key for key in free_paragraphs(table, pool) if page_of("/".join(key)) in pages]
    measured = {row["prompt"].strip() for row in held_out.pairs}
    of_texts = {row["item"] for row in held_out.texts}
    keys = [key for key in near[BETWEEN:] if "/".join(key) not in of_texts and not measured
            & {text.halves_of(table[key][one], one).first.strip() for one in SEEN}]
    return Data(prompts_of(table, keys, SEEN), held_out)


def data_of_bundled(languages: tuple[str, ...], prompts: int, held_out: int) -> Data:
    """A very small set from the bundled pairs; the last language is not trained on."""
    parts = parts_of_bundled(languages, prompts, held_out)
    rows = [{"id": row["id"], "language": row["language"], "prompt": row["prompt"],
             "rest": row["chosen"]} for row in parts.pool.rows]
    return Data(rows, parts.held_out)
