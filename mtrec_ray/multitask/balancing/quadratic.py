"""The two quadratic problems over weights of gradients, both solved exactly as non-negative least squares.

Only the Gramian G = J Jᵀ [n, n] of the gradients J is needed: a factor F with F Fᵀ = G has all their lengths and
angles. scipy is imported when something is solved, so that only methods that need it pay for it.
"""

import numpy as np
import torch
from torch import Tensor


def shortest_mean(gramian: Tensor) -> Tensor:
    """Weights α [n], >= 0 with sum 1, of the shortest weighted mean of vectors with this Gramian [n, n].

    Least squares: min ‖Jᵀα‖² + (Σα - 1)² over α >= 0. At its best length every direction of α has a value that grows
    with the length of the mean alone, so the solution is the wanted one up to its sum. (The usual Frank-Wolfe
    iteration is far from it after 100 iterations when gradients conflict, and then worsens tasks.)
    """
    rows = np.vstack([_factor(gramian).T, np.ones(len(gramian))])
    solution = _nnls(rows, np.append(np.zeros(len(gramian)), 1.0))
    return torch.from_numpy(solution / solution.sum())


def project(weights: Tensor, gramian: Tensor) -> Tensor:
    """Weights v >= `weights` [n] of the projection of Jᵀ · weights on the dual cone of vectors with this Gramian.

    The dual cone holds what has a negative product with none of them. By duality (Quinton & Rey 2024, Proposition 1)
    v minimises vᵀGv under v >= weights: least squares in the non-negative v - weights. Nothing is added to the
    diagonal; the 1e-4 that TorchJD's solver needs lets the projection go against short gradients.
    """
    factor = _factor(gramian)
    return weights + torch.from_numpy(_nnls(factor.T, -factor.T @ weights.numpy()))


def _factor(gramian: Tensor) -> np.ndarray:
    """F [n, n] with F Fᵀ = G, whose diagonal is not 0; eigenvalues that rounding made negative count as 0.

    It is that of the cosines times the lengths, so that rounding errors are relative to each gradient's own length.
    """
    lengths = gramian.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(gramian / torch.outer(lengths, lengths))
    return np.asarray((lengths[:, None] * vectors * values.clamp(min=0).sqrt()).numpy())


def _nnls(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The x >= 0 with the least ‖matrix · x - target‖, by scipy's active-set method.

    Columns are brought to length 1 first, so that short gradients are not lost in the solver's tolerance.
    """
    from scipy.optimize import nnls

    lengths = np.linalg.norm(matrix, axis=0)
    solution, _ = nnls(matrix / lengths, target, maxiter=100 * len(lengths))
    return np.asarray(solution / lengths)
