"""Inverse propensity: rows that were unlikely to be in the log count for those that are not there."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtrec_ray.tasks.kind import Candidates


@dataclass(frozen=True)
class InversePropensity:
    """Label weights times min(1 / q, clip), q being the propensity: Horvitz and Thompson 1952, "A Generalization of
    Sampling Without Replacement From a Finite Universe"; for what was logged by rankings Joachims, Swaminathan and
    Schnabel 2017, "Unbiased Learning-to-Rank with Biased Feedback" (arXiv 1608.04468), who bound weights likewise.

    q is the probability with which the logging policy showed this item where it was shown. Weighted by 1 / q, every
    item is as often at every place, so the place says nothing of the item any more and the mean effect of places is the
    same for all. All labels count so, zeros too. That q is not the probability that the place is looked at, for which
    Joachims et al. weight the positives of a ranking loss: that probability goes into the labels 1 alone, and what
    learns it from the positions is `position.method: pal`.

    Rows whose q is unknown keep their weight. The sum of losses is divided by the sum of these weights, as by any
    weights (the self-normalised estimator of Swaminathan and Joachims 2015).
    """

    column: int
    """Of `Candidates.context`"""
    tasks: Sequence[int]
    """Columns of the labels"""
    clip: float

    def label_weights(self, candidates: Candidates) -> Tensor:
        """float32 [C, T]"""
        factor = (1 / candidates.context[:, self.column]).clamp(max=self.clip)
        factor = torch.where(torch.isnan(factor), 1.0, factor)
        weights = candidates.label_weights.clone()
        weights[:, list(self.tasks)] *= factor[:, None]
        return weights
