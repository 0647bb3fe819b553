"""The scalars that turn stored sketches into the terms of an average; shared by two commands.

For pair i with sketch s_i the term is ``g_i = w_i s_i`` (or ``w_i s_i / |s_i|``), and group l's
gradient is ``G_l = sum_i c_i g_i`` over its pairs.
"""

import numpy as np
from numpy.typing import NDArray

from congrad_cli.settings import ConsensusSettings

Floats = NDArray[np.float64]


def dpo_weights(margin: Floats, beta: float) -> Floats:
    """w_i = beta sigmoid(-beta Delta_i), from -dL/dtheta = w_i u_i for the DPO loss.

    ``margin`` is Delta_i = (logp_w - ref_w) - (logp_l - ref_l), [N]; zero where the policy is
    its own reference.
    """
    # the logistic function through its logarithm: no overflow, and tiny weights keep their digits
    return np.asarray(beta * np.exp(-np.logaddexp(0.0, beta * margin)), np.float64)


def pair_scales(weight: Floats, norm: Floats, pair_norm: str) -> Floats:
    """The factor that turns a stored unit direction into g_i, [N].

    ``raw`` keeps the gradient's length (the paper); ``unit`` lets every pair pull equally.
    """
    return weight * norm if pair_norm == "raw" else weight


def average_coefficients(
    group: NDArray[np.int32], count: int, settings: ConsensusSettings
) -> Floats:
    """c_i of every pair, [N]; they add up to 1 in each of the ``count`` groups.

    ``mean``: 1/n_l. ``ema``: the coefficients that ``G <- gamma G + (1 - gamma) g`` gives, with g
    the mean over consecutive mini-batches of ``ema_batch`` pairs of the group in row order,
    divided by ``1 - gamma^T`` so that the start at zero leaves no trace.
    """
    result = np.zeros(len(group))
    for label in range(count):
        rows = np.flatnonzero(group == label)
        if len(rows):
            result[rows] = (
                np.full(len(rows), 1.0 / len(rows))
                if settings.average == "mean"
                else _ema_coefficients(len(rows), settings.ema_decay, settings.ema_batch)
            )
    return result


def _ema_coefficients(pairs: int, decay: float, batch: int) -> Floats:
    step = np.arange(pairs) // batch  # the mini-batch of each pair
    steps = int(step[-1]) + 1
    size = np.bincount(step)[step]
    share = (1.0 - decay) * decay ** (steps - 1 - step) / (1.0 - decay**steps)
    return np.asarray(share / size, np.float64)
