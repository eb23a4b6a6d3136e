"""Mean and covariance of a reference, and how far the mean of other rows lies from it.

The test is Hotelling's two-sample T2 with two guards: a ridge, so that features that never vary or repeat each other
do no harm, and a look at the variance of block means, so that rows that resemble their neighbours (weather, markets)
count as the fewer independent rows that they are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.detect.saved import Saved, pack

Matrix = npt.NDArray[np.float64]

BLOCK_ROWS = 128
RIDGE = 1e-3
"""Of the mean variance of the features."""


class Moments:
    """Sums over the rows of a reference, which is forgotten exponentially beyond `capacity` rows."""

    def __init__(self, features: int, capacity: float = math.inf) -> None:
        self._capacity = capacity
        self._features = features
        self.clear()

    def clear(self) -> None:
        features = self._features
        self.count = 0.0
        self._sum_F: Matrix = np.zeros(features)
        self._outer_FF: Matrix = np.zeros((features, features))
        self._blocks = 0.0
        self._block_outer_FF: Matrix = np.zeros((features, features))
        self._open_rows = 0
        self._open_sum_F: Matrix = np.zeros(features)
        self._test: MeanTest | None = None

    def add(self, rows_NF: npt.NDArray[np.floating[Any]]) -> None:
        """Rows in arrival order: those next to each other form the blocks that show their dependence."""
        rows = rows_NF.astype(np.float64)
        self._test = None
        self.count += len(rows)
        self._sum_F += rows.sum(0)
        self._outer_FF += rows.T @ rows
        while len(rows):
            taken, rows = rows[: BLOCK_ROWS - self._open_rows], rows[BLOCK_ROWS - self._open_rows :]
            self._open_sum_F += taken.sum(0)
            self._open_rows += len(taken)
            if self._open_rows == BLOCK_ROWS:
                self._close_block()
        if self.count > self._capacity:
            self._forget(self._capacity / self.count)

    def _close_block(self) -> None:
        self._block_outer_FF += np.outer(self._open_sum_F, self._open_sum_F) / BLOCK_ROWS
        self._blocks += 1
        self._open_sum_F[:] = 0
        self._open_rows = 0

    def _forget(self, keep: float) -> None:
        self.count *= keep
        self._blocks *= keep
        for sums in (self._sum_F, self._outer_FF, self._block_outer_FF):
            sums *= keep

    @property
    def test(self) -> MeanTest:
        """The test against this reference as it is now; needs at least 2 rows."""
        if self._test is None:
            mean_F = self._sum_F / self.count
            scatter_FF = self._outer_FF - self.count * np.outer(mean_F, mean_F)
            covariance_FF = scatter_FF / max(self.count - 1, 1)
            self._test = MeanTest(mean_F, covariance_FF, self.count, self._between_FF(mean_F), self._blocks)
        return self._test

    def _between_FF(self, mean_F: Matrix) -> Matrix | None:
        """Covariance of block means times the rows of a block: like the rows' own where rows are independent."""
        if self._blocks < 4:
            return None
        return (self._block_outer_FF / self._blocks - BLOCK_ROWS * np.outer(mean_F, mean_F)) * (
            self._blocks / (self._blocks - 1)
        )

    def state(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "sum": pack(self._sum_F),
            "outer": pack(self._outer_FF),
            "blocks": self._blocks,
            "block_outer": pack(self._block_outer_FF),
            "open_rows": self._open_rows,
            "open_sum": pack(self._open_sum_F),
        }

    def load_state(self, saved: Saved) -> None:
        features = self._features
        self.count = saved.number("count")
        self._sum_F = saved.array("sum", np.float64, (features,))
        self._outer_FF = saved.array("outer", np.float64, (features, features))
        self._blocks = saved.number("blocks")
        self._block_outer_FF = saved.array("block_outer", np.float64, (features, features))
        self._open_rows = saved.integer("open_rows")
        self._open_sum_F = saved.array("open_sum", np.float64, (features,))
        if not 0 <= self._open_rows < BLOCK_ROWS or self.count < 0 or self._blocks < 0:
            raise saved.mistake("open_rows", "or a count is out of range")
        self._test = None


class MeanTest:
    """How many standard deviations of chance lie between a reference and the means of other rows."""

    def __init__(
        self,
        mean_F: Matrix,
        covariance_FF: Matrix,
        count: float,
        between_FF: Matrix | None = None,
        blocks: float = 0.0,
    ) -> None:
        features = len(mean_F)
        self._mean_F = mean_F
        self._count = count
        ridge = RIDGE * max(float(np.trace(covariance_FF)) / features, 1e-12)
        self._inverse_FF: Matrix = np.asarray(np.linalg.inv(covariance_FF + ridge * np.eye(features)), np.float64)
        # The ridge takes freedom from directions without variance; the small reference inflates T2 (Hotelling).
        self.freedom = max(float(np.sum(self._inverse_FF * covariance_FF)), 1.0)
        self.scale = self.freedom_share = 1.0
        """How much larger T2 is, and of how many fewer directions, because rows depend on each other."""
        self._small = max(count - 1, 1) / max(count - self.freedom - 2, 1)
        if between_FF is not None:
            self._allow_for_dependence(self._inverse_FF @ between_FF, blocks)

    def _allow_for_dependence(self, ratio_FF: Matrix, blocks: float) -> None:
        """Satterthwaite: a sum of squares of unequal variances as a scaled chi-squared value of fewer degrees.

        The variances are the eigenvalues of `ratio_FF`, all 1 where rows are independent. Their squares' sum is
        freed of what the few blocks add to it.
        """
        total = float(np.trace(ratio_FF))
        chance = math.sqrt(2 / (self.freedom * (blocks - 1)))
        if total / self.freedom < 1 + 2 * chance:
            return
        squares = float(np.sum(ratio_FF * ratio_FF.T)) - total * total / blocks
        squares = min(max(squares, total * total / self.freedom), total * total)
        share = total * total / squares / self.freedom
        self.freedom *= share
        # An upper limit, two standard errors up: a few blocks say little about how far rows depend on each other.
        self.scale = squares / total * (1 + 2 * math.sqrt(2 / (self.freedom * blocks)))
        self.freedom_share = share

    def scores(self, means_KF: Matrix, counts_K: Matrix) -> Matrix:
        """T2 of K means of `counts_K` rows each, as a normal score: N(0, 1) without a change."""
        difference_KF = means_KF - self._mean_F
        distance_K = np.einsum("kf,fg,kg->k", difference_KF, self._inverse_FF, difference_KF)
        squared_K = distance_K / (1 / counts_K + 1 / self._count) / self._small
        return normal_score(squared_K / self.scale, self.freedom)

    def distances(self, means_KF: Matrix, counts_K: Matrix) -> Matrix:
        """T2 itself, for comparing K ways to cut the same rows."""
        difference_KF = means_KF - self._mean_F
        distance_K = np.einsum("kf,fg,kg->k", difference_KF, self._inverse_FF, difference_KF)
        return np.asarray(distance_K / (1 / counts_K + 1 / self._count))

    def direction(self, mean_F: Matrix) -> Matrix:
        """The feature that best tells rows around `mean_F` from the reference (Fisher)."""
        return np.asarray(self._inverse_FF @ (mean_F - self._mean_F))


def normal_score(chi2: Matrix, freedom: float | Matrix) -> Matrix:
    """Wilson-Hilferty: a chi-squared value as the normal deviate of equal tail. Finite where the tail underflows."""
    spread = 2 / (9 * freedom)
    return np.asarray((np.cbrt(chi2 / freedom) - 1 + spread) / np.sqrt(spread))
