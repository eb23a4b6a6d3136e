"""Avalanche's replay and DER++ on planaria's transformer, in turns: how many rows a CPU-second, and how much memory.

    PYTHONPATH=platform python benchmarks/peers/avalanche_transformer.py STREAM.npz LEARNER BATCH ROWS

The Python needs Avalanche and safetensors. STREAM.npz holds `image` [rows, 1, 28, 28], uint8, and `target`. Reads from
standard input: for every line, learns the next ROWS rows as an experience of their own and prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.training import DER, Replay
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn

from planaria.blueprint import Blueprint
from planaria.model import build

REMEMBERED = 1_000


class OnPictures(nn.Module):
    """Avalanche hands over tensors; planaria's model takes its features by name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.model({"image": image})
        return answer


def main() -> None:
    path, learner, batch, rows = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    stream = np.load(path)
    x, y = torch.from_numpy(stream["image"]), torch.from_numpy(stream["target"])
    model = OnPictures(build(Blueprint.from_json(str(stream["blueprint"]))))
    common: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": batch,
        "train_epochs": 1,
        "evaluator": EvaluationPlugin(loggers=[]),
        "mem_size": REMEMBERED,
    }
    strategy = Replay(**common) if learner == "replay" else DER(batch_size_mem=batch, alpha=0.1, beta=0.5, **common)
    parts = [(x[low : low + rows], y[low : low + rows]) for low in range(0, len(x) - rows + 1, rows)]
    benchmark = tensors_benchmark(train_tensors=parts, test_tensors=parts[:1], task_labels=[0] * len(parts))
    waiting = iter(benchmark.train_stream)
    for _ in sys.stdin:
        experience = next(waiting)
        began = time.process_time()
        strategy.train(experience, num_workers=0)
        spent = time.process_time() - began
        status = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in status if line.startswith("VmHWM"))
        print(json.dumps({"cpu_seconds": spent, "peak_mib": int(peak.split()[1]) / 1024}), flush=True)


if __name__ == "__main__":
    main()
