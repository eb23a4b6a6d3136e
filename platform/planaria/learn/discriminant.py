"""Linear discriminant analysis by its sums: each row is seen once.

Groups have means of their own and one covariance (Fisher 1936), which is shrunk towards a multiple of the identity.
Legend: B rows, F features, K groups.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

_SHRINKAGE = 0.05
"""Of the covariance, in mean variances."""


class Discriminant:
    """Sums over rows, in float64."""

    def __init__(self, features: int, groups: int, device: torch.device) -> None:
        self.gram_FF = torch.zeros(features, features, dtype=torch.float64, device=device)
        self.sum_KF = torch.zeros(groups, features, dtype=torch.float64, device=device)
        self.rows_K = torch.zeros(groups, dtype=torch.float64, device=device)

    def add(self, described_BF: Tensor, group: int) -> None:
        """Take rows of one group in."""
        rows_BF = described_BF.double()
        self.gram_FF += rows_BF.T @ rows_BF
        self.sum_KF[group] += rows_BF.sum(0)
        self.rows_K[group] += len(rows_BF)

    def widen(self, groups: int) -> None:
        """Groups that are new have no rows."""
        more = max(0, groups - len(self.rows_K))
        self.sum_KF, self.rows_K = F.pad(self.sum_KF, (0, 0, 0, more)), F.pad(self.rows_K, (0, more))

    def solve(self) -> tuple[Tensor, Tensor]:
        """(weights [F, K], offsets [K]) of each group's log-likelihood, up to what all have in common, in float32. Of
        groups without rows they say nothing. Raises ValueError where there are no rows at all."""
        rows = float(self.rows_K.sum())
        if rows < 1:
            raise ValueError("no rows were added")
        mean_KF = self.sum_KF / self.rows_K.clamp(min=1)[:, None]
        within_FF = (self.gram_FF - self.sum_KF.T @ mean_KF) / rows
        within_FF.diagonal().add_(_SHRINKAGE * within_FF.diagonal().mean() + 1e-9)
        weight_FK = torch.cholesky_solve(mean_KF.T, torch.linalg.cholesky(within_FF))
        return weight_FK.float(), (-0.5 * (mean_KF.T * weight_FK).sum(0)).float()

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"gram": self.gram_FF, "sum": self.sum_KF, "rows": self.rows_K}

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Discriminant:
        """Inverse of `tensors`. Raises KeyError where one is missing."""
        discriminant = Discriminant(0, 0, tensors["gram"].device)
        discriminant.gram_FF, discriminant.sum_KF, discriminant.rows_K = (
            tensors[name] for name in ("gram", "sum", "rows")
        )
        return discriminant
