"""Runs of one family of streams under one controller, and what they cost. Legend: J = loss + price x heads / most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from benchmarks.controller.rivals import AlwaysGrow, Keep, LinUcb, Oracle, Random, Threshold, Thresholds

from planaria.control.judge import Judge
from planaria.control.learned import LearnedJudge
from planaria.control.value import ValueEnsemble
from planaria.meta.episodes import Life, Start, live, policy_for
from planaria.meta.families import make_stream
from planaria.meta.script import write_script
from planaria.meta.simulate import SimStream
from planaria.policy import Policy
from planaria.train.allocator import reuse_freed_memory

EVERYTHING = {"doubt": 1e9, "most_looks": 16}
"""Of a learned judge that looks ahead on every candidate at every decision."""


@dataclass(frozen=True)
class Contestant:
    """A way to control, by name. Everything in it can be sent to another process."""

    name: str
    kind: str
    start: int = 3
    thresholds: Thresholds | None = None
    value: bytes | None = None
    """A value ensemble, as its file."""
    warm: Any = None
    """What a bandit begins with."""
    settings: dict[str, Any] | None = None
    """Of the controller."""


def run(
    contestants: Sequence[Contestant], family: str, seeds: Sequence[int], extra_rows: float = 0.0
) -> dict[str, list[dict[str, Any]]]:
    """All contestants side by side; for each, one row of figures a stream. A step learns from `extra_rows` more, on
    average."""
    torch.set_num_threads(1)
    reuse_freed_memory()
    streams = [make_stream(family, seed) for seed in seeds]
    scripts = [write_script(stream, extra_rows) for stream in streams]
    starts = []
    for contestant in contestants:
        judge = judge_of(contestant)
        for stream, script in zip(streams, scripts, strict=True):
            starts.append(Start(stream, script, judge(stream), policy_of(contestant, stream)))
    rows = [figures(life) for life in live(starts)]
    each = len(seeds)
    return {c.name: rows[at * each : (at + 1) * each] for at, c in enumerate(contestants)}


def figures(life: Life) -> dict[str, Any]:
    loss, heads = float(life.loss_S.mean()), float(life.heads_S.mean())
    edits = [d.chosen.edit["kind"] for d in life.decisions if d.chosen.edit]
    return {
        "family": life.stream.family,
        "seed": life.stream.seed,
        "loss": loss,
        "accuracy": 1 - float(life.error_S.mean()),
        "heads": heads,
        "price": life.stream.price,
        "J": loss + life.stream.price * heads / 6,
        "extra": life.extra,
        "decisions": len(life.decisions),
        "looked": sum(not np.isnan(c.loss_recent) for d in life.decisions for c in d.candidates[1:]),
        "grows": edits.count("grow_heads"),
        "shrinks": edits.count("shrink_heads"),
        "restores": edits.count("restore"),
        "heads_least": float(life.heads_S.min()),
        "heads_most": float(life.heads_S.max()),
    }


def judge_of(contestant: Contestant) -> Callable[[SimStream], Judge]:
    kind = contestant.kind
    if kind == "learned":
        assert contestant.value is not None
        value = ValueEnsemble.from_bytes(contestant.value)
        return lambda stream: LearnedJudge(policy_of(contestant, stream).controller, value)
    if kind == "bandit":
        warm, mean_X, spread_X, optimism = contestant.warm
        return lambda stream: LinUcb(warm, mean_X, spread_X, optimism)
    if kind == "threshold":
        assert contestant.thresholds is not None
        numbers = contestant.thresholds
        return lambda stream: Threshold(numbers, stream.price)
    simple: dict[str, Callable[[SimStream], Judge]] = {
        "keep": lambda stream: Keep(),
        "grow": lambda stream: AlwaysGrow(),
        "random": lambda stream: Random(stream.seed),
        "oracle": Oracle,
    }
    return simple[kind]


def policy_of(contestant: Contestant, stream: SimStream) -> Policy:
    settings = dict(contestant.settings or {})
    if contestant.kind == "keep":
        settings["kind"] = "none"
    values = policy_for(stream, **settings).model_dump()
    values["heads"]["start"] = contestant.start
    if settings.get("doubt") == EVERYTHING["doubt"]:
        values["budget"]["decision_fraction"] = 1.0
    return Policy.model_validate(values)
