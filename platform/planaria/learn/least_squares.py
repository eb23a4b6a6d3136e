"""Recursive least squares by its sums: they can be added, taken away, faded, and moved from one concept to another.

Legend: B rows, D features with the constant 1 last, C columns to estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Sums:
    """Over rows, in float64."""

    gram_DD: Tensor
    """Of products of two features; the last row is the sum of each feature, its last entry the number of rows. The
    lower triangle is what counts: the other one differs by rounding."""
    cross_DC: Tensor
    """Of products of a feature and a target."""

    @staticmethod
    def empty(features: int, columns: int, device: torch.device) -> Sums:
        zeros = torch.zeros(features, features + columns, dtype=torch.float64, device=device)
        return Sums(zeros[:, :features].contiguous(), zeros[:, features:].contiguous())

    @property
    def rows(self) -> float:
        return float(self.gram_DD[-1, -1])

    def add(self, described_BD: Tensor, target_BC: Tensor, sign: float = 1.0) -> None:
        """Take rows in, or with `sign` -1 out again."""
        rows_BD = described_BD.double()
        self.widen(target_BC.shape[1])
        self.gram_DD.addmm_(rows_BD.T, rows_BD, alpha=sign)
        self.cross_DC.addmm_(rows_BD.T, target_BC.double(), alpha=sign)

    def merge(self, other: Sums) -> None:
        self.widen(other.cross_DC.shape[1])
        other.widen(self.cross_DC.shape[1])
        self.gram_DD += other.gram_DD
        self.cross_DC += other.cross_DC

    def fade(self, factor: float) -> None:
        self.gram_DD *= factor
        self.cross_DC *= factor

    def packed(self) -> tuple[Tensor, Tensor]:
        """For a checkpoint: the lower triangle of the Gram matrix, row by row, and the products with the targets."""
        return self.gram_DD[*_triangle(len(self.gram_DD))], self.cross_DC

    @staticmethod
    def unpacked(triangle: Tensor, cross_DC: Tensor) -> Sums:
        """Inverse of `packed`. Raises ValueError where the two do not belong together."""
        features = len(cross_DC)
        if len(triangle) != features * (features + 1) // 2:
            raise ValueError(f"{len(triangle)} products of features are not those of {features} features")
        lower_DD = triangle.new_zeros(features, features)
        lower_DD[*_triangle(features)] = triangle
        return Sums(lower_DD + lower_DD.tril(-1).T, cross_DC)

    def widen(self, columns: int) -> None:
        """Columns that are new were 0 in all rows so far."""
        self.cross_DC = F.pad(self.cross_DC, (0, max(0, columns - self.cross_DC.shape[1])))


def ridge(gram_DD: Tensor, cross_DC: Tensor, pull_rows: float, first: int | None = None) -> Tensor:
    """What estimates the targets, pulled towards 0 as strongly as `pull_rows` rows of typical features would. The
    constant is not pulled. With `first`, of the features only so many first ones and the constant are used.
    Shape [D, C], float32."""
    rows = float(gram_DD[-1, -1])
    if rows < 0.5:
        return torch.zeros_like(cross_DC, dtype=torch.float32)
    squares_D = gram_DD.diagonal()
    used_D = squares_D > 1e-9
    if first is not None:
        used_D[first:-1] = False
    met = torch.nonzero(used_D)[:, 0]
    pull_D = torch.full((len(met),), pull_rows, dtype=gram_DD.dtype, device=gram_DD.device)
    pull_D[-1] = 1e-6 * rows
    system_DD = gram_DD[met][:, met]
    system_DD.diagonal().add_(pull_D)
    solved_DC = torch.cholesky_solve(cross_DC[met], torch.linalg.cholesky(system_DD))
    weights_DC = torch.zeros_like(cross_DC)
    weights_DC[met] = solved_DC
    return weights_DC.float()


def _triangle(size: int) -> tuple[Tensor, Tensor]:
    row, column = torch.tril_indices(size, size)
    return row, column
