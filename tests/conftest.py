"""Settings that must be in place before Ray, torch, MLflow or matplotlib are imported by any test."""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on small tensors are slower than one
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60")
os.environ.setdefault("RAY_worker_niceness", "0")  # its 15 starves workers beside anything else that is busy
os.environ.pop("RAY_ADDRESS", None)  # a test must never join somebody's cluster

settings.register_profile("planaria", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("planaria")
