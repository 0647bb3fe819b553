"""Text of others inside an instruction, so marked that it cannot end its own mark.

A fixed tag could be closed by the text within: an answer that holds ``</response>`` and praise for
itself would speak with the instruction's voice. The tag therefore carries a number that is made of
the text; who wrote the text could not know it.
"""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import count

from congrad_cli.loop.model_access import Message


def tag_of(*texts: str) -> str:
    """Eight hexadecimal digits that stand in none of the texts; the same for the same texts."""
    return next(tag for tag in _tags(texts) if not any(tag in text for text in texts))


def _tags(texts: Sequence[str]) -> Iterator[str]:
    content = "\0".join(texts).encode("utf-8", "surrogatepass")
    for attempt in count():
        yield sha256(content + str(attempt).encode()).hexdigest()[:8]


def spoken(messages: Sequence[Message]) -> str:
    """A conversation as one text: what the user said, or every turn after the name of its role."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n\n".join(
        f"{message['role'].capitalize()}: {message['content']}" for message in messages
    )
