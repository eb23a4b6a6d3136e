"""Sees shifts of the stream in what each global step reports, and tells abrupt, gradual and recurring ones apart."""

from planaria.detect.monitor import ShiftMonitor
from planaria.detect.sketch import Sketch
from planaria.detect.told import ToldMonitor
from planaria.policy import Detector
from planaria.signals import Task

__all__ = ["ShiftMonitor", "Sketch", "ToldMonitor", "build_monitor"]


def build_monitor(settings: Detector, task: Task) -> ShiftMonitor | ToldMonitor:
    """What a policy asks to say when the stream has shifted."""
    return ToldMonitor() if settings.boundaries == "told" else ShiftMonitor(settings, task)
