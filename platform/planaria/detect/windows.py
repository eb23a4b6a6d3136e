"""Label-free and labelled two-sample tests: do the newest rows have the mean that the reference has?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from planaria.detect.channel import Evidence
from planaria.detect.moments import Moments
from planaria.detect.saved import Saved, pack
from planaria.detect.tail import Tail
from planaria.policy import InputChannel
from planaria.signals import StepReport

View = Callable[[StepReport], npt.NDArray[np.float32]]

ONSET_ROWS = 32
"""Resolution of the estimated onset."""
TEST_ROWS = 128
"""Small batches are tested together: the windows hardly differ, and a test costs as much as 50 rows of them."""
CHUNK_ROWS = 512
"""Rows join the reference together: every change of it is followed by a matrix inversion."""
REFERENCE_LIMIT = 16
"""The reference is forgotten beyond this many times its least size."""


class WindowChannel:
    """Compares the newest rows of a view, in windows of four lengths, with all rows before them.

    A short window sees a large change at once, a long one sees a small change at all. Rows join the reference when
    they leave the longest window, so that a slow change does not hide in its own reference.
    """

    follows_model = False

    def __init__(self, name: str, settings: InputChannel, features: int, view: View) -> None:
        self.name = name
        self._settings = settings
        self._features = features
        self._view = view
        rows = settings.window_rows
        self._windows = np.array([rows // 2, rows, rows * 2, rows * 4])
        self._threshold = float(-ndtri(settings.significance / len(self._windows)))
        self.reset()

    def reset(self) -> None:
        self._reference = Moments(self._features, capacity=self._settings.reference_rows * REFERENCE_LIMIT)
        self._recent_NF = Tail(np.zeros((0, self._features), np.float32))

    def dismiss(self) -> None:
        self._reference.add(self._recent_NF.rows)
        self._recent_NF.drop(len(self._recent_NF))

    def update(self, report: StepReport) -> Evidence | None:
        self._recent_NF.add(self._fill_reference(self._view(report)))
        leaving = (len(self._recent_NF) - int(self._windows[-1])) // CHUNK_ROWS * CHUNK_ROWS
        if leaving > 0:
            self._reference.add(self._recent_NF.rows[:leaving])
            self._recent_NF.drop(leaving)
        seen = report.start + len(report.loss_B)
        if seen // TEST_ROWS == report.start // TEST_ROWS:
            return None
        windows_K = self._windows[self._windows <= len(self._recent_NF)]
        if not len(windows_K):
            return None
        scores_K = self._reference.test.scores(self._means(windows_K), windows_K.astype(np.float64))
        best = int(scores_K.argmax())
        if scores_K[best] <= self._threshold:
            return None
        return Evidence(self.name, float(scores_K[best]), self._threshold, seen - self._onset_rows())

    def _fill_reference(self, rows_BF: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The rows that the reference, once it has its least size, does not need."""
        missing = self._settings.reference_rows - int(self._reference.count)
        if missing <= 0:
            return rows_BF
        self._reference.add(rows_BF[:missing])
        return rows_BF[missing:]

    def _means(self, windows_K: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Mean of the newest rows, for each number of rows. [K, F]"""
        age_N = np.arange(len(self._recent_NF), 0, -1)
        newest_KN = (age_N <= windows_K[:, None]).astype(np.float32)
        sum_KF: npt.NDArray[np.float32] = newest_KN @ self._recent_NF.rows
        return sum_KF.astype(np.float64) / windows_K[:, None]

    def _onset_rows(self) -> int:
        """How many of the newest rows the change most likely holds."""
        cuts_K = np.arange(ONSET_ROWS, len(self._recent_NF) + 1, ONSET_ROWS)
        return int(cuts_K[self._reference.test.distances(self._means(cuts_K), cuts_K.astype(np.float64)).argmax()])

    def state(self) -> dict[str, Any]:
        return {"reference": self._reference.state(), "recent": pack(self._recent_NF.rows)}

    def load_state(self, saved: Saved) -> None:
        self.reset()
        self._reference.load_state(saved.part("reference"))
        self._recent_NF = Tail(saved.array("recent", np.float32, (None, self._features)))
