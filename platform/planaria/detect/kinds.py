"""Abrupt or gradual, and whether a change is over: the course that rows take from what was to what is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.detect.moments import Matrix, MeanTest, Moments

BLOCK_ROWS = 64
CLEAR = 2.0
"""A step is believed at once where a ramp leaves this many times its squared error, and the other way round."""


def course(before: Moments, rows_NF: npt.NDArray[np.floating[Any]], newest: int) -> Matrix:
    """Block means of the rows along the direction that leads from `before` to the `newest` rows.

    The direction for the odd rows comes from the even ones and the other way round, so that chance in the newest
    rows does not look like a trend.
    """
    rows = rows_NF.astype(np.float64)
    odd_NF, even_NF = rows[1::2], rows[::2]
    half = newest // 2
    odd_N = _project(before.test, odd_NF, even_NF[-half:].mean(0))
    even_N = _project(before.test, even_NF, odd_NF[-half:].mean(0))
    return (_block_means(odd_N, BLOCK_ROWS // 2) + _block_means(even_N, BLOCK_ROWS // 2)) / 2


def _project(test: MeanTest, rows_NF: Matrix, towards_F: Matrix) -> Matrix:
    direction_F = test.direction(towards_F)
    return np.asarray(rows_NF @ direction_F / max(float(np.linalg.norm(direction_F)), 1e-12))


def _block_means(values_N: Matrix, rows: int) -> Matrix:
    """Means of consecutive blocks; the oldest values that do not fill one are left out."""
    blocks = len(values_N) // rows
    return np.asarray(values_N[len(values_N) - blocks * rows :].reshape(blocks, rows).mean(1))


def ramp_over_step(course_N: Matrix) -> float:
    """Squared error that the best step leaves over that of the best ramp: above 1 the change is gradual.

    Both have a free level, a free onset, and a free height or slope.
    """
    at_N = np.arange(len(course_N), dtype=np.float64)
    step = min(_left_over(course_N, np.where(at_N >= onset, 1.0, 0.0)) for onset in range(1, len(course_N)))
    ramp = min(_left_over(course_N, np.maximum(at_N - onset, 0.0)) for onset in range(len(course_N) - 2))
    return step / max(ramp, 1e-12)


def _left_over(course_N: Matrix, shape_N: Matrix) -> float:
    """Squared error of the best level + height * shape."""
    centred_N, shape_N = course_N - course_N.mean(), shape_N - shape_N.mean()
    return float(centred_N @ centred_N - (centred_N @ shape_N) ** 2 / (shape_N @ shape_N))


def drift(course_N: Matrix) -> float:
    """Normal score of the difference between the halves of a course: beyond chance, the change is not over."""
    half = len(course_N) // 2
    older_N, newer_N = course_N[:half], course_N[half:]
    variance = (older_N.var(ddof=1) / len(older_N)) + (newer_N.var(ddof=1) / len(newer_N))
    return float(abs(newer_N.mean() - older_N.mean()) / np.sqrt(max(variance, 1e-24)))
