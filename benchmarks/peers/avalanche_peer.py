"""One run of one of Avalanche's learners, by an interpreter that has Avalanche; planaria is not needed there.

    python avalanche_peer.py STREAM.npz LEARNER RATE SEED

The stream's boundaries are told to the learner. Prints one JSON line.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.training import DER, Naive, Replay
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

BATCH, REMEMBERED, HIDDEN = 10, 1_000, 512


def main() -> None:
    path, learner, rate, seed = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    stream = np.load(path)
    x = (torch.from_numpy(stream["image"]).float().flatten(1) / 255 - 0.286) / 0.353
    y, context = torch.from_numpy(stream["target"]), torch.from_numpy(stream["context"])
    parts = [(x[context == c], y[context == c]) for c in context.unique()]
    model = nn.Sequential(nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    common = {
        "model": model,
        "optimizer": optimizer,
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": BATCH,
        "train_epochs": 1,
        "evaluator": EvaluationPlugin(loggers=[]),
    }
    if learner == "naive":
        strategy = Naive(**common)
    elif learner == "replay":
        strategy = Replay(mem_size=REMEMBERED, **common)
    else:
        strategy = DER(mem_size=REMEMBERED, batch_size_mem=BATCH, alpha=0.1, beta=0.5, **common)
    benchmark = tensors_benchmark(train_tensors=parts, test_tensors=parts, task_labels=[0] * len(parts))
    began = time.process_time()
    for experience in benchmark.train_stream:
        strategy.train(experience, num_workers=0)
    spent = time.process_time() - began
    model.eval()
    right = []
    with torch.no_grad():
        for c in range(len(parts)):
            held = (torch.from_numpy(stream[f"held_image_{c}"]).float().flatten(1) / 255 - 0.286) / 0.353
            answer = model(held).argmax(1)
            right.append(float((answer == torch.from_numpy(stream[f"held_target_{c}"])).float().mean()))
    print(
        json.dumps(
            {
                "final_accuracy": float(np.mean(right)),
                "cpu_seconds": spent,
                "samples": len(y),
                "parameters": sum(p.numel() for p in model.parameters()),
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
