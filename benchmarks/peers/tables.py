"""River's tables and drifting generators: planaria beside river's and CapyMOA's learners, each row predicted first.

    python -m benchmarks.peers.tables                     all streams, seeds 0 to 4, five of river's learners (hours)
    python -m benchmarks.peers.tables --seeds 0 --peers arf logistic_regression,rate=0.03 last_class
    python -m benchmarks.peers.tables --no-planaria --peers --capymoa peers-capymoa/bin/python    CapyMOA's three alone

jobs/river_table.yaml, whole streams; planaria's settings and the rate of river's logistic regression were chosen on
seed 100. The ensembles have their defaults, but CapyMOA's 10 models, which is river's default. Writes
benchmarks/results/peers_tables.json, where every contestant has the seeds that it was run with: one that is run again
replaces itself, the others stay.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.elastic import ROOT
from benchmarks.measure import RESULTS
from rich.console import Console

from planaria.compare import Contest, capymoa_peers, compare
from planaria.stream.sets.river_tables import TABLES

PEERS = ("arf", "srp", "leveraging_bagging", "logistic_regression,rate=0.03", "last_class")
"""The rate is the best of 0.003, 0.01, 0.03 and 0.1 on seed 100, over all streams but shuttle."""
_COLUMNS = ("score", "score_ci95", "samples_per_cpu_second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", default=list(TABLES))
    parser.add_argument("--peers", nargs="*", default=list(PEERS), help="river's learners; none, if none is named")
    parser.add_argument("--capymoa", help="a Python that has CapyMOA, for its learners; without it, none of them")
    parser.add_argument("--no-planaria", action="store_true", help="the peers alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--processes", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS / "peers_tables.json")
    arguments = parser.parse_args()
    console = Console(width=140)
    peers = [f"river:{peer}" for peer in arguments.peers]
    peers += [f"capymoa:{peer}" for peer in capymoa_peers.LEARNERS] if arguments.capymoa else []
    kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    results = {one["stream"]: one["contestants"] for one in kept}
    for stream in arguments.streams:
        contest = Contest(
            job=ROOT / "jobs" / "river_table.yaml",
            settings=(f"stream.source={stream}",),
            policies=() if arguments.no_planaria else ("tables",),
            peers=tuple(peers),
            seeds=tuple(arguments.seeds),
            capymoa=arguments.capymoa,
        )
        with tempfile.TemporaryDirectory() as place:
            rows = rows_of(compare(contest, Path(place), processes=arguments.processes))
        results[stream] = merged(results.get(stream, []), rows)
        console.print(stream, {row["name"]: round(row["score"], 4) for row in rows})
        content = [{"stream": stream, "contestants": rows} for stream, rows in results.items()]
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """One a contestant: its means, and the score with each of its seeds."""
    return [
        {
            "name": one["name"],
            "seeds": found["seeds"],
            "scores": [run["score"] for run in found["runs"] if run["name"] == one["name"]],
            **{key: one[key] for key in _COLUMNS},
        }
        for one in found["contestants"]
    ]


def merged(before: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of before, in their order, each replaced by the new row of its name; then new ones."""
    new = {row["name"]: row for row in rows}
    old = {row["name"]: row for row in before}
    return list({**old, **new}.values())


if __name__ == "__main__":
    main()
