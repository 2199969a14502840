"""The change of a model's inputs, within a ball around them, that raises the loss.

A unit's inputs are a point: a request's token embeddings together, or a candidate's side features. Its perturbation r
follows the gradient g of the step's loss with respect to that point, and depends on no other request of the batch; so
it is the same however a step is cut into micro-steps and dealt to ranks. With |x| the Euclidean norm of the point (of
what has a gradient: a token that no labelled candidate sees is left alone, and left out):

- `fgm`: r = epsilon |x| g / |g| (Miyato, Dai, Goodfellow 2017, "Adversarial Training Methods for Semi-Supervised Text
  Classification", arXiv 1605.07725, Eq. 5, there with -g of the log-likelihood).
- `pgd`: several steps r <- r + step_size |x| g(x + r) / |g|, after each of which r is scaled back to epsilon |x| where
  it is longer (Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", arXiv 1706.06083,
  Sec. 2.1, here with the Euclidean norm). With one step of epsilon it is `fgm`.

Where we differ. Miyato et al. norm the embeddings to variance 1, so that epsilon means the same at all times and a
model cannot make it small by large embeddings; here epsilon is a share of |x|, which does both without a change of the
backbone. Madry et al. start at a random point of the ball and train on the moved inputs alone; we start at the inputs
themselves, and `train.regularization` adds the moved inputs' loss to that of the inputs. The gradient is that of the
plain weighted sum of the tasks' losses, whatever `balance` does with them, under the dropout masks of the step.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mtrec_ray.config import Adversarial
from mtrec_ray.data.batch import Batch
from mtrec_ray.model.perturbation import Place, Reading, unit_norms, units

Look = Callable[[Reading], Tensor]
"""The loss of a forward pass with that reading, scalar."""


def perturbation(look: Look, batch: Batch, place: Place, config: Adversarial) -> Tensor:
    """[N, D] for the N rows of `place`; no weight gets a gradient from it. Every rank looks equally often.

    Passes of `look` may be computed with what the loop does without gradients, as they bring their own.
    """
    unit, count = units(batch, place)
    steps, length = config.ascent
    added: Tensor | None = None
    size: Tensor | None = None
    for _ in range(steps):
        found = Reading(added)
        with torch.enable_grad():
            loss = look(found)
        assert found.added is not None, "the model has not read its inputs"
        (gradient,) = torch.autograd.grad(loss, found.added)
        if size is None:
            assert found.values is not None
            touched = (gradient != 0).any(dim=1, keepdim=True)
            size = unit_norms(found.values * touched, unit, count)
        pace = length * size * _inverse(unit_norms(gradient, unit, count))
        climbed = found.added.detach() + _times(pace, unit, gradient)
        inside = (config.epsilon * size * _inverse(unit_norms(climbed, unit, count))).clamp(max=1.0)
        added = _times(inside, unit, climbed).requires_grad_()
    assert added is not None
    return added.detach()


def _times(factors: Tensor, unit: Tensor, rows: Tensor) -> Tensor:
    """Rows [N, D], each times its unit's factor, float64 [units]."""
    return rows * factors[unit][:, None].to(rows.dtype)


def _inverse(norms: Tensor) -> Tensor:
    """0 for units without gradient, which stay where they are."""
    return torch.where(norms > 0, 1 / norms, 0.0)
