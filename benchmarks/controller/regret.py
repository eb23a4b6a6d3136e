"""Does meta-learning help after 16 outcomes? Regret per decision on families that were never learned from.

Every candidate of some decisions is followed over the stream's own next rows: what each would have brought is then
known. Two values that learned from the same experience judge them, one meta-trained (ANIL), one pooled. Both adapt
their last layers to the realised outcomes of 16 other decisions of the same deployment, the pooled one at the rate that
is best on the validation families.

    python -m benchmarks.controller.regret
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from scipy.stats import t as student

from planaria.control.value import ValueEnsemble
from planaria.meta.campaign import Errand, from_bytes, gather, gathered, write_whole
from planaria.meta.experience import Experience
from planaria.meta.families import SPLIT
from planaria.meta.job import OuterLoop
from planaria.meta.training import regret, train

RESULTS = Path(__file__).parents[1] / "results" / "regret.json"
RATES = (0.0, 0.001, 0.003, 0.01, 0.03)
_FIRST_SEED, _STREAMS = 950_000, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experience", type=Path, default=Path("runs/meta_train-0"), help="the meta-training's folder")
    parser.add_argument("--work", type=Path, default=Path("runs/regret"), help="what was followed already")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    console = Console(width=140)
    learned, validation = gathered(arguments.experience, "round-*"), gathered(arguments.experience, "validation")
    test = followed(arguments.work)
    values = {mode: train(learned, OuterLoop(mode=mode), seed=0) for mode in ("anil", "pooled")}
    best = min(RATES, key=lambda rate: mean_regret(at_rate(values["pooled"], rate), validation))
    values["pooled"] = at_rate(values["pooled"], best)
    rows = list(figures(values, test))
    for row in rows:
        console.print(row)
    arguments.out.write_text(json.dumps({"pooled_rate": best, "regret": rows}, indent=1))


def followed(folder: Path) -> dict[str, Experience]:
    """By test family. All candidates of a third of the decisions, taken at random."""
    seeds = tuple(range(_FIRST_SEED, _FIRST_SEED + _STREAMS))
    errands = [Errand(family, seeds, None, 0.33, 1.0, f"{family}.npz") for family in SPLIT["test"]]
    missing = [errand for errand in errands if not (folder / errand.name).exists()]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        for errand, content in zip(missing, pool.map(gather, missing), strict=True):
            write_whole(folder / errand.name, content)
    return {errand.family: from_bytes((folder / errand.name).read_bytes()) for errand in errands}


def at_rate(value: ValueEnsemble, rate: float) -> ValueEnsemble:
    """The same with one rate for every weight of the inner steps."""
    copied = ValueEnsemble.from_bytes(value.to_bytes())
    for member in copied.members:
        for tensor in member.rates:
            with torch.no_grad():
                tensor.fill_(rate)
    return copied


def mean_regret(value: ValueEnsemble, experience: Experience) -> float:
    return float(regret(value, experience, looked=False, support=16).mean())


def figures(values: dict[str, ValueEnsemble], test: dict[str, Experience]) -> list[dict[str, Any]]:
    rows = []
    for family, experience in test.items():
        for looked in (False, True):
            lost = {
                f"{mode}, {support} outcomes": regret(value, experience, looked=looked, support=support)
                for mode, value in values.items()
                for support in (0, 16)
            }
            difference = lost["anil, 16 outcomes"] - lost["pooled, 16 outcomes"]
            half = float(student.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / math.sqrt(len(difference)))
            mean = float(difference.mean())
            rows.append(
                {
                    "family": family,
                    "decisions": len(experience),
                    "looked": looked,
                    **{name: round(float(values_D.mean()), 5) for name, values_D in lost.items()},
                    "keep": round(float(of_keeping(experience).mean()), 5),
                    "anil - pooled": round(mean, 5),
                    "ci95": [round(mean - half, 5), round(mean + half, 5)],
                }
            )
    return rows


def of_keeping(experience: Experience) -> np.ndarray:
    """Regret of never editing."""
    true_DK = experience.scale_D[:, None] * (experience.return_DK - experience.return_DK[:, :1]) - experience.price_DK
    best: np.ndarray = np.where(experience.there_DK, true_DK, -np.inf).max(1)
    return best - true_DK[:, 0]


if __name__ == "__main__":
    main()
