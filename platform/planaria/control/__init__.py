"""Deciding which edit to make: propose, look ahead, choose, and learn from what it brought."""

from planaria.control.controller import Bench, Controller
from planaria.control.look_ahead import Evidence, Measurement, Trial, run_trial

__all__ = ["Bench", "Controller", "Evidence", "Measurement", "Trial", "run_trial"]
