"""One of CapyMOA's learners on an exported stream, by an interpreter that has CapyMOA and need not have planaria.

    python capymoa_learner.py STREAM.npz '{"learner": "arf", "models": 10, "seed": 0, "interval": 100}'

STREAM.npz and the settings are what capymoa_peers.py writes. Prints one line of JSON. One thread of learning; the
seconds are those of the process, and the Java machine lives in it: its compiler and its collector of garbage count.

Shape legend: R rows of the stream, I columns, H held-out rows of a context.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from capymoa.classifier import AdaptiveRandomForestClassifier, LeveragingBagging, StreamingRandomPatches
from capymoa.core import LabeledInstance
from capymoa.stream import Schema

LEARNERS: Mapping[str, Callable[..., Any]] = {
    "arf": AdaptiveRandomForestClassifier,
    "srp": StreamingRandomPatches,
    "leveraging_bagging": LeveragingBagging,
}


def main() -> None:
    found = learn(np.load(sys.argv[1]), json.loads(sys.argv[2]))
    sys.stdout.write(json.dumps(found) + "\n")


def learn(stream: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The whole stream, once. `cpu_seconds` is that of predicting and learning: no start of Java, no evaluation."""
    x_RI, target_R, held_out_R = stream["x"], stream["target"].tolist(), stream["held_out"].tolist()
    began = time.process_time()
    schema = schema_of(stream["values"].tolist(), int(stream["classes"]))
    learner = LEARNERS[settings["learner"]](
        schema=schema, ensemble_size=settings["models"], random_seed=settings["seed"]
    )
    right_R = np.zeros(len(target_R), np.bool_)
    for row, (x_I, target, held_out) in enumerate(zip(x_RI, target_R, held_out_R, strict=True)):
        instance = LabeledInstance.from_array(schema, x_I, target)
        right_R[row] = learner.predict(instance) == target  # None, where it cannot tell, is wrong
        if not held_out:
            learner.train(instance)
    spent = time.process_time() - began
    interval = settings["interval"]
    whole = right_R[: len(right_R) // interval * interval].reshape(-1, interval).mean(1)
    return {
        "prequential_accuracy": float(right_R.mean()),
        "final_accuracy": _final_accuracy(learner, schema, stream),
        "cpu_seconds": spent,
        "samples": len(target_R),
        "parameters": None,
        "curve": [[(place + 1) * interval, float(score)] for place, score in enumerate(whole)],
    }


def schema_of(values: list[int], classes: int) -> Schema:
    """values: how many each column can take; 0 of a numeric one."""
    names = [f"x{column}" for column in range(len(values))]
    known = {name: [str(value) for value in range(count)] for name, count in zip(names, values, strict=True) if count}
    known["class"] = [str(number) for number in range(classes)]
    return Schema.from_custom([*names, "class"], target="class", categories=known)


def _final_accuracy(learner: Any, schema: Schema, stream: Any) -> float | None:
    """Mean over contexts, of their held-out rows; None where there are none."""
    right = []
    for context in range(int(stream["held_contexts"])):
        target_H = stream[f"held_target_{context}"].tolist()
        instances = (LabeledInstance.from_array(schema, x_I, 0) for x_I in stream[f"held_x_{context}"])
        answers = [learner.predict(instance) for instance in instances]
        right.append(np.mean([answer == target for answer, target in zip(answers, target_H, strict=True)]))
    return float(np.mean(right)) if right else None


if __name__ == "__main__":
    main()
