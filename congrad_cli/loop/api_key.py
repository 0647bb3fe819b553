"""A server's API key, from the environment, and how it is kept out of every message."""

import json
import os
from urllib.parse import quote

from congrad_cli.errors import ModelError

SHOWN = 300
"""Characters of a foreign message that an error shows."""

TELLING = 8
"""So many characters of a key's beginning give it away."""


class ApiKey:
    """The key in one variable of the environment; empty where it is not set."""

    def __init__(self, variable: str) -> None:
        self.variable = variable
        self._key = os.environ.get(variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable() and " " not in self._key):
            raise ModelError(
                f"${variable} holds no API key: there are characters in it that no key has.",
                f"set {variable} to the key alone, in one line",
            )

    def __bool__(self) -> bool:
        return bool(self._key)

    def __repr__(self) -> str:
        return f"ApiKey({self.variable})"

    def headers(self) -> dict[str, str]:
        """What a request carries."""
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def clean(self, text: str) -> str:
        """One printable line without the key, also where it is quoted or cut short."""
        forms = {self._key, quote(self._key, safe=""), json.dumps(self._key)[1:-1]} - {""}
        telling = {form[:end] for form in forms for end in range(TELLING, len(form) + 1)} | forms
        for part in sorted(telling, key=len, reverse=True):  # a short one would leave the rest
            text = text.replace(part, "[key]")
        line = " ".join(text.split())
        return "".join(mark if mark.isprintable() else "?" for mark in line)[:SHOWN]
