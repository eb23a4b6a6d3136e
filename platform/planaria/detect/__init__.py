"""Sees shifts of the stream in what each global step reports, and tells abrupt, gradual and recurring ones apart."""

from planaria.detect.monitor import ShiftMonitor
from planaria.detect.sketch import Sketch

__all__ = ["ShiftMonitor", "Sketch"]
