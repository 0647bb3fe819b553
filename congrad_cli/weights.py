"""The scalars that turn stored sketches into the terms of an average; shared by two commands.

For pair i with sketch s_i the term is ``g_i = w_i s_i`` (or ``w_i s_i / |s_i|``, or ``w_i s_i`` no
longer than a limit), and group l's gradient is ``G_l = sum_i c_i g_i`` over its pairs. Every
average is of that form, robust ones too: the c_i sum to 1 in each group.
"""

import math
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from congrad_cli.errors import NumericsError, UsageError
from congrad_cli.settings import AVERAGES, LOSSES, METHODS, ConsensusSettings
from congrad_cli.store import GradientStore

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Members:
    """Of every pair, [N]: its group, the factor that turns its stored direction into g_i, and c_i.

    The factor has the sign of w_i, and is zero where w_i is.
    """

    label: NDArray[np.int32]
    scale: Floats
    share: Floats


def check_settings(settings: ConsensusSettings) -> None:
    """Raise :class:`UsageError` for a loss or an average that there is not, or impossible numbers.

    What a file says is checked as well, so numbers may be of any size.
    """
    for name, value, known in (("loss", settings.loss, LOSSES),
                               ("average", settings.average, AVERAGES),
                               ("method", settings.method, METHODS)):
        if value not in known:
            raise UsageError(f"--{name} {value}: pass one of {', '.join(known)}.")
    clip_quantile(settings.pair_norm)
    largest = sys.float_info.max
    for name, fits in (("beta", 0 < settings.beta <= largest),
                       ("length-penalty", abs(settings.length_penalty) <= largest),
                       ("label-smoothing", 0 <= settings.label_smoothing < 0.5),
                       ("trim", 0 <= settings.trim < 0.5),
                       ("ema-decay", 0 <= settings.ema_decay < 1),
                       ("ema-batch", 1 <= settings.ema_batch < 2**63),
                       ("orders", settings.orders >= 1),
                       ("seed", 0 <= settings.seed < 2**63),
                       ("merge-groups", 0 <= settings.merge_groups <= 1)):
        if not fits:
            raise UsageError(f"--{name} {getattr(settings, name.replace('-', '_'))} cannot be.")


def members(
    store: GradientStore, label: NDArray[np.int32], groups: int, settings: ConsensusSettings
) -> Members:
    """What every pair of the store, in row order, adds to which of the ``groups``."""
    weight, norm = pair_weights(store, settings), store.column("norm").astype(np.float64)
    return Members(
        label=label,
        scale=pair_scales(weight, norm, settings.pair_norm),
        share=average_coefficients(label, groups, settings, np.abs(weight) * norm),
    )


def pair_weights(store: GradientStore, settings: ConsensusSettings) -> Floats:
    """w_i of every pair of the store, in row order, [N]; finite."""
    if settings.loss == "ipo" and store.header.token_weighting != "mean":
        raise UsageError(
            "--loss ipo averages each answer over its tokens, and this store sums them.",
            "sketch again with --token-weighting mean",
        )
    tokens = store.column("tokens").astype(np.float64)  # [N, 3]: prompt, chosen, rejected
    with np.errstate(all="ignore"):  # what overflows is not finite
        weight = loss_weights(pair_margins(store), tokens[:, 1] - tokens[:, 2], settings)
    if not np.isfinite(weight).all():
        raise NumericsError(f"--loss {settings.loss} gives pairs weights that are not finite.",
                            "choose another --beta or --length-penalty")
    return weight


def pair_margins(store: GradientStore) -> Floats:
    """Delta_i = (lw - rw) - (ll - rl), [N], each answer's tokens weighted as in the sketch.

    Zero without a reference in the store: the policy is then its own.
    """
    if not store.has("ref_logp"):
        return np.zeros(len(store))
    name = "weighted_logp" if store.has("weighted_logp") else "logp"
    ratio = store.column(name).astype(np.float64) - store.column("ref_logp")
    return np.asarray(ratio[:, 0] - ratio[:, 1], np.float64)


def loss_weights(margin: Floats, gap: Floats, settings: ConsensusSettings) -> Floats:
    """w_i of ``settings.loss``, from -dL_i/dtheta = w_i u_i; [N].

    ``margin`` is Delta_i, ``gap`` is |y_w| - |y_l| in tokens. The losses are those of TRL 1.16;
    lp-dpo is R-DPO's ``-log sigmoid(beta Delta + alpha gap)``, alpha > 0 penalising length.
    """
    beta, smooth = settings.beta, settings.label_smoothing
    if settings.loss == "lp-dpo":
        return dpo_weights(margin + settings.length_penalty / beta * gap, beta)
    if settings.loss == "ipo":
        return 1 / beta - 2 * margin
    if settings.loss == "hinge":
        return np.where(beta * margin < 1, beta, 0.0)
    if settings.loss == "robust":
        right, wrong = dpo_weights(margin, beta), dpo_weights(-margin, beta)
        return ((1 - smooth) * right + smooth * wrong) / (1 - 2 * smooth)
    return dpo_weights(margin, beta)


def dpo_weights(margin: Floats, beta: float) -> Floats:
    """w_i = beta sigmoid(-beta Delta_i), from -dL/dtheta = w_i u_i for the DPO loss.

    ``margin`` is Delta_i = (logp_w - ref_w) - (logp_l - ref_l), [N]; zero where the policy is
    its own reference.
    """
    # the logistic function through its logarithm: no overflow, and tiny weights keep their digits
    return np.asarray(beta * np.exp(-np.logaddexp(0.0, beta * margin)), np.float64)


def pair_scales(weight: Floats, norm: Floats, pair_norm: str) -> Floats:
    """The factor that turns a stored unit direction into g_i, [N].

    ``raw`` keeps the gradient's length ``|w_i| |s_i|`` (the paper); ``unit`` lets every pair pull
    equally; ``clip:Q`` shortens gradients to the Q-quantile of the lengths of all groups' pairs,
    those of weight 0 aside. One limit for all groups: small ones have no quantiles of their own.
    """
    quantile = clip_quantile(pair_norm)
    if quantile is None:
        return weight * norm if pair_norm == "raw" else weight
    length = np.abs(weight) * norm
    limit = np.quantile(length[length > 0], quantile) if length.any() else 0.0
    return np.asarray(np.sign(weight) * np.minimum(length, limit), np.float64)


def clip_quantile(pair_norm: str) -> float | None:
    """Q of ``clip:Q``; None for ``raw`` and ``unit``. Anything else is a :class:`UsageError`."""
    if pair_norm in ("raw", "unit"):
        return None
    kind, _, text = pair_norm.partition(":")
    try:
        quantile = float(text)
    except ValueError:
        quantile = math.nan
    if kind != "clip" or not 0 < quantile < 1:
        raise UsageError(f"--pair-norm {pair_norm}: not one of raw, unit, clip:Q with 0 < Q < 1.",
                         "clip:0.9 shortens the longest tenth of the gradients")
    return quantile


def average_coefficients(
    group: NDArray[np.int32], count: int, settings: ConsensusSettings, length: Floats | None = None
) -> Floats:
    """c_i of every pair, [N]; they add up to 1 in each of the ``count`` groups.

    ``mean``: 1/n_l. ``ema``: the coefficients that ``G <- gamma G + (1 - gamma) g`` gives, with g
    the mean over consecutive mini-batches of ``ema_batch`` pairs of the group in row order,
    divided by ``1 - gamma^T`` so that the start at zero leaves no trace. ``trimmed``: the mean of
    all but the share ``trim``, to the nearest whole number, with the longest gradients; it needs
    their ``length`` [N], and of equal ones the later go first. ``median-of-means`` begins as the
    mean: its coefficients depend on the gradients, see the module ``consensus.averages``.
    """
    result = np.zeros(len(group))
    for label in range(count):
        rows = np.flatnonzero(group == label)
        if settings.average == "trimmed":
            if length is None:
                raise ValueError("a trimmed mean needs lengths")
            left = len(rows) - math.floor(settings.trim * len(rows) + 0.5)
            rows = rows[np.argsort(length[rows], kind="stable")[:left]]
        if len(rows):
            result[rows] = (
                _ema_coefficients(len(rows), settings.ema_decay, settings.ema_batch)
                if settings.average == "ema"
                else np.full(len(rows), 1.0 / len(rows))
            )
    return result


def _ema_coefficients(pairs: int, decay: float, batch: int) -> Floats:
    step = np.arange(pairs) // batch  # the mini-batch of each pair
    steps = int(step[-1]) + 1
    size = np.bincount(step)[step]
    share = (1.0 - decay) * decay ** (steps - 1 - step) / (1.0 - decay**steps)
    return np.asarray(share / size, np.float64)
