"""The errors a user can cause, each kind with its exit code (docs/reference.md lists them)."""

from typing import ClassVar


class CongradError(Exception):
    """An error of the user's world: what happened, and hints on what to do about it.

    ``message`` says where and what, in one line without a final full stop being required.
    Each of ``hints`` becomes one indented line below it: what was seen, or the cure.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *hints: str) -> None:
        super().__init__(message)
        self.message = message
        self.hints = hints


class UsageError(CongradError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class InputError(CongradError):
    """A data file holds something that is no preference pair."""

    exit_code = 3


class StoreError(CongradError):
    """A store is missing, incomplete, damaged, or made with other settings."""

    exit_code = 4


class NumericsError(CongradError):
    """A number that must be finite is not, or a direction does not exist."""

    exit_code = 5


class GateError(CongradError):
    """What was asked of the result does not hold; all output has been written."""

    exit_code = 6


class ResourceError(CongradError):
    """The machine has no more disk or memory for it."""

    exit_code = 7


class ModelError(CongradError):
    """The model or its tokenizer cannot be had, or lacks what the data needs."""

    exit_code = 8


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the host or of a device (torch says it in several ways)."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error).lower() if isinstance(error, RuntimeError) else ""
    return any(text in said for text in OUT_OF_MEMORY)


OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "alloc_failed")
