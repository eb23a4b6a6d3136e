"""What every detector is: a channel that turns step reports into evidence of a change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from planaria.detect.saved import Saved
from planaria.signals import StepReport


@dataclass(frozen=True)
class Evidence:
    """A channel's alarm."""

    detector: str
    statistic: float
    threshold: float
    onset_sample: int
    """The channel's estimate of the first row of the change."""


class Channel(Protocol):
    """One way of watching the stream. Deterministic: equal reports give equal evidence."""

    @property
    def name(self) -> str: ...

    @property
    def follows_model(self) -> bool:
        """True where what is watched changes when the model is edited, even if the stream does not."""

    def update(self, report: StepReport) -> Evidence | None: ...

    def reset(self) -> None:
        """Forget what is normal and gather it anew; no evidence until that is done."""

    def dismiss(self) -> None:
        """The evidence just given was chance: go on from what is normal, without it."""

    def state(self) -> dict[str, Any]: ...

    def load_state(self, saved: Saved) -> None: ...
