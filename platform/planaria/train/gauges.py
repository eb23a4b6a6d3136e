"""A run on Ray's own metrics endpoint (Prometheus): its newest glance, about once a second.

The driver shows what rank 0 leaves in live.json, so that nothing on the training path waits for it. Ray puts `ray_`
before every name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

PREFIX = "planaria_"
GAUGES: dict[str, str] = {
    "samples": "Rows learned from so far.",
    "samples_per_second": "Rows a second, lately.",
    "lag_rows": "Rows that have arrived and were not learned from yet, as far as the run looks ahead.",
    "prequential_accuracy": "Share of all rows that were answered rightly before they were learned from.",
    "accuracy_recent": "The same of the newest 500 rows or so.",
    "prequential_mae": "Mean absolute error of a regression, before learning, of all rows.",
    "mae_recent": "The same of the newest 500 rows or so.",
    "shifts": "Changes of the stream that were found.",
    "edits": "Edits that grew or shrank the model.",
    "revision": "Number of the present revision.",
    "parameters": "Parameters of the present model.",
    "decisions": "Decisions of the controller.",
    "decision_seconds": "Seconds spent deciding.",
    "workers": "Workers of the present start.",
    "restarts": "Times the workers began again.",
}
"""Numbers of a glance, by name. All have a tag `run`."""
HEADS = "heads"
"""Live heads, tagged with `run` and `layer`."""


class Gauges:
    """One run's. Needs a process that has joined a Ray cluster."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Gauge

        self._run = run
        self._gauges = {name: Gauge(PREFIX + name, about, ("run",)) for name, about in GAUGES.items()}
        self._heads = Gauge(PREFIX + HEADS, "Live attention heads of a layer.", ("run", "layer"))

    def show(self, glance: Mapping[str, Any]) -> None:
        """What is not in the glance, or no number, stays as it was."""
        for name, gauge in self._gauges.items():
            value = glance.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                gauge.set(float(value), {"run": self._run})
        for layer, heads in enumerate(glance.get("heads") or ()):
            self._heads.set(float(heads), {"run": self._run, "layer": str(layer)})
