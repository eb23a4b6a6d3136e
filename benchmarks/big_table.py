"""Ten million rows of a table through one process: is memory bounded, and flat, however long the stream is?

    python -m benchmarks.big_table                   about two CPU minutes, 400 MB below the temporary folder

Writes a Parquet file of numbers and categories with missing values (equal seeds, equal file), trains a small model on
the first rows with every part of the loop at work, then reads the rest of the stream as the loop reads it, and notes
the resident memory all the way.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from benchmarks.measure import Figure, as_rows, resident_bytes, show, write

from planaria.job import Job
from planaria.stream import open_stream
from planaria.train.group import Alone
from planaria.train.lifelong import Lifelong

ROWS = 10_000_000
TRAINED_ROWS = 200_000
GROUP_ROWS = 250_000
BATCH = 512
NUMERIC, CATEGORICAL = 8, 2
SAMPLES = 200
"""Of the resident memory, spread evenly over the stream."""


def write_table(path: Path, rows: int) -> None:
    """A label that depends on three numbers and a category, one rule after another every tenth of the stream."""
    schema = pa.schema(
        [(f"x{n}", pa.float32()) for n in range(NUMERIC)]
        + [(f"c{n}", pa.string()) for n in range(CATEGORICAL)]
        + [("y", pa.int64())]
    )
    words = [pa.array([f"word {n}" for n in range(40)]), pa.array([f"place {n}" for n in range(12)])]
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, rows, GROUP_ROWS):
            count = min(GROUP_ROWS, rows - first)
            generator = np.random.default_rng((7, first))
            numbers = generator.standard_normal((NUMERIC, count), np.float32)
            codes = [generator.integers(0, len(word), count) for word in words]
            rule = np.random.default_rng((8, first * 10 // rows)).standard_normal(3).astype(np.float32)
            label = (rule @ numbers[:3] + 0.5 * (codes[1] % 2) > 0.2).astype(np.int64)
            numbers[generator.random(numbers.shape, np.float32) < 0.02] = np.nan
            columns = [*map(pa.array, numbers), *(w.take(pa.array(c)) for w, c in zip(words, codes, strict=True))]
            writer.write_table(pa.table([*columns, pa.array(label)], schema=schema))


def job_of(path: Path) -> Job:
    return Job.model_validate(
        {
            "name": "big-table",
            "stream": {
                "source": "parquet",
                "path": str(path),
                "features": {
                    "numeric": [f"x{n}" for n in range(NUMERIC)],
                    "categorical": [f"c{n}" for n in range(CATEGORICAL)],
                },
                "target": "y",
            },
            "model": {"width": 16, "layers": 1, "head_width": 4, "mlp_width": 32},
            "batch_rows": BATCH,
            "scale": {"workers": 0},
        }
    )


def slope(samples: list[dict[str, Any]]) -> float:
    """Bytes of resident memory per million rows, by least squares."""
    rows, resident = np.array([(sample["rows"] / 1e6, sample["resident"]) for sample in samples]).T
    return float(np.polyfit(rows, resident, 1)[0])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=ROWS)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "big.parquet"
        write_table(path, chosen.rows)
        pa.default_memory_pool().release_unused()
        idle, size = resident_bytes(), path.stat().st_size
        figures, samples = measure(job_of(path), chosen.rows, idle)
    figures.append(Figure("the file", size / 2**20, "MiB"))
    show(f"{chosen.rows:,} rows of a table in one process", figures)
    print(write("big_table", {"rows": chosen.rows, "figures": as_rows(figures), "idle": idle, "samples": samples}))


def measure(job: Job, rows: int, idle: int) -> tuple[list[Figure], list[dict[str, Any]]]:
    stream = open_stream(job.stream, seed=job.seed, base=Path.cwd(), hold_out_fraction=job.evaluation.hold_out_fraction)
    run = Lifelong(job, stream, Alone(), torch.device("cpu"))
    run.begin()
    samples: list[dict[str, Any]] = [{"rows": 0, "resident": resident_bytes(), "training": True}]
    began = time.process_time()
    while run.row < TRAINED_ROWS:
        run.take_step()
        if run.row // 10_000 > samples[-1]["rows"] // 10_000:
            samples.append({"rows": run.row, "resident": resident_bytes(), "training": True})
    train_seconds, trained, began = time.process_time() - began, run.row, time.process_time()
    at, every = run.row, rows // SAMPLES
    checksum = 0
    while len(batch := stream.read(at, BATCH)):
        checksum += int(batch.target.sum()) + len(batch.select(slice(None))["numeric"])
        at += len(batch)
        if at // every > samples[-1]["rows"] // every:
            samples.append({"rows": at, "resident": resident_bytes(), "training": False})
    read_seconds = time.process_time() - began
    assert at == rows, f"{at} of {rows} rows were read"
    assert checksum > rows - trained, "rows were decoded"
    above = [sample["resident"] - idle for sample in samples]
    # The first tenth fills Arrow's buffers and the allocator; what matters is what comes after it.
    reading = slope([sample for sample in samples if sample["rows"] >= rows // 10])
    training = slope([sample for sample in samples if sample["training"] and sample["rows"] >= TRAINED_ROWS // 2])
    return [
        Figure("resident memory above idle, at most", max(above) / 2**20, "MiB", at_most=1_536),
        Figure("its slope after the first tenth", reading / 2**20, "MiB a million rows", at_most=2),
        Figure("its slope in the second half of training", training / 2**20, "MiB a million rows"),
        Figure("idle process (libraries loaded)", idle / 2**20, "MiB"),
        Figure("rows trained on", trained, ""),
        Figure("training", trained / train_seconds, "rows a CPU second"),
        Figure("reading alone", (at - trained) / read_seconds, "rows a CPU second"),
    ], samples


if __name__ == "__main__":
    main()
