"""Watches the model's outputs without labels: Kolmogorov-Smirnov on each softmax dimension (BBSDs, Rabanser et al.)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import kolmogi, softmax

from planaria.detect.channel import Evidence
from planaria.detect.saved import Saved, pack
from planaria.policy import InputChannel
from planaria.signals import StepReport, Task

MAX_DIMENSIONS = 32
"""Of more classes, those that the reference predicts most."""


class PredictionChannel:
    """Compares the newest outputs with those just before them.

    The reference moves along, always the rows that precede the window, because outputs drift as the model learns.
    """

    name = "predictions"
    follows_model = True

    def __init__(self, settings: InputChannel, task: Task) -> None:
        self._settings = settings
        self._task = task
        self.reset()

    def reset(self) -> None:
        self._rows_NC: npt.NDArray[np.float32] = np.zeros((0, 1), np.float32)
        self._unseen = 0

    def dismiss(self) -> None:
        self.reset()

    def update(self, report: StepReport) -> Evidence | None:
        self._append(self._view(report.output_BC))
        window, reference = self._settings.window_rows, self._settings.reference_rows
        self._rows_NC = self._rows_NC[-(window + reference) :]
        self._unseen += len(report.loss_B)
        if len(self._rows_NC) < window + reference or self._unseen < window // 2:
            return None
        self._unseen = 0
        columns = np.sort(np.argsort(-self._rows_NC[:reference].mean(0), kind="stable")[:MAX_DIMENSIONS])
        statistic = _kolmogorov_smirnov(self._rows_NC[:, columns], reference)
        threshold = float(kolmogi(self._settings.significance / len(columns)))
        if statistic <= threshold:
            return None
        seen = report.start + len(report.loss_B)
        return Evidence(self.name, statistic, threshold, seen - window)

    def _view(self, output_BC: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self._task == "regression":
            return output_BC.astype(np.float32)
        return np.asarray(softmax(output_BC.astype(np.float32), axis=1), np.float32)

    def _append(self, rows_BC: npt.NDArray[np.float32]) -> None:
        """A class that is new had no probability before."""
        grown = rows_BC.shape[1] - self._rows_NC.shape[1]
        if grown > 0:
            self._rows_NC = np.pad(self._rows_NC, ((0, 0), (0, grown)))
        self._rows_NC = np.concatenate([self._rows_NC, rows_BC])

    def state(self) -> dict[str, Any]:
        return {"rows": pack(self._rows_NC), "unseen": self._unseen}

    def load_state(self, saved: Saved) -> None:
        self._rows_NC = saved.array("rows", np.float32, (None, None))
        self._unseen = saved.integer("unseen")


def _kolmogorov_smirnov(rows_NC: npt.NDArray[np.float32], reference: int) -> float:
    """Largest scaled distance between the distributions of the first `reference` rows and of the rest.

    In units of Kolmogorov's distribution: 1.36 is passed by chance in 5 of 100 columns.
    """
    window = len(rows_NC) - reference
    order_NC = np.argsort(rows_NC, axis=0, kind="stable")
    sorted_NC = np.take_along_axis(rows_NC, order_NC, axis=0)
    gap_NC = np.cumsum(np.where(order_NC < reference, 1 / reference, -1 / window), axis=0)
    # Between equal values the two distributions have not both moved yet.
    gap_NC[:-1][sorted_NC[:-1] == sorted_NC[1:]] = 0
    return float(np.abs(gap_NC).max() * np.sqrt(reference * window / (reference + window)))
