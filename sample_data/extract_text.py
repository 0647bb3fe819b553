"""Extract parallel text from unpacked Debian and npm packages into one JSONL file.

Sources: the help pages of LibreOffice (one folder per language), its user interface
messages, and the Universal Declaration of Human Rights. Rows that share ``src`` and ``key``
are translations of each other, so the pairs built from them ask the same thing in every
language. Standard library only: rebuilding the data must not need the tool's dependencies.
"""

from __future__ import annotations

import argparse
import gettext
import html
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

HELP_FOLDERS = {
    "en": "en-US", "de": "de", "fr": "fr", "es": "es", "it": "it", "pt": "pt", "ru": "ru",
    "zh": "zh-CN", "ja": "ja", "ko": "ko", "tr": "tr", "vi": "vi", "id": "id", "hi": "hi",
    "nl": "nl", "pl": "pl",
}  # fmt: skip
UDHR_FILES = {
    "en": "eng", "de": "deu_1996", "fr": "fra", "es": "spa", "it": "ita", "pt": "por_PT",
    "ru": "rus", "zh": "cmn_hans", "ja": "jpn", "ko": "kor", "tr": "tur", "vi": "vie",
    "id": "ind", "hi": "hin", "nl": "nld", "pl": "pol", "ar": "arb", "sw": "swh",
    "th": "tha", "bn": "ben",
}  # fmt: skip
UDHR_SHIFTED = {
    ("sw", "21")
}  # same number of paragraphs, but the second one holds the third's text
MESSAGE_LANGUAGES = ("ar", "th", "bn")

MIN_ENGLISH_CHARS = 40
PARAGRAPH = re.compile(r'<p id="([^"]+)"([^>]*)>(.*?)</p>', re.DOTALL)
SKIPPED_CLASS = re.compile(r'class="[^"]*(?:code|image|related|tablehead|example)')
SPAN_OR_BREAK = re.compile(r"<(/?)(span|br)\b([^>]*)>|<[^>]+>")
ARTICLE = re.compile(r'<article data-number="(\d+)">(.*?)</article>', re.DOTALL)
PREAMBLE = re.compile(r"<header>(.*?)</header>", re.DOTALL)
PLAIN_PARAGRAPH = re.compile(r"<p>(.*?)</p>", re.DOTALL)
MESSAGE_MARKUP = re.compile(r"[~_%$<>{}\\]")

Row = dict[str, str]
Texts = dict[str, str]


def clean(text: str) -> str:
    """Decode entities, collapse white space and compose accents (NFC).

    Some editions are stored decomposed; without one form, equal words would not be equal.
    """
    return unicodedata.normalize("NFC", " ".join(html.unescape(text).split()))


def visible_text(markup: str) -> str | None:
    """Return the text a reader sees on an ordinary desktop, or None where there is no such text.

    A page holds one hidden span per system or program ("Cmd" for macOS, "Ctrl" otherwise).
    Only the default one is kept; a choice without a default would leave a hole in the sentence.
    """
    parts: list[str] = []
    spans: list[bool] = []  # one entry per open span: is its text left out?
    choices = defaults = position = 0
    for tag in SPAN_OR_BREAK.finditer(markup):
        if not any(spans):
            parts.append(markup[position : tag.start()])
        position = tag.end()
        closing, name, attributes = tag.groups()
        if name == "br":
            parts.append(" ")
        elif name == "span" and closing and spans:
            spans.pop()
        elif name == "span" and not closing:
            hidden = "hidden=" in attributes
            choices += 'class="switch' in attributes
            defaults += hidden and "class=" not in attributes
            spans.append(hidden and "class=" in attributes)
    parts.append(markup[position:])
    return clean("".join(parts)) if choices == defaults else None


def help_texts(folder: Path) -> Texts:
    """Map page and paragraph id to text for one language edition of the help."""
    texts: Texts = {}
    for page in sorted((folder / "text").rglob("*.html")):
        name = page.relative_to(folder / "text").with_suffix("").as_posix()
        for identifier, attributes, body in PARAGRAPH.findall(page.read_text(encoding="utf-8")):
            if SKIPPED_CLASS.search(attributes):
                continue
            text = visible_text(body)
            if text:
                texts.setdefault(f"{name}#{identifier}", text)
    return texts


def distinct_keys(english: Texts) -> list[str]:
    """Return the keys of long enough English paragraphs, each wording once.

    Pages embed one another, so one paragraph stands under many keys; a copy left in would let
    a held-out paragraph slip back into the training text.
    """
    first: dict[str, str] = {}
    for key, text in english.items():
        if len(text) >= MIN_ENGLISH_CHARS:
            first.setdefault(text, key)
    return list(first.values())


def help_rows(root: Path) -> Iterator[Row]:
    """Yield the help paragraphs of every language; untranslated ones are left out."""
    english = help_texts(root / HELP_FOLDERS["en"])
    keys = distinct_keys(english)
    for language, folder in HELP_FOLDERS.items():
        texts = english if language == "en" else help_texts(root / folder)
        for key in keys:
            text = texts.get(key)
            if text and (language == "en" or text != english[key]):
                yield {"src": "help", "key": key, "lang": language, "text": text}


def message_texts(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (key, English, translation) of the sentence-like messages of one language."""
    for path in sorted(folder.glob("*.mo")):
        with path.open("rb") as file:
            catalog = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        for identifier, translation in catalog.items():
            if not isinstance(identifier, str) or "\x04" not in identifier:
                continue
            context, english = identifier.split("\x04", 1)
            if MESSAGE_MARKUP.search(english) or translation == english:
                continue
            if len(english) >= MIN_ENGLISH_CHARS and english.rstrip().endswith("."):
                yield f"{path.stem}:{context}", clean(english), clean(translation)


def message_rows(root: Path) -> Iterator[Row]:
    """Yield interface messages for the languages that have no help edition.

    Without them these languages would have only the fifty paragraphs of the Declaration.
    """
    for language in MESSAGE_LANGUAGES:
        seen: set[str] = set()
        for key, english, translation in message_texts(root / language / "LC_MESSAGES"):
            if english not in seen:
                seen.add(english)
                yield {"src": "ui", "key": key, "lang": language, "text": translation}


def udhr_texts(path: Path) -> dict[str, list[str]]:
    """Map article number to paragraphs; the preamble is article "0"."""
    page = path.read_text(encoding="utf-8")
    articles = dict(ARTICLE.findall(page))
    preamble = PREAMBLE.search(page)
    if preamble:
        articles["0"] = preamble.group(1)
    return {
        number: [clean(text) for text in PLAIN_PARAGRAPH.findall(body)]
        for number, body in articles.items()
    }


def udhr_rows(folder: Path) -> Iterator[Row]:
    """Yield the Declaration, aligned by article and position.

    The preamble and any article that a translator divided differently are not parallel: their
    keys carry the language, so that they serve as text but never as translations.
    """
    english = udhr_texts(folder / f"{UDHR_FILES['en']}.html")
    for language, name in UDHR_FILES.items():
        for number, paragraphs in udhr_texts(folder / f"{name}.html").items():
            divided_alike = len(paragraphs) == len(english.get(number, []))
            parallel = divided_alike and number != "0" and (language, number) not in UDHR_SHIFTED
            mark = "" if parallel else f"-{language}"
            for position, text in enumerate(paragraphs, start=1):
                key = f"article-{number}.{position}{mark}"
                if text:
                    yield {"src": "udhr", "key": key, "lang": language, "text": text}


def main() -> None:
    """Read the three source folders and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--help-root", type=Path, required=True, help="folder with de, en-US, ...")
    parser.add_argument("--messages-root", type=Path, required=True, help="folder with ar, th, bn")
    parser.add_argument("--udhr", type=Path, required=True, help="declaration folder of udhr")
    parser.add_argument("--out", type=Path, default=Path("parallel.jsonl"))
    args = parser.parse_args()
    with args.out.open("w", encoding="utf-8", newline="\n") as file:
        for rows in (
            help_rows(args.help_root),
            message_rows(args.messages_root),
            udhr_rows(args.udhr),
        ):
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
