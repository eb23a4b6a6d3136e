"""river's tables and drifting generators: planaria beside river's learners, each row predicted before it is learned.

    python -m benchmarks.peers.tables                        all streams, seeds 0 to 4, five of river's learners (hours)
    python -m benchmarks.peers.tables --seeds 0 --peers arf logistic_regression last_class

jobs/river_table.yaml, whole streams; a setting of planaria's was chosen on seed 100, river's are its defaults. Writes
benchmarks/results/peers_tables.json; of the same seeds, what it holds of others than those asked for stays.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.elastic import ROOT
from benchmarks.measure import RESULTS
from rich.console import Console

from planaria.compare import Contest, compare
from planaria.stream.sets.river_tables import TABLES

PEERS = ("arf", "srp", "leveraging_bagging", "logistic_regression", "last_class")
_COLUMNS = ("name", "score", "score_ci95", "samples_per_cpu_second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", default=list(TABLES))
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--processes", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS / "peers_tables.json")
    arguments = parser.parse_args()
    console = Console(width=140)
    kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    results = {one["stream"]: one for one in kept if one["seeds"] == arguments.seeds}
    for stream in arguments.streams:
        contest = Contest(
            job=ROOT / "jobs" / "river_table.yaml",
            settings=(f"stream.source={stream}",),
            policies=("tables",),
            peers=tuple(f"river:{peer}" for peer in arguments.peers),
            seeds=tuple(arguments.seeds),
        )
        with tempfile.TemporaryDirectory() as place:
            found = compare(contest, Path(place), processes=arguments.processes)
        rows = [{key: one[key] for key in _COLUMNS} for one in found["contestants"]]
        before = results.get(stream, {"contestants": []})["contestants"]
        others = [one for one in before if one["name"] not in {row["name"] for row in rows}]
        results[stream] = {"stream": stream, "seeds": arguments.seeds, "contestants": rows + others}
        console.print(stream, {row["name"]: round(row["score"], 4) for row in rows})
        arguments.out.write_text(json.dumps(list(results.values()), indent=1) + "\n")


if __name__ == "__main__":
    main()
