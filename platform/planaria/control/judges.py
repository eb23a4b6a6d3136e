"""Which judge a policy asks for."""

from __future__ import annotations

from pathlib import Path

from planaria.control.full_look_ahead import FullLookAhead
from planaria.control.judge import Judge
from planaria.control.learned import LearnedJudge
from planaria.control.value import SHIPPED, load_value
from planaria.policy import Controller


def judge_for(settings: Controller) -> Judge:
    """Raises InputError where the value that it needs is not there."""
    if settings.kind == "look_ahead":
        return FullLookAhead(settings)
    return LearnedJudge(settings, load_value(Path(settings.value) if settings.value else SHIPPED))
