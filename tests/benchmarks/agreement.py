"""How far sketched rows agree with exact gradients; no script, ``fidelity.py`` uses it.

Scores are congrad's own: rows go into a store in memory, and the functions behind ``consensus``
and ``filter`` work on it. Exact gradients enter as rows of n numbers with the same inner products.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from congrad_cli.codec import Codec
from congrad_cli.consensus.groups import group_gradients
from congrad_cli.consensus.solver import solve
from congrad_cli.direction import Consensus
from congrad_cli.filter.policy import decide
from congrad_cli.filter.scores import pair_scores
from congrad_cli.settings import ConsensusSettings, FilterSettings
from congrad_cli.weights import members

sys.path.append(str(Path(__file__).resolve().parents[1]))
from synthetic import memory_store, unit_rows

METHODS = ("mean", "pcgrad")


@dataclass(frozen=True)
class View:
    """What congrad sees of n pairs: cosines of different pairs [n, n], and by method scores with
    their errors and the kept half [n]."""

    cosine: np.ndarray
    score: dict[str, np.ndarray]
    error: dict[str, np.ndarray]
    kept: dict[str, np.ndarray]


def view(
    rows: np.ndarray, norms: np.ndarray, groups: Sequence[str], width: int = 1,
    code: str = "float16",
) -> View:  # fmt: skip
    """``rows`` [n, any] need no unit length; ``norms`` [n] are the gradients'."""
    unit = rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    if code != "float16":  # float16 would round exact rows, which have few numbers
        codec = Codec(code, rows.shape[1], width)
        unit = codec.decode(codec.encode(unit.astype(np.float32))).astype(np.float64)
    store = memory_store(unit_rows(rows), norms, groups, width=width, store_dtype=code)
    label, score, error, kept = store.column("group"), {}, {}, {}
    for method in METHODS:
        wanted = replace(ConsensusSettings(), method=method)
        terms = members(store, label, len(store.groups), wanted)
        found = group_gradients(store, store.groups, terms)
        coefficients = solve(found.gramian, wanted).coefficients
        consensus = Consensus(
            coefficients @ found.gradients, found.gradients, coefficients, found.excess
        )
        scores = pair_scores(store, consensus, terms, True)
        score[method], error[method] = scores.score, scores.error
        kept[method] = decide(score[method], label, FilterSettings(keep_ratio=0.5)).keep
    return View(unit @ unit.T, score, error, kept)


@dataclass(frozen=True)
class Agreement:
    """RMSE of the cosines of different pairs; by method rank correlation, shared kept half, and
    the shares of scores that are within one and two of their errors."""

    rmse: float
    spearman: dict[str, float]
    overlap: dict[str, float]
    within: dict[str, tuple[float, float]]


def agreement(sketched: View, exact: View) -> Agreement:
    """Compare two views of the same pairs."""
    apart = np.tril_indices(len(exact.cosine), -1)
    error = (sketched.cosine - exact.cosine)[apart]
    return Agreement(
        float(np.sqrt(np.mean(error**2))),
        {name: spearman(sketched.score[name], exact.score[name]) for name in METHODS},
        {name: float((sketched.kept[name] & exact.kept[name]).sum() / exact.kept[name].sum())
         for name in METHODS},
        {name: _within(sketched, exact, name) for name in METHODS},
    )


def _within(sketched: View, exact: View, method: str) -> tuple[float, float]:
    off = np.abs(sketched.score[method] - exact.score[method])
    error = sketched.error[method]
    return float((off <= error).mean()), float((off <= 2 * error).mean())


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Rank correlation; scores of real gradients have no ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1])
