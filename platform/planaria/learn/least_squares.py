"""Recursive least squares by its sums: they can be added, taken away, faded, and moved from one concept to another.

Legend: B rows, D features with the constant 1 last, C columns to estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SETTLED_AT_ROWS = 128
"""Rows wait until there are so many of them: a product of two large matrices costs little more than of two small ones,
where what takes the time is to go through all of the Gram matrix."""


@dataclass(frozen=True)
class Products:
    """Of some rows' features with each other and with the targets."""

    gram_DD: Tensor
    cross_DC: Tensor
    rows: int

    @staticmethod
    def of(described_BD: Tensor, target_BC: Tensor, precision: torch.dtype = torch.float64) -> Products:
        rows_BD = described_BD.to(precision)
        return Products(rows_BD.T @ rows_BD, rows_BD.double().T @ target_BC.double(), len(rows_BD))


class Sums:
    """Over rows. Products of features are summed in float64 or float32, those with targets in float64."""

    def __init__(self, gram_DD: Tensor, cross_DC: Tensor) -> None:
        self._gram_DD, self._cross_DC = gram_DD, cross_DC
        self.rows = float(gram_DD[-1, -1])
        self._waiting: list[tuple[Tensor, Tensor, float]] = []
        """Rows that are not in the sums yet, [B, D] and [B, C], and what they count."""
        self._waiting_rows = 0
        self._counts = 1.0
        """What the sums count, without the waiting rows."""

    @staticmethod
    def empty(features: int, columns: int, device: torch.device, precision: torch.dtype = torch.float64) -> Sums:
        return Sums(
            torch.zeros(features, features, dtype=precision, device=device),
            torch.zeros(features, columns, dtype=torch.float64, device=device),
        )

    @property
    def gram_DD(self) -> Tensor:
        """Of products of two features; the last row is the sum of each feature, its last entry the number of rows. The
        lower triangle is what counts: the other one differs by rounding."""
        self._settle()
        return self._gram_DD

    @property
    def cross_DC(self) -> Tensor:
        """Of products of a feature and a target."""
        self._settle()
        return self._cross_DC

    def add(self, described_BD: Tensor, target_BC: Tensor, weight: float = 1.0) -> None:
        """Take rows in, or with `weight` -1 out again."""
        self.widen(target_BC.shape[1])
        self._waiting.append((described_BD, target_BC, weight))
        self._waiting_rows += len(described_BD)
        self.rows += weight * len(described_BD)
        if self._waiting_rows >= _SETTLED_AT_ROWS:
            self._settle()

    def absorb(self, products: Products) -> None:
        """Take rows in at once, by their products."""
        self.widen(products.cross_DC.shape[1])
        if self._waiting:
            self._settle()
        for sums, more in ((self._gram_DD, products.gram_DD), (self._cross_DC, products.cross_DC)):
            torch.add(more, sums, alpha=self._counts, out=sums)  # to fade and to add in one pass
        self._counts = 1.0
        self.rows += products.rows

    def _settle(self) -> None:
        if self._counts != 1.0:
            self._gram_DD *= self._counts
            self._cross_DC *= self._counts
            self._counts = 1.0
        if not self._waiting:
            return
        columns = self._cross_DC.shape[1]
        rows_BD = torch.cat([described_BD for described_BD, _, _ in self._waiting])
        targets = [F.pad(target_BC, (0, columns - target_BC.shape[1])) for _, target_BC, _ in self._waiting]
        weights = [described_BD.new_full((len(described_BD),), weight) for described_BD, _, weight in self._waiting]
        weighed_DB = rows_BD.T * torch.cat(weights)
        precision = self._gram_DD.dtype
        self._gram_DD.addmm_(weighed_DB.to(precision), rows_BD.to(precision))
        self._cross_DC.addmm_(weighed_DB.double(), torch.cat(targets).double())
        self._waiting, self._waiting_rows = [], 0

    def merge(self, other: Sums) -> None:
        self.widen(other.columns)
        other.widen(self.columns)
        self._settle()
        self._gram_DD += other.gram_DD
        self._cross_DC += other.cross_DC
        self.rows += other.rows

    def fade(self, factor: float) -> None:
        self._counts *= factor
        self._waiting = [
            (described_BD, target_BC, factor * weight) for described_BD, target_BC, weight in self._waiting
        ]
        self.rows *= factor

    @property
    def columns(self) -> int:
        return self._cross_DC.shape[1]

    @property
    def nbytes(self) -> int:
        """That they take, the rows that wait included."""
        waiting = sum(described_BD.nbytes + target_BC.nbytes for described_BD, target_BC, _ in self._waiting)
        return self._gram_DD.nbytes + self._cross_DC.nbytes + waiting

    def packed(self) -> dict[str, Tensor]:
        """For a checkpoint: the lower triangle of the Gram matrix, row by row, the products with the targets, and the
        rows that wait."""
        columns = self.columns
        waiting = [
            torch.cat((described_BD, F.pad(target_BC, (0, columns - target_BC.shape[1]))), 1)
            for described_BD, target_BC, _ in self._waiting
        ]
        none = self._cross_DC.new_zeros(0, len(self._gram_DD) + columns, dtype=torch.float32)
        numbers = [float(len(rows)) for rows in waiting] + [weight for *_, weight in self._waiting]
        return {
            "gram": self._gram_DD[*_triangle(len(self._gram_DD))],
            "cross": self._cross_DC,
            "waiting": torch.cat((none, *waiting)),
            "numbers": torch.tensor([self._counts, self.rows, *numbers], dtype=torch.float64),
        }

    @staticmethod
    def unpacked(parts: Mapping[str, Tensor]) -> Sums:
        """Inverse of `packed`. Raises KeyError or ValueError where the parts do not belong together."""
        triangle, cross_DC, waiting = parts["gram"], parts["cross"], parts["waiting"]
        counts, rows, *numbers = parts["numbers"].tolist()
        features, half = len(cross_DC), len(numbers) // 2
        if len(triangle) != features * (features + 1) // 2:
            raise ValueError(f"{len(triangle)} products of features are not those of {features} features")
        lower_DD = triangle.new_zeros(features, features)
        lower_DD[*_triangle(features)] = triangle
        sums = Sums(lower_DD + lower_DD.tril(-1).T, cross_DC)
        sums._counts, sums.rows, sums._waiting_rows = counts, rows, len(waiting)
        blocks = torch.split(waiting, [int(count) for count in numbers[:half]])
        sums._waiting = [
            (block[:, :features], block[:, features:], weight)
            for block, weight in zip(blocks, numbers[half:], strict=True)
        ]
        return sums

    def widen(self, columns: int) -> None:
        """Columns that are new were 0 in all rows so far."""
        if columns > self.columns:
            self._cross_DC = F.pad(self._cross_DC, (0, columns - self.columns))


def ridge(gram_DD: Tensor, cross_DC: Tensor, pull_rows: float) -> Tensor:
    """What estimates the targets, pulled towards 0 as strongly as `pull_rows` rows of typical features would. The
    constant is not pulled. Shape [D, C], float32."""
    factor = _Factor.of(gram_DD, pull_rows, len(gram_DD) - 1)
    return torch.zeros_like(cross_DC, dtype=torch.float32) if factor is None else factor.solve(cross_DC)


def nested_ridge(gram_DD: Tensor, cross_DC: Tensor, pull_rows: float, first: int) -> tuple[Tensor, Tensor]:
    """`ridge`, and what uses of the features only so many first ones and the constant. Each [D, C], float32."""
    factor = _Factor.of(gram_DD, pull_rows, first)
    if factor is None:
        return torch.zeros_like(cross_DC, dtype=torch.float32), torch.zeros_like(cross_DC, dtype=torch.float32)
    return factor.solve(cross_DC), factor.solve(cross_DC, factor.inner)


class _Factor(NamedTuple):
    """Cholesky's of a pulled Gram matrix, ordered so that the system of its `inner` first features is part of it."""

    met_U: Tensor
    """The features that rows have had. Of a table's columns, those of categories that it does not have are not."""
    lower_UU: Tensor
    inner: int

    @staticmethod
    def of(gram_DD: Tensor, pull_rows: float, first: int) -> _Factor | None:
        """None where there are no rows."""
        rows = float(gram_DD[-1, -1])
        if rows < 0.5:
            return None
        used_D = gram_DD.diagonal() > 1e-9
        met_U, before = torch.nonzero(used_D)[:, 0], int(used_D[:first].sum())
        met_U = torch.cat((met_U[:before], met_U[-1:], met_U[before:-1]))
        system_UU = gram_DD.index_select(0, met_U).index_select(1, met_U).double()
        system_UU[before + 1 :, before] = system_UU[before, before + 1 :]  # from the triangle that counts
        pull_U = system_UU.new_full((len(met_U),), pull_rows)
        pull_U[before] = 1e-6 * rows
        system_UU.diagonal().add_(pull_U)
        return _Factor(met_U, torch.linalg.cholesky(system_UU), before + 1)

    def solve(self, cross_DC: Tensor, first: int | None = None) -> Tensor:
        met_U, weights_DC = self.met_U[:first], torch.zeros_like(cross_DC, dtype=torch.float32)
        weights_DC[met_U] = torch.cholesky_solve(cross_DC[met_U], self.lower_UU[:first, :first]).float()
        return weights_DC


def _triangle(size: int) -> tuple[Tensor, Tensor]:
    row, column = torch.tril_indices(size, size)
    return row, column
