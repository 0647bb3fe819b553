"""Which groups take part in the consensus, and how strongly: H_l = f_l G_l goes to the solver."""

import json
from dataclasses import dataclass

import numpy as np

from congrad_cli.consensus.groups import GroupGradients
from congrad_cli.errors import NumericsError, UsageError
from congrad_cli.settings import ConsensusSettings
from congrad_cli.weights import Floats

VANISHING = 1e-100
"""Beside a group this much longer, another's square is no number any more."""


@dataclass(frozen=True)
class Part:
    """f [L], zero where a group takes no part; and why those groups do not, by name."""

    factor: Floats
    left_out: dict[str, str]


def take_part(groups: GroupGradients, settings: ConsensusSettings) -> Part:
    """f_l = w_l, or w_l / |G_l| with ``--normalize-groups unit``; w_l by ``--weights``.

    Groups take no part that have fewer than ``--min-pairs`` pairs, no gradient, or weight 0.
    Lengths are those of the Gramian: free of what decoding adds.
    """
    norm = np.sqrt(np.diagonal(groups.gramian))
    weight = _weights(groups, settings)
    left_out = {}
    for name, pairs, length, own in zip(
        groups.names, groups.pairs.tolist(), norm.tolist(), weight.tolist(), strict=True
    ):
        if pairs < settings.min_pairs:
            left_out[name] = f"has {pairs:,} of the {settings.min_pairs:,} pairs of --min-pairs"
        elif not length > 0:
            left_out[name] = "has no gradient"
        elif not own > 0:
            left_out[name] = "has weight 0"
    strength = weight / (weight.max() or 1.0) * norm
    for place in np.flatnonzero(strength < VANISHING * strength.max()).tolist():
        left_out.setdefault(groups.names[place], "vanishes beside the others")
    inside = np.array([name not in left_out for name in groups.names])
    if not inside.any():
        raise _nobody(groups, settings)
    factor = weight / weight[inside].max()
    if settings.normalize_groups == "unit":
        factor = np.divide(factor, norm, out=np.zeros_like(norm), where=inside)
    return Part(np.where(inside, factor, 0.0), left_out)


def _weights(groups: GroupGradients, settings: ConsensusSettings) -> Floats:
    """w_l of every group, [L]."""
    if settings.weights == "uniform":
        return np.ones(len(groups.names))
    if settings.weights == "size":
        return groups.pairs.astype(np.float64)
    given = json.loads(settings.weights)
    unknown = sorted(given.keys() - set(groups.names))
    if unknown:
        raise UsageError(f"--weights names {unknown[0]!r}, which is no group.",
                         f"groups: {', '.join(groups.names)}")
    return np.array([float(given.get(name, 1)) for name in groups.names])


def _nobody(groups: GroupGradients, settings: ConsensusSettings) -> NumericsError | UsageError:
    most = int(groups.pairs.max())
    if most < settings.min_pairs:
        return UsageError(f"--min-pairs {settings.min_pairs:,} leaves no group.",
                          f"the largest has {most:,} pairs")
    return NumericsError("all group gradients are zero or left out; there is no direction.")
