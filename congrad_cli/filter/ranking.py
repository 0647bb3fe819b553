"""What pairs are ranked by: the score, or one of the baselines that it is compared with."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from congrad_cli.direction import Consensus
from congrad_cli.errors import UsageError
from congrad_cli.filter.items import Items
from congrad_cli.filter.policy import by_score
from congrad_cli.filter.scores import PairScores, pair_scores, turn_scores
from congrad_cli.filter.target import Target
from congrad_cli.settings import ConsensusSettings, FilterSettings
from congrad_cli.store import GradientStore
from congrad_cli.weights import Floats, pair_margins, pair_weights

COSINES = ("score", "mean-score", "score-and-margin")
LOSS_OPTIONS = ("loss", "beta", "length_penalty", "label_smoothing")


@dataclass(frozen=True)
class Ranking:
    """What is compared, [N], the higher the better; baselines that are no cosine have no errors.

    ``silent`` [N] are pairs that the loss weighs by 0, where the loss matters; ``about`` says
    what the numbers are.
    """

    scores: PairScores
    silent: NDArray[np.bool_]
    about: str


def check_ranking(settings: FilterSettings) -> None:
    """Raise :class:`UsageError` for options that this ranking cannot use."""
    name = settings.rank_by
    if name == "score-and-margin" and settings.confidence is not None:
        raise UsageError("--confidence does nothing with --rank-by score-and-margin.")
    if settings.seed is not None and name != "random":
        raise UsageError("--seed does nothing without --rank-by random.")
    if name in ("score", "mean-score"):
        return
    if by_score(settings) and settings.min_score is None:
        raise UsageError(f"--rank-by {name} has no threshold of its own.",
                         "give --keep-ratio, --keep, --quotas or --min-score with it")
    if name == "score-and-margin":
        return
    unused = {"confidence": settings.confidence is not None,
              "leave_group_out": settings.leave_group_out}
    if not settings.group_cosines:
        unused |= {"no_leave_one_out": not settings.leave_one_out,
                   "leave_out_by": settings.leave_out_by is not None}
    signs = settings.group_cosines or settings.dedup is not None  # of the weights, turn gradients
    if not (name == "norm" or signs or settings.max_conflict is not None):
        unused |= {option: getattr(settings, option) is not None for option in LOSS_OPTIONS}
    for option, given in unused.items():
        if given:
            raise UsageError(
                f"--{option.replace('_', '-')} does nothing with --rank-by {name}.")


def rank_pairs(
    store: GradientStore, target: Target, settings: FilterSettings, items: Items | None = None
) -> Ranking:
    """The numbers that the rules apply to; the pairs of each of ``items`` leave each other out."""
    if settings.rank_by == "margin":
        return _plain(*_margins(store))
    if settings.rank_by == "margin-per-token":
        return _plain(*margins_per_token(store))
    if settings.rank_by == "random":
        seed = settings.seed or 0
        return _plain(random_values(store.column("digest"), seed), f"random numbers of seed {seed}")
    weight = own_weights(store, target, settings)
    if settings.rank_by == "norm":
        norm = np.abs(weight) * store.column("norm")
        return replace(_plain(0.0 - norm, "minus the norm of the loss gradient"),
                       silent=weight == 0)
    consensus, about = target.consensus, "cosine with the consensus"
    if settings.rank_by == "mean-score":
        consensus, about = plain_mean(consensus), "cosine with the plain mean of the groups"
    alone = settings.leave_one_out and not target.released
    scores = pair_scores(
        store, consensus, target.members, alone, items, settings.leave_group_out)
    scores = turn_scores(scores, target.members.scale, weight)
    about += _others(target, settings)
    if settings.rank_by == "score-and-margin":
        margin, told = margins_per_token(store)
        told = f"mean of the ranks by {about} and by {told}"
        return replace(_plain(mean_rank(scores.score, margin), told), silent=weight == 0)
    return Ranking(scores, weight == 0, about)


def own_weights(store: GradientStore, target: Target, settings: FilterSettings) -> Floats:
    """w_i of every pair, [N], by the loss that the pairs are scored with."""
    return pair_weights(store, own_loss(target.settings, settings))


def _others(target: Target, settings: FilterSettings) -> str:
    """Whose consensus it is."""
    if target.released:
        return f" of {target.store}"
    if settings.leave_group_out:
        return " of the other groups"
    if not settings.leave_one_out:
        return ""
    field = settings.leave_out_by
    return " of the other pairs" + (f", other items by '{field}'" if field else "")


def plain_mean(consensus: Consensus) -> Consensus:
    """The mean of the same group gradients, no conflict removed."""
    count = len(consensus.coefficients)
    share = np.full(count, 1.0 / count)
    return replace(consensus, direction=share @ consensus.gradients, coefficients=share)


def random_values(digest: NDArray[np.uint8], seed: int) -> Floats:
    """A number from 0 to 1 for every digest [N, 16], [N].

    It hangs on the pair and the seed alone: not on the order of the data, nor on other pairs.
    """
    salt = f"{seed}:".encode()
    return np.array([
        int.from_bytes(hashlib.sha256(salt + one.tobytes()).digest()[:8]) / 2**64
        for one in digest
    ], np.float64)  # fmt: skip


def _margins(store: GradientStore) -> tuple[Floats, str]:
    """Delta_i with a reference in the store, else lw - ll; answers weighted as in the sketch."""
    if store.has("ref_logp"):
        return pair_margins(store), "log-probability margin, the reference's subtracted"
    logp = store.column("weighted_logp" if store.has("weighted_logp") else "logp")
    margin = logp[:, 0].astype(np.float64) - logp[:, 1]
    return margin, "log-probability margin of the policy alone (no reference in the store)"


def margins_per_token(store: GradientStore) -> tuple[Floats, str]:
    """(lw - rw) / |y_w| - (ll - rl) / |y_l|, r = 0 without a reference in the store; [N]."""
    reference = store.has("ref_logp")
    logp = store.column("logp").astype(np.float64)
    if reference:
        logp = logp - store.column("ref_logp")
    mean = logp / np.maximum(store.column("tokens")[:, 1:], 1)
    whose = "the reference's subtracted" if reference else "of the policy alone"
    return mean[:, 0] - mean[:, 1], f"log-probability margin per token, {whose}"


def mean_rank(one: Floats, other: Floats) -> Floats:
    """The mean of the two ranks, each from 0 to 1, equal numbers sharing theirs; [N].

    NaN where one of the numbers is; such pairs count in no rank.
    """
    defined = ~(np.isnan(one) | np.isnan(other))
    result = np.full(len(one), np.nan)
    if defined.any():
        ranks = [np.searchsorted(np.sort(part), part, side) for part in
                 (one[defined], other[defined]) for side in ("left", "right")]
        result[defined] = np.sum(ranks, 0) / (4.0 * defined.sum())
    return result


def _plain(value: Floats, about: str) -> Ranking:
    """Numbers without errors, on which no loss has a say."""
    nothing = np.full(len(value), np.nan)
    return Ranking(PairScores(value, nothing), np.zeros(len(value), bool), about)


def own_loss(made: ConsensusSettings, settings: FilterSettings) -> ConsensusSettings:
    """The consensus' settings with the loss that the pairs are scored by."""
    given = {name: getattr(settings, name) for name in LOSS_OPTIONS}
    return replace(made, **{name: value for name, value in given.items() if value is not None})
