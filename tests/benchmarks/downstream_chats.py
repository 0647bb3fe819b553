"""Real chats beside the planted pairs of ``downstream.py --chats``; no script.

The chats are those of ``real_pairs.py``: answers of language models in English and Chinese, one
preferred to another, labels as they are until a draw swaps them. They are plain texts here, as the
planted pairs are: the turns of a prompt with an empty line between them. Held-out chats count as
languages of their own, so that tables have them apart.
"""

import random
from dataclasses import replace
from pathlib import Path

from downstream_data import SEED, HeldOut, Parts
from real_pairs import CHAT_LANGUAGES, CHATS, chat_rows
from scenarios import Pool, Row

MARK = "chat-"
"""Begins the language of a held-out chat, and the flaw of a chat that is trained on."""


def plain(row: Row) -> Row:
    """A chat as a plain text pair."""
    about = {name: value for name, value in row.items() if name != "conversations"}
    turns = "\n\n".join(turn["value"] for turn in row["conversations"])
    return about | {"prompt": turns + "\n\n",
                    "chosen": row["chosen"]["value"], "rejected": row["rejected"]["value"]}


def with_chats(parts: Parts, folder: Path, each: int = CHATS) -> Parts:
    """Of twice ``each`` chats of a language, the shortest, one half joins the data and the other
    half is held out; by lot, so that neither has the longer ones."""
    rows = [plain(row) for row in chat_rows(folder, 2 * each)]
    train, held_out = [], []
    for language in CHAT_LANGUAGES:
        chats = [row for row in rows if row["language"] == language]
        random.Random(f"{SEED}/{language}").shuffle(chats)
        train += chats[:each]
        held_out += [row | {"language": MARK + language} for row in chats[each:]]
    # only content pairs are drawn where labels are swapped; the others need no sketch
    planted = [row for row in parts.pool.rows if row["kind"] == "content" and row["place"] < 1000]
    return replace(parts, pool=Pool([*planted, *train]),
                   held_out=HeldOut([*parts.held_out.pairs, *held_out], parts.held_out.texts))
