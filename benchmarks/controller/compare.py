"""The learned controller against its rivals, on kinds of stream that neither meta-training nor tuning has seen.

Every family's streams are lived through by every contestant: the same rows, the same reports of shifts, the same first
weights. All cost the same: what the learned controller's decisions cost it on a family beyond a rival's own, the rival
learns from as more rows at each step. Thresholds are tuned on the families that the value was meta-trained on, what the
learned controller is free to choose on the validation families, with as many trials: of those within one standard error
of the best, the one that costs least. The bandit begins with all of the value's experience (where the meta-training's
folder is there). Cost J = prequential cross-entropy + price x mean heads / 6. Where nothing has to change, in `virtual`
and in `stationary` streams, ours is held against its first size.

    python -m benchmarks.controller.compare            # 20 streams a family; writes benchmarks/results/controller.json
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.controller.lives import EVERYTHING, Contestant, run
from benchmarks.controller.rivals import LinUcb, Thresholds
from rich.console import Console
from scipy.stats import t as student

from planaria.control.value import SHIPPED
from planaria.meta.campaign import gathered, write_whole
from planaria.meta.families import SPLIT
from planaria.meta.script import BATCH_ROWS, REPLAY_ROWS, REPLAYED

RESULTS = Path(__file__).parents[1] / "results" / "controller.json"
STARTS = (2, 3, 4)
CERTAINTIES = (0.5, 1.0, 2.0, 4.0)
DOUBTS = (0.1, 0.5)
TRIALS = len(STARTS) * len(CERTAINTIES) * len(DOUBTS)
"""Settings that are tried, of ours and of the thresholds."""
OWN_COST_STREAMS = 10
"""On which it is measured what a rival's own decisions cost."""
SIZES = (1, 2, 3, 4, 5, 6)
QUIET = {"virtual": 20, "stationary": 6}
"""Families in which nothing has to change, and streams of each."""
OPTIMISM = 0.03
"""Of the bandit, in relative loss for a standard deviation. Not tuned: it begins warm."""
LIBRARY_OFF = "without the library"
_TUNING_SEED, _TEST_SEED = 700_000, 900_000
_CHUNK = 10
"""Streams that one task lives through, with all contestants."""
Rows = dict[str, list[dict[str, Any]]]


class Arena:
    """Runs contestants on two processes, and keeps what was measured in a folder so that it need not be again."""

    def __init__(self, folder: Path, processes: int, console: Console) -> None:
        self.folder, self.console = folder, console
        self.pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))

    def rows(
        self,
        stage: str,
        contestants: Sequence[Contestant],
        families: Sequence[str],
        seeds: range,
        extra: dict[str, float],
    ) -> Rows:
        """Figures of each contestant, one a stream."""
        lows = range(0, len(seeds), _CHUNK)
        chunks = [(family, list(seeds[low : low + _CHUNK])) for family in families for low in lows]
        paths = [self.folder / f"{stage}-{family}-{part[0]}.json" for family, part in chunks]
        jobs = {
            path: self.pool.submit(run, contestants, family, part, extra.get(family, 0))
            for path, (family, part) in zip(paths, chunks, strict=True)
            if not path.exists()
        }
        found: Rows = {contestant.name: [] for contestant in contestants}
        for path in paths:
            if path in jobs:
                write_whole(path, json.dumps(jobs[path].result()).encode())
                self.console.print(f"{path.stem}: done")
            for name, rows in json.loads(path.read_text()).items():
                found[name] += rows
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--value", type=Path, default=SHIPPED, help="the learned value")
    parser.add_argument("--second", type=Path, help="another, meta-trained with another seed")
    parser.add_argument("--pooled", type=Path, help="another, trained without an inner loop")
    parser.add_argument(
        "--experience",
        type=Path,
        default=Path("runs/meta_train-0"),
        help="the meta-training's folder, for the bandit to begin with; without it there is no bandit",
    )
    parser.add_argument("--streams", type=int, default=20, help="of each family")
    parser.add_argument("--families", nargs="+", default=list(SPLIT["test"]))
    parser.add_argument("--work", type=Path, default=Path("runs/controller"), help="what was measured already")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    console = Console(width=160)
    arena = Arena(arguments.work, arguments.processes, console)
    value = arguments.value.read_bytes()
    ours = tuned_ours(arena, Contestant("ours", "learned", value=value))
    thresholds = tuned_thresholds(arena)
    bandit = warm_bandit(arguments.experience, ours.start) if arguments.experience.is_dir() else None
    if bandit is None:
        console.print(f"{arguments.experience}: not there, so no LinUCB; `make meta-train` makes it")
    seeds = range(_TEST_SEED, _TEST_SEED + arguments.streams)
    free = [ours]
    for name, change in (("full look-ahead", EVERYTHING), (LIBRARY_OFF, {"library": 0})):
        free.append(replace(ours, name=name, settings={**(ours.settings or {}), **change}))
    mine = arena.rows("ours", free, arguments.families, seeds, {})
    for stage, name, path in (
        ("second", "other meta-training seed", arguments.second),
        ("pooled", "pooled training", arguments.pooled),
    ):
        if path:
            other = replace(ours, name=name, value=path.read_bytes())
            mine.update(arena.rows(stage, [other], arguments.families, seeds, {}))
    fixed = [Contestant(f"fixed at {heads}", "keep", start=heads) for heads in SIZES]
    deciding = [
        Contestant(name, kind, start=ours.start)
        for name, kind in (("always grow", "grow"), ("random", "random"), ("oracle of demand", "oracle"))
    ]
    deciding += [thresholds, *([bandit] if bandit else [])]
    own = arena.rows("own-cost", deciding, arguments.families, seeds[:OWN_COST_STREAMS], {})
    theirs: Rows = {}
    extra: dict[str, dict[str, float]] = {}
    for stage, rivals, costs in (("fixed", fixed, []), ("deciding", deciding, list(own.values()))):
        extra[stage] = {family: extra_rows(mine["ours"], costs, family) for family in arguments.families}
        theirs.update(arena.rows(f"rivals-{stage}", rivals, arguments.families, seeds, extra[stage]))
    results = {
        "comparisons": list(comparisons(mine, theirs, arguments.families)),
        "nothing_to_change": list(where_nothing_changes(arena, ours)),
        "extra_rows_of_rivals": extra,
        "chosen": {
            "ours": {"start": ours.start, **(ours.settings or {})},
            "thresholds": {"start": thresholds.start, **asdict_of(thresholds)},
        },
        "streams": arguments.streams,
        "seeds": [seeds.start, seeds.stop],
        "means": means({**mine, **theirs}, arguments.families),
    }
    arguments.out.write_text(json.dumps(results, indent=1))
    show(console, results)


def tuned_ours(arena: Arena, ours: Contestant) -> Contestant:
    """What is free to choose, on the validation families: the cheapest of those whose J is within one standard error of
    the best (paired by stream)."""
    tried = [
        replace(ours, name=f"{start}/{certainty}/{doubt}", start=start, settings=settings(certainty, doubt))
        for start in STARTS
        for certainty in CERTAINTIES
        for doubt in DOUBTS
    ]
    rows = arena.rows("tune-ours", tried, SPLIT["validation"], range(_TUNING_SEED, _TUNING_SEED + 8), {})
    best = rows[min(tried, key=lambda contestant: mean_cost(rows[contestant.name])).name]
    level = [contestant for contestant in tried if within_one_error(rows[contestant.name], best)]
    cheapest = min(level, key=lambda contestant: float(np.mean([row["extra"] for row in rows[contestant.name]])))
    return replace(cheapest, name="ours")


def within_one_error(rows: Sequence[dict[str, Any]], best: Sequence[dict[str, Any]]) -> bool:
    difference = np.array([row["J"] - other["J"] for row, other in zip(rows, best, strict=True)])
    return bool(difference.mean() <= difference.std(ddof=1) / math.sqrt(len(difference)))


def settings(certainty: float, doubt: float) -> dict[str, Any]:
    return {"certainty": certainty, "doubt": doubt, "memory_weight": 0.0}


def tuned_thresholds(arena: Arena) -> Contestant:
    random = np.random.default_rng(0)
    tried = [
        Contestant(f"threshold {n}", "threshold", start=int(random.choice(STARTS)), thresholds=Thresholds.drawn(random))
        for n in range(TRIALS)
    ]
    rows = arena.rows("tune-thresholds", tried, SPLIT["meta_train"], range(_TUNING_SEED, _TUNING_SEED + 5), {})
    return replace(min(tried, key=lambda one: mean_cost(rows[one.name])), name="tuned thresholds")


def warm_bandit(folder: Path, start: int) -> Contestant:
    warm, mean_X, spread_X = LinUcb.warmed(gathered(folder, "round-*"))
    return Contestant("LinUCB", "bandit", start=start, warm=(warm, mean_X, spread_X, OPTIMISM))


def mean_cost(rows: Sequence[dict[str, Any]]) -> float:
    return float(np.mean([row["J"] for row in rows]))


def extra_rows(ours: Sequence[dict[str, Any]], rivals: Sequence[Sequence[dict[str, Any]]], family: str) -> float:
    """Rows more that rivals learn from at each step, on average, so that they cost what ours does: the one whose own
    decisions cost least does then, the others cost a little more."""
    mine, *own = (float(np.mean([row["extra"] for row in of(rows, family)])) for rows in (ours, *rivals))
    usual = BATCH_ROWS + (REPLAY_ROWS if family in REPLAYED else 0)
    return round(max(0.0, mine - min(own, default=0.0)) * usual, 3)


def comparisons(mine: Rows, theirs: Rows, families: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Ours minus each of the others: negative is better for ours."""
    for family in families:
        ours = of(mine["ours"], family)
        for name, rows in {**mine, **theirs}.items():
            if name == "ours":
                continue
            other = of(rows, family)
            yield compared(family, name, ours, other, lambda row: row["J"])
        fixed = {heads: of(theirs[f"fixed at {heads}"], family) for heads in SIZES}
        best = min(SIZES, key=lambda heads: mean_cost(fixed[heads]))
        yield {**compared(family, "best fixed size", ours, fixed[best], lambda row: row["J"]), "size": best}
        bare = of(mine[LIBRARY_OFF], family)
        yield compared(family, f"best fixed size, ours {LIBRARY_OFF}", bare, fixed[best], lambda row: row["J"])
        hindsight = [min((fixed[h][n] for h in SIZES), key=lambda row: row["J"]) for n in range(len(ours))]
        yield compared(family, "best fixed size of each stream", ours, hindsight, lambda row: row["J"])
        equal = [between(row["heads"], [fixed[h][n]["loss"] for h in SIZES]) for n, row in enumerate(ours)]
        level = [{**row, "loss": loss} for row, loss in zip(ours, equal, strict=True)]
        yield compared(family, "fixed, at equal mean heads (loss alone)", ours, level, lambda row: row["loss"])


def where_nothing_changes(arena: Arena, ours: Contestant) -> Iterator[dict[str, Any]]:
    """Ours against its first size, on the same rows and without more of them, where no head is needed or to spare."""
    first = Contestant("first size", "keep", start=ours.start)
    for family, streams in QUIET.items():
        rows = arena.rows("quiet", [ours, first], [family], range(_TEST_SEED, _TEST_SEED + streams), {})
        heads = [(row["heads_least"] - ours.start, row["heads_most"] - ours.start) for row in rows["ours"]]
        moved = [max(abs(least), abs(most)) for least, most in heads]
        yield {
            **compared(family, first.name, rows["ours"], rows[first.name], lambda row: row["J"]),
            "d_loss": compared(family, first.name, rows["ours"], rows[first.name], lambda row: row["loss"])["ci95"],
            "heads_moved_most": max(moved),
            "streams_moved_by_2_or_more": sum(by >= 2 for by in moved),
        }


def of(rows: Sequence[dict[str, Any]], family: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["family"] == family]


def between(heads: float, loss_of_size: Sequence[float]) -> float:
    """Loss of a fixed size that may be a fraction."""
    return float(np.interp(heads, SIZES, loss_of_size))


def compared(
    family: str,
    against: str,
    ours: Sequence[dict[str, Any]],
    other: Sequence[dict[str, Any]],
    measure: Callable[[dict[str, Any]], float],
) -> dict[str, Any]:
    difference = np.array([measure(a) - measure(b) for a, b in zip(ours, other, strict=True)])
    half = float(student.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / math.sqrt(len(difference)))
    mean = float(difference.mean())
    return {
        "family": family,
        "against": against,
        "streams": len(difference),
        "d_j_mean": round(mean, 5),
        "ci95": [round(mean - half, 5), round(mean + half, 5)],
        "heads_mean": round(float(np.mean([row["heads"] for row in ours])), 3),
        "heads_mean_other": round(float(np.mean([row["heads"] for row in other])), 3),
        "extra_steps": round(float(np.mean([row["extra"] for row in ours])), 4),
        "extra_steps_other": round(float(np.mean([row["extra"] for row in other])), 4),
    }


def means(found: Rows, families: Sequence[str]) -> list[dict[str, Any]]:
    columns = ("J", "loss", "accuracy", "heads", "extra", "decisions", "looked", "grows", "shrinks", "restores")
    return [
        {
            "family": family,
            "name": name,
            **{c: round(float(np.mean([r[c] for r in of(rows, family)])), 4) for c in columns},
        }
        for family in families
        for name, rows in found.items()
    ]


def asdict_of(contestant: Contestant) -> dict[str, Any]:
    return asdict(contestant.thresholds) if contestant.thresholds else {}


def show(console: Console, results: dict[str, Any]) -> None:
    for row in results["means"]:
        console.print(" ".join(f"{name} {value}" for name, value in row.items()))
    for row in [*results["comparisons"], *results["nothing_to_change"]]:
        low, high = row["ci95"]
        console.print(
            f"{row['family']:10s} ours - {row['against']:42s} {row['d_j_mean']:+.4f} [{low:+.4f}, {high:+.4f}]"
        )


if __name__ == "__main__":
    main()
