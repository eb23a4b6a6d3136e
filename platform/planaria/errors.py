"""The two ways a run can end badly. Both carry one line: where, what, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from planaria.addresses import mask_secrets


class _Line(Exception):
    """Messages are shown and recorded: secrets in them are not."""

    def __init__(self, message: str) -> None:
        super().__init__(mask_secrets(message))


class InputError(_Line):
    """What the user gave cannot be run. Raised before anything is started; exit status 2."""


class RunError(_Line):
    """A run that had started cannot go on. What was done so far is kept; exit status 1."""


def nearest(word: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the known word closest to the given one, or an empty string."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
