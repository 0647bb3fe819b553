"""Options with a few values, which shells complete."""

from collections.abc import Callable
from typing import Any

import typer


def choice(values: str, **about: Any) -> Any:
    """An option that takes one of ``values``: ``mean|ema``, or with others, ``raw|unit|clip:Q``.

    Words in capitals or with a number to fill in are shown and not completed.
    """
    words = [word for word in values.split("|") if word == word.lower()]
    return typer.Option(metavar=values, autocompletion=_starting(words), **about)


def _starting(words: list[str]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete
