"""What each part of the learned controller is worth, on the validation families (nothing is chosen by it).

Parts of the machinery are taken away from whole runs. What the value learns from (kinds of observation, the horizon
over which candidates were followed) and how (ANIL, MAML, no inner loop) is judged by its regret per decision.

    python -m benchmarks.controller.ablations
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from benchmarks.controller.compare import RESULTS, compared
from benchmarks.controller.lives import EVERYTHING, Contestant, run
from rich.console import Console

from planaria.control import controller as controlling
from planaria.control.controller import Controller
from planaria.control.features import GROUPS, NAMES
from planaria.control.learned import LearnedJudge
from planaria.control.setbacks import Setbacks
from planaria.control.value import SHIPPED
from planaria.meta.campaign import gathered, write_whole
from planaria.meta.episodes import BLOCK_STEPS, BLOCKS
from planaria.meta.experience import Experience
from planaria.meta.families import SPLIT
from planaria.meta.job import OuterLoop
from planaria.meta.training import regret, train
from planaria.morph import surgery

OUT = RESULTS.with_name("ablations.json")
_FIRST_SEED, _STREAMS = 800_000, 12


def _untreated(*arguments: Any, **named: Any) -> list[Any]:
    return [candidate for candidate in _PROPOSE(*arguments, **named) if candidate.treatment == "keep"]


_PROPOSE = controlling.propose
MACHINERY: dict[str, Callable[[], Any]] = {
    "reset and temper": lambda: patch.object(controlling, "propose", _untreated),
    "compensation on shrinking": lambda: patch.object(surgery, "refit_output_projection", lambda *a, **n: None),
    "maturity": lambda: patch.object(Controller, "_mature", lambda *a: True),
    "rollback": lambda: patch.object(controlling.rollback, "doubtful", lambda *a: False),
    "setbacks": lambda: patch.object(Setbacks, "barred", lambda *a: False),
    "learning from its outcomes": lambda: patch.object(LearnedJudge, "learn", lambda *a: None),
    "fresh heads' own second moments": lambda: patch.object(surgery, "FRESH_HEAD_MOMENT", 1.0),
}
"""What is left out, and how."""
SETTINGS: dict[str, dict[str, Any]] = {
    "library": {"library": 0},
    "looking ahead": {"doubt": 0.0},
    "restraint in looking ahead: doubt 0.5": {"doubt": 0.5},
    "restraint in looking ahead: everything": EVERYTHING,
}


@dataclass(frozen=True)
class Trained:
    """How a value is trained."""

    without: str = ""
    """A group of observations."""
    mode: Literal["anil", "maml", "pooled"] = "anil"
    blocks: int = BLOCKS
    """Of the horizon, each of BLOCK_STEPS steps."""


VALUES = {
    "as shipped": Trained(),
    **{f"without {group}": Trained(without=group) for group in GROUPS},
    "MAML": Trained(mode="maml"),
    "pooled": Trained(mode="pooled"),
    **{f"horizon {blocks * BLOCK_STEPS} steps": Trained(blocks=blocks) for blocks in (4, 10, 15)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--value", type=Path, default=SHIPPED, help="the learned value")
    parser.add_argument("--experience", type=Path, default=Path("runs/meta_train-0"), help="the meta-training's folder")
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"), help="what was measured already")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    console = Console(width=140)
    chosen = json.loads(RESULTS.read_text())["chosen"]["ours"]
    settings = {name: value for name, value in chosen.items() if name != "start"}
    ours = Contestant("ours", "learned", chosen["start"], value=arguments.value.read_bytes(), settings=settings)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        measure = partial(_measured, ours, arguments.work)
        names = ["nothing", *MACHINERY, *SETTINGS]
        lives = dict(zip(names, pool.map(measure, names), strict=True))
        trained = list(pool.map(partial(_regret, arguments.experience), VALUES.values()))
    lost = [{"value": name, **figures} for name, figures in zip(VALUES, trained, strict=True)]
    results = {"machinery": list(_differences(lives)), "value": lost}
    for row in [*results["machinery"], *results["value"]]:
        console.print(row)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


def _measured(ours: Contestant, work: Path, without: str) -> list[dict[str, Any]]:
    """A row of figures for every stream of the validation families, in a process of its own."""
    path = work / f"without-{without.replace(' ', '-').replace(':', '')}.json"
    if path.exists():
        kept: list[dict[str, Any]] = json.loads(path.read_text())
        return kept
    changed = replace(ours, settings={**(ours.settings or {}), **SETTINGS.get(without, {})})
    rows = []
    with MACHINERY.get(without, nullcontext)():
        for family in SPLIT["validation"]:
            rows += run([changed], family, range(_FIRST_SEED, _FIRST_SEED + _STREAMS))["ours"]
    write_whole(path, json.dumps(rows).encode())
    return rows


def _differences(lives: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """J without the part minus J with it: above 0, the part is worth something."""
    for name, rows in lives.items():
        if name != "nothing":
            yield {"without": name, **compared("validation", "whole", rows, lives["nothing"], lambda row: row["J"])}


def _regret(folder: Path, how: Trained) -> dict[str, float]:
    """Nats lost a decision on the validation families, over the full horizon."""
    torch.set_num_threads(1)
    learned, validation = gathered(folder, "round-*"), gathered(folder, "validation")
    hidden = [NAMES.index(name) for name in GROUPS.get(how.without, ())]
    learned = _without(learned, hidden)
    if how.blocks < BLOCKS:
        learned = replace(learned, return_DK=learned.falls_DKZ[..., : how.blocks].mean(-1))
    value = train(learned, OuterLoop(mode=how.mode), seed=0)
    seen = _without(validation, hidden)
    return {
        f"{'looked' if looked else 'sight unseen'}, {support} outcomes": round(
            float(regret(value, seen, looked=looked, support=support).mean()), 5
        )
        for looked in (False, True)
        for support in (0, 16)
    }


def _without(experience: Experience, hidden: list[int]) -> Experience:
    before, after = experience.before_DKX.copy(), experience.after_DKX.copy()
    before[..., hidden] = after[..., hidden] = 0
    return replace(experience, before_DKX=before, after_DKX=after)


if __name__ == "__main__":
    main()
