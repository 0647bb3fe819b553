"""Held-out pairs and texts -> their log-probabilities under one model, as items of a stage."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from congrad_cli.errors import NumericsError
from congrad_cli.loop.held_out import HeldOutPair, HeldOutText
from congrad_cli.loop.model_access import Scorer, Weighed


def weigh_pairs(pairs: Sequence[HeldOutPair], scorer: Scorer) -> Iterator[dict[str, Any]]:
    """``{"key", "language", "chosen": {"logp", "tokens"}, "rejected": ...}`` of each pair.

    Raises :class:`NumericsError` where a log-probability is no finite number, here and below.
    """
    for pair in pairs:
        chosen, rejected = scorer.weigh(
            [(pair.messages, pair.chosen), (pair.messages, pair.rejected)])
        yield {"key": pair.id, "language": pair.language, "chosen": _item(chosen, pair.id),
               "rejected": _item(rejected, pair.id)}


def weigh_texts(texts: Sequence[HeldOutText], scorer: Scorer) -> Iterator[dict[str, Any]]:
    """``{"key", "language", "logp", "tokens"}`` of each text, from its first token on."""
    for text in texts:
        (weighed,) = scorer.weigh([((), text.text)])
        yield {"key": text.id, "language": text.language, **_item(weighed, text.id)}


def _item(weighed: Weighed, name: str) -> dict[str, Any]:
    if not math.isfinite(weighed.logp):
        raise NumericsError(f"{name}: its log-probability is {weighed.logp}.",
                            "the model is broken, or its numbers overflow: try train.bf16 = false "
                            "and a lower train.learning_rate")
    return {"logp": weighed.logp, "tokens": weighed.tokens}
