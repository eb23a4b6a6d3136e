"""Deciding which edit to make: propose, look ahead, choose, and learn from what it brought."""

from planaria.control.controller import Bench, Controller
from planaria.control.look_ahead import Evidence, Trial, run_trial

__all__ = ["Bench", "Controller", "Evidence", "Trial", "run_trial"]
