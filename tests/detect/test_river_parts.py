"""What a run imports."""

from __future__ import annotations

import subprocess
import sys


def test_a_run_needs_neither_pandas_nor_scikit_learn_and_river_is_whole_afterwards() -> None:
    script = """
import sys
import planaria.train.lifelong
from planaria.detect.river_parts import ADWIN
heavy = [name for name in ("pandas", "sklearn", "sqlalchemy", "mlflow", "ray") if name in sys.modules]
assert not heavy, heavy
import river
from river import drift, stats, tree
assert river.drift is drift and drift.ADWIN is ADWIN and river.__version__ and river.stats.Mean and drift.KSWIN
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
