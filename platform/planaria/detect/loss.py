"""Watches the prequential loss row by row: river's Page-Hinkley and ADWIN on residuals from a running baseline."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.detect.channel import Evidence
from planaria.detect.river_parts import ADWIN, Mean, PageHinkley
from planaria.detect.saved import Saved
from planaria.policy import LossChannel
from planaria.signals import StepReport

logger = logging.getLogger(__name__)

BASELINE_ROWS = 1_500
"""Time constant of the baseline: slower than any alarm, faster than learning changes the loss by much."""
BLOCK_ROWS = 64
WARM_UP_ROWS = 512
CLIP = 4.0
"""Residuals are clipped at this many standard deviations: cross-entropy has a heavy tail."""
LEAST_RISE = 0.1
"""Standard deviations. Both detectors also fire when a falling loss comes to rest: that is not a rise."""
LEVEL_ROWS = 64


class LossDetector:
    """Alarms where the loss rises above what it was lately; the thresholds are in standard deviations of a row."""

    name = "loss"
    follows_model = True

    def __init__(self, settings: LossChannel) -> None:
        self._settings = settings
        self.reset()

    def reset(self) -> None:
        self._baseline = Baseline()
        self.dismiss()

    def dismiss(self) -> None:
        settings = self._settings
        # With forgetting (alpha < 1) the sum rests after some 10,000 rows, and then walks into an alarm by chance.
        self._page_hinkley = PageHinkley(
            delta=settings.page_hinkley_delta, threshold=settings.page_hinkley_threshold, alpha=1.0, mode="up"
        )
        self._adwin = ADWIN(delta=settings.adwin_delta, clock=1)  # type: ignore[no-untyped-call]
        self._low_sample = 0
        self._level = 0.0

    def update(self, report: StepReport) -> Evidence | None:
        warm = self._baseline.rows >= WARM_UP_ROWS
        residuals_B = self._baseline.residuals(report.loss_B.astype(np.float64))
        if not warm:
            return None
        return self._watch(residuals_B, report.start)

    def _watch(self, residuals_B: npt.NDArray[np.float64], first_sample: int) -> Evidence | None:
        """The first evidence among these rows. Both detectors see every row, whatever the other says, so that their
        states do not depend on each other. This loop is most of what detection costs: river's fields are read
        directly, without its properties."""
        page_hinkley, adwin, level, evidence = self._page_hinkley, self._adwin, self._level, None
        for sample, residual in enumerate(residuals_B.tolist(), first_sample + 1):
            level += (residual - level) / LEVEL_ROWS
            page_hinkley.update(residual)  # type: ignore[no-untyped-call]
            if page_hinkley._sum_increase == page_hinkley._min_increase:
                self._low_sample = sample
            # ADWIN's bound assumes values between 0 and 1.
            adwin.update(0.5 + residual / (2 * CLIP))  # type: ignore[no-untyped-call]
            if evidence is None and page_hinkley._drift_detected and level >= LEAST_RISE:
                rise = page_hinkley._sum_increase - page_hinkley._min_increase
                evidence = Evidence("loss (Page-Hinkley)", rise, page_hinkley.threshold, self._low_sample)
            if evidence is None and adwin._drift_detected:
                risen = (adwin.estimation - 0.5) * 2 * CLIP
                if risen >= LEAST_RISE:
                    evidence = Evidence("loss (ADWIN)", risen, LEAST_RISE, sample - int(adwin.width))
        self._level = level
        return evidence

    def state(self) -> dict[str, Any]:
        window = self._adwin._helper.__getstate__()
        return {
            "baseline": self._baseline.state(),
            "low_sample": self._low_sample,
            "level": self._level,
            "page_hinkley": _page_hinkley_state(self._page_hinkley),
            "adwin": {
                "river": _RIVER,
                "window": base64.b64encode(window).decode("ascii"),
                "sha256": hashlib.sha256(window).hexdigest(),
                "detected": int(self._adwin.drift_detected),
            },
        }

    def load_state(self, saved: Saved) -> None:
        self.reset()
        self._baseline.load_state(saved.part("baseline"))
        self._low_sample = saved.integer("low_sample")
        self._level = saved.number("level")
        _load_page_hinkley(self._page_hinkley, saved.part("page_hinkley"))
        _load_adwin(self._adwin, saved.part("adwin"))


class Baseline:
    """Running mean and spread of the loss, which turn it into residuals of about unit variance.

    The spread is that of rows or of block means, whichever says more: a loss that wanders as the model learns, or
    whose rows resemble their neighbours, is held to its own standard.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._mean = self._row_variance = self._block_variance = 0.0
        self._open: list[float] = []

    def residuals(self, loss_B: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Each row against the baseline of the blocks before its own; 0 in the first block, and where not finite."""
        loss_B = np.where(np.isfinite(loss_B), loss_B, self._mean)
        residuals_B = np.zeros(len(loss_B))
        at = 0
        while at < len(loss_B):
            end = min(len(loss_B), at + BLOCK_ROWS - len(self._open))
            if self.rows >= BLOCK_ROWS:
                residuals_B[at:end] = ((loss_B[at:end] - self._mean) / self._spread).clip(-CLIP, CLIP)
            self._take(loss_B[at:end])
            at = end
        return residuals_B

    @property
    def _spread(self) -> float:
        return float(np.sqrt(max(self._row_variance, self._block_variance, 1e-12)))

    def _take(self, loss_N: npt.NDArray[np.float64]) -> None:
        self._open.extend(loss_N.tolist())
        self.rows += len(loss_N)
        if len(self._open) < BLOCK_ROWS:
            return
        block = np.array(self._open)
        self._open = []
        if self.rows == BLOCK_ROWS:
            self._mean, self._row_variance = float(block.mean()), float(block.var())
            return
        # A burst must not raise the bar for itself.
        block = np.minimum(block, self._mean + CLIP * self._spread)
        rate = max(BLOCK_ROWS / BASELINE_ROWS, BLOCK_ROWS / self.rows)
        step = float(block.mean()) - self._mean
        self._row_variance += rate * (float(np.square(block - self._mean).mean()) - self._row_variance)
        self._block_variance += rate * (BLOCK_ROWS * step * step - self._block_variance)
        self._mean += rate * step

    def state(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "mean": self._mean,
            "row_variance": self._row_variance,
            "block_variance": self._block_variance,
            "open": list(self._open),
        }

    def load_state(self, saved: Saved) -> None:
        self.rows = saved.integer("rows")
        self._mean = saved.number("mean")
        self._row_variance = saved.number("row_variance")
        self._block_variance = saved.number("block_variance")
        self._open = saved.numbers("open")
        if self.rows % BLOCK_ROWS != len(self._open):
            raise saved.mistake("open", f"holds {len(self._open)} values, which do not fit {self.rows} rows")


_RIVER = importlib.metadata.version("river")


def _page_hinkley_state(detector: PageHinkley) -> dict[str, Any]:
    state: dict[str, Any] = {"count": int(detector._x_mean.n), "mean": detector._x_mean.get()}
    if state["count"]:  # before the first value the minimum is infinite, which JSON cannot hold
        state |= {
            "increase": detector._sum_increase,
            "decrease": detector._sum_decrease,
            "lowest": detector._min_increase,
            "highest": detector._max_decrease,
            "detected": int(detector.drift_detected),
        }
    return state


def _load_page_hinkley(detector: PageHinkley, saved: Saved) -> None:
    count = saved.integer("count")
    if count == 0:
        return
    detector._x_mean = Mean._from_state(count, saved.number("mean"))
    detector._sum_increase = saved.number("increase")
    detector._sum_decrease = saved.number("decrease")
    detector._min_increase = saved.number("lowest")
    detector._max_decrease = saved.number("highest")  # type: ignore[assignment]
    detector._drift_detected = bool(saved.integer("detected"))


def _load_adwin(detector: ADWIN, saved: Saved) -> None:
    """The window is river's own binary layout, so only bytes that this version of river wrote are given to it."""
    if saved.text("river") != _RIVER:
        logger.warning("loss: ADWIN starts anew, its window was saved by river %s, not %s", saved.text("river"), _RIVER)
        return
    window = saved.data("window")
    if hashlib.sha256(window).hexdigest() != saved.text("sha256"):
        raise saved.mistake("window", "does not match its checksum")
    try:
        detector._helper.__setstate__(window)
    except BaseException as error:
        # A layout that does not decode is a Rust panic, which is no Exception; Ctrl-C is not ours to hide.
        if type(error).__name__ != "PanicException":
            raise
        raise saved.mistake("window", "cannot be read") from None
    detector._drift_detected = bool(saved.integer("detected"))
