"""What a concept looks like, and whether a new stretch of the stream looks like one seen before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.detect.cells import CELLS, CellNumbers
from planaria.detect.moments import RIDGE, Matrix
from planaria.detect.saved import Saved, pack

LEAST_WINDOW_ROWS, LEAST_KNOWN_ROWS = 4, 8
"""A cell counts in a comparison from so many rows on."""
LEAST_COVERAGE = 0.8
"""Share of the window's rows whose cells the concept must know."""
MAX_PRIOR_DISTANCE = 0.3
"""Total variation between the cells' frequencies, beyond which concepts differ whatever their cells look like."""
MAX_CONCEPTS = 16


@dataclass(frozen=True)
class Likeness:
    """How a stretch of rows compares with a concept."""

    distance: float
    """Squared Mahalanobis distance between the cells' means, mean over rows, freed of what chance adds."""
    squared: float
    """The same as evidence of a difference: chi-squared of `freedom` degrees without one."""
    freedom: float
    coverage: float
    prior_distance: float


class Signature:
    """Mean of the sketch within each cell, and the covariance that the cells have in common.

    Compared cell by cell, so that other class frequencies do not look like other inputs, and other labels for the
    same inputs do not look the same.
    """

    def __init__(self, features: int) -> None:
        self._count_K: Matrix = np.zeros(CELLS)
        self._sum_KF: Matrix = np.zeros((CELLS, features))
        self._outer_FF: Matrix = np.zeros((features, features))

    @property
    def rows(self) -> int:
        return int(self._count_K.sum())

    @property
    def mean_F(self) -> Matrix:
        return np.asarray(self._sum_KF.sum(0) / max(self.rows, 1))

    @property
    def count_K(self) -> Matrix:
        """Rows of each cell."""
        return self._count_K

    def add(self, sketch_NF: npt.NDArray[np.float32], cell_N: CellNumbers) -> None:
        rows = sketch_NF.astype(np.float64)
        member_KN = (np.arange(CELLS)[:, None] == cell_N).astype(np.float64)
        self._count_K += member_KN.sum(1)
        self._sum_KF += member_KN @ rows
        self._outer_FF += rows.T @ rows

    def merge(self, other: Signature) -> None:
        self._count_K += other._count_K
        self._sum_KF += other._sum_KF
        self._outer_FF += other._outer_FF

    def compare(self, other: Signature) -> Likeness:
        """Likeness of the rows in `other` to this concept."""
        shared = (other._count_K >= LEAST_WINDOW_ROWS) & (self._count_K >= LEAST_KNOWN_ROWS)
        coverage = float(other._count_K[self._count_K >= LEAST_KNOWN_ROWS].sum() / max(other.rows, 1))
        prior = np.abs(other._count_K / max(other.rows, 1) - self._count_K / max(self.rows, 1)).sum() / 2
        if not shared.any():
            return Likeness(np.inf, np.inf, 1.0, coverage, float(prior))
        inverse_FF, freedom = self._whitening()
        new_K, known_K = other._count_K[shared], self._count_K[shared]
        difference_KF = other._sum_KF[shared] / new_K[:, None] - self._sum_KF[shared] / known_K[:, None]
        squared_K = np.einsum("kf,fg,kg->k", difference_KF, inverse_FF, difference_KF)
        chance_K = 1 / new_K + 1 / known_K
        share_K = new_K / new_K.sum()
        distance = float(share_K @ (squared_K - freedom * chance_K))
        return Likeness(distance, float((squared_K / chance_K).sum()), freedom * len(new_K), coverage, float(prior))

    def distances_to(self, known: Signature, own_K: npt.NDArray[np.int64], known_J: npt.NDArray[np.int64]) -> Matrix:
        """Squared Mahalanobis distance of the means of own cells K from those of the known concept's cells J, within
        its cells, freed of what chance adds. None of the cells may be empty. Shape [K, J]."""
        inverse_FF, freedom = known._whitening()
        own_KF = self._sum_KF[own_K] / self._count_K[own_K][:, None]
        known_JF = known._sum_KF[known_J] / known._count_K[known_J][:, None]
        difference_KJF = own_KF[:, None] - known_JF
        squared_KJ = np.einsum("kjf,fg,kjg->kj", difference_KJF, inverse_FF, difference_KJF)
        chance_KJ = 1 / self._count_K[own_K][:, None] + 1 / known._count_K[known_J]
        return np.asarray(squared_KJ - freedom * chance_KJ)

    def _whitening(self) -> tuple[Matrix, float]:
        """Inverse of the covariance within cells, and how many directions it really has."""
        known = self._count_K > 0
        means_KF = self._sum_KF[known] / self._count_K[known][:, None]
        within_FF = self._outer_FF - self._sum_KF[known].T @ means_KF
        within_FF /= max(self.rows - int(known.sum()), 1)
        features = len(within_FF)
        ridge = RIDGE * max(float(np.trace(within_FF)) / features, 1e-12)
        inverse_FF: Matrix = np.asarray(np.linalg.inv(within_FF + ridge * np.eye(features)), np.float64)
        return inverse_FF, max(float(np.sum(inverse_FF * within_FF)), 1.0)

    def state(self) -> dict[str, Any]:
        return {"count": pack(self._count_K), "sum": pack(self._sum_KF), "outer": pack(self._outer_FF)}

    def load_state(self, saved: Saved) -> None:
        features = len(self._outer_FF)
        self._count_K = saved.array("count", np.float64, (CELLS,))
        self._sum_KF = saved.array("sum", np.float64, (CELLS, features))
        self._outer_FF = saved.array("outer", np.float64, (features, features))
        if (self._count_K < 0).any():
            raise saved.mistake("count", "holds negative numbers")


class Library:
    """The concepts met so far, at most 16: beyond that, the one that was current longest ago is dropped."""

    def __init__(self, features: int, max_distance: float) -> None:
        self._features = features
        self._max_distance = max_distance
        self._known: dict[int, Signature] = {}
        """By number, least recently current first."""
        self._next_number = 0

    def __getitem__(self, number: int) -> Signature:
        return self._known[number]

    def __contains__(self, number: object) -> bool:
        return number in self._known

    def __iter__(self) -> Iterator[int]:
        return iter(self._known)

    def nearest(self, window: Signature, besides: int | None = None) -> int | None:
        """The concept that the window's rows most likely come from; None where it is like none of them."""
        likeness = {n: known.compare(window) for n, known in self._known.items() if n != besides}
        alike = {n: like for n, like in likeness.items() if self._alike(like)}
        return min(alike, key=lambda n: alike[n].distance + alike[n].prior_distance, default=None)

    def _alike(self, like: Likeness) -> bool:
        return (
            like.distance <= self._max_distance
            and like.coverage >= LEAST_COVERAGE
            and like.prior_distance <= MAX_PRIOR_DISTANCE
        )

    def enter(self, number: int | None, window: Signature) -> int:
        """Make a concept current and give it the window's rows; None makes a new one. Returns its number."""
        if number is None:
            number = self._next_number
            self._next_number += 1
            self._known[number] = Signature(self._features)
        self._known[number] = self._known.pop(number)
        self._known[number].merge(window)
        if len(self._known) > MAX_CONCEPTS:
            del self._known[next(iter(self._known))]
        return number

    def state(self) -> dict[str, Any]:
        concepts = [{"number": number, **known.state()} for number, known in self._known.items()]
        return {"concepts": concepts, "next_number": self._next_number}

    def load_state(self, saved: Saved) -> None:
        self._known = {}
        self._next_number = saved.integer("next_number")
        for part in saved.parts("concepts"):
            signature = Signature(self._features)
            signature.load_state(part)
            self._known[part.integer("number")] = signature
        if len(self._known) > MAX_CONCEPTS or any(n >= self._next_number for n in self._known):
            raise saved.mistake("concepts", "has too many concepts, or one numbered beyond next_number")
