"""Real, fluent preference pairs as pools for ``real_detection.py``; nothing in them is spoilt.

``chat`` reads the demo data of LLaMA-Factory (``dpo_en_demo.json``, ``dpo_zh_demo.json``): chat
answers of language models, one preferred to another by a judge. ``options`` reads the worked
examples of the multilingual MMLU tasks in lm-eval (``mmlu_de`` and so on): the right answer to a
question against a wrong one, the same question and option in seven languages. Both come out of
packages of the package index, which are unpacked, not installed:

    pip download --no-deps --no-binary :all: llamafactory==0.9.5
    pip download --no-deps lm-eval==0.4.13
    python tests/benchmarks/real_pairs.py chat llamafactory-0.9.5/data --out chat.jsonl
    python tests/benchmarks/real_pairs.py options lm_eval/tasks/llama3/instruct --out options.jsonl

The output depends on these files alone. ``--planted`` adds the draws from both kinds of pairs
together to the digests that are printed; docs/evidence.md has them.
"""

import argparse
import hashlib
import html
import json
import random
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from scenarios import Pool, Row, Scenarios, all_swapped, digest, read_rows, swapped

SEED = 2026
CHAT_LANGUAGES = ("en", "zh")
OPTION_LANGUAGES = ("de", "es", "fr", "hi", "it", "pt", "th")
CHATS = 80
"""Pairs of each language: the shortest, to keep it small."""
QUESTIONS = 30
"""Of each subject the shortest question; of those the shortest."""
FIRST_PLACE = 100
"""Planted paragraphs have smaller numbers."""
PLANTED_LEVEL = 1


def real_scenarios(languages: Iterable[str]) -> Scenarios:
    """A share of the labels of every language is swapped, or all of one language."""
    return {
        **{f"swapped-{rate}": partial(swapped, rate=rate / 100) for rate in (5, 10, 20, 40)},
        **{f"adversarial-{one}": partial(all_swapped, bad=(one,)) for one in languages},
    }


SCENARIOS = {
    "chat": real_scenarios(CHAT_LANGUAGES),
    "options": real_scenarios(OPTION_LANGUAGES[:1]),
}


def chat_rows(folder: Path, count: int = CHATS) -> list[Row]:
    """The shortest pairs of each language, one for each prompt, as their files have them."""
    rows = []
    for language in CHAT_LANGUAGES:
        records = json.loads((folder / f"dpo_{language}_demo.json").read_text(encoding="utf-8"))
        first: dict[str, tuple[int, Row]] = {}
        for number, record in enumerate(records):
            first.setdefault(json.dumps(record["conversations"]), (number, record))
        shortest = sorted(first.values(), key=lambda found: _bytes(found[1]))[:count]
        rows += [_chat_row(language, number, record, FIRST_PLACE + place)
                 for place, (number, record) in enumerate(sorted(shortest, key=lambda of: of[0]))]
    return rows


def _bytes(record: Row) -> int:
    texts = [*record["conversations"], record["chosen"], record["rejected"]]
    return sum(len(turn["value"].encode()) for turn in texts)


def _chat_row(language: str, number: int, record: Row, place: int) -> Row:
    name = f"chat-{language}-{number:03d}"
    better, worse = record["chosen"]["value"], record["rejected"]["value"]
    return record | _about(name, language, name, f"chat-{language}", place, better, worse)


def option_rows(folder: Path, count: int = QUESTIONS) -> list[Row]:
    """The shortest questions, in every language; the wrong option is drawn once for all."""
    table = {language: _questions(folder / f"mmlu_{language}", language)
             for language in OPTION_LANGUAGES}
    subjects: dict[str, list[tuple[int, str]]] = {}
    for name in table[OPTION_LANGUAGES[0]]:
        pairs = [_options(table[language][name], name) for language in OPTION_LANGUAGES]
        if all(better != worse for _, better, worse in pairs):  # a translation can make them one
            length = sum(len("".join(texts)) for texts in pairs)
            subjects.setdefault(name.split("/")[0], []).append((length, name))
    shortest = sorted(min(names) for names in subjects.values())[:count]
    return [_option_row(language, name, table[language][name], FIRST_PLACE + place)
            for place, (_, name) in enumerate(shortest) for language in OPTION_LANGUAGES]


def _questions(folder: Path, language: str) -> dict[str, Any]:
    """SUBJECT/NUMBER -> worked example."""
    found = {}
    for path in sorted(folder.glob(f"mmlu_{language}_*.yaml")):
        subject = path.stem.removeprefix(f"mmlu_{language}_")
        examples = read_yaml(path)["fewshot_config"]["samples"]
        found |= {f"{subject}/{number}": one for number, one in enumerate(examples)}
    return found


def read_yaml(path: Path) -> Any:
    """A task's file; what names a function of its package is None."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Knows ``!function``."""

    Loader.add_constructor("!function", lambda loader, node: None)
    with path.open(encoding="utf-8") as file:
        return yaml.load(file, Loader)


def _options(example: Any, name: str) -> tuple[str, str, str]:
    """Question, right option and a wrong one."""
    right = example["input_correct_responses"][0]
    options = example["input_choice_list"]
    wrong = random.Random(f"{SEED}/{name}").choice(sorted(set(options) - {right}))
    texts = (example["input_question"], options[right], options[wrong])
    question, better, worse = (html.unescape(str(text)).strip() for text in texts)
    return question, better, worse


def _option_row(language: str, name: str, example: Any, place: int) -> Row:
    question, better, worse = _options(example, name)
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": better}],
        "rejected": [{"role": "assistant", "content": worse}],
    } | _about(f"{name}-{language}", language, name, "option", place, better, worse)


def _about(
    name: str, language: str, item: str, flaw: str, place: int, better: str, worse: str
) -> Row:
    """The columns of ``conflicts.py`` beside the texts; ``flaw`` says where the pair is from."""
    return {"id": name, "language": language, "item": item, "kind": "content", "flaw": flaw,
            "longer": len(worse) > len(better), "place": place, "level": PLANTED_LEVEL}


READERS = {"chat": chat_rows, "options": option_rows}


def main() -> None:
    """Write the rows, and print digests of them and of all draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=READERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--planted", type=Path, help="the pool of conflicts.py")
    args = parser.parse_args()
    rows, scenarios = READERS[args.kind](args.folder), SCENARIOS[args.kind]
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    args.out.write_bytes(data)
    print(f"{len(rows)} pairs, SHA-256 {hashlib.sha256(data).hexdigest()}")
    print(f"draws, SHA-256 {digest(Pool(rows), scenarios)}")
    if args.planted:
        both = Pool([*rows, *read_rows(args.planted)], PLANTED_LEVEL)
        print(f"draws with the planted pairs, SHA-256 {digest(both, scenarios)}")


if __name__ == "__main__":
    main()
