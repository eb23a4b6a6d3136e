"""Detection delay, missed and false alarms, and how often the kind is right: 6 streams of Fashion-MNIST, 5 seeds.

    python -m benchmarks.detection                       an MLP with replay learns online: some minutes
    python -m benchmarks.detection --loop planaria       whole runs with planaria's own model and controller: an hour

A report counts for a change if it comes within 2,000 rows of it, or of the end of a gradual one; a second report of
the same change is `extra`; any other is false. The delay is that of the report, kind included, not of the alarm.
Prints a table and writes it, with every report, as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from planaria.detect import ShiftMonitor, Sketch
from planaria.job import Change, Job, Scenario, StreamSettings
from planaria.policy import Detector
from planaria.signals import Rows, Shift, StepReport
from planaria.stream import open_stream

REPORTED_WITHIN = 2_000
BATCH = 128
MEMORY = 2_000


# -- the streams


def abrupt_inputs(seed: int) -> list[Change]:
    return [
        Change(name="upright", samples=5_000),
        Change(name="turned", samples=5_000, transform="rotate", degrees=30 + 15 * (seed % 5)),
        Change(name="shuffled", samples=5_000, transform="permute_pixels", variant=seed),
        Change(name="noisy", samples=5_000, transform="corrupt", severity=0.3),
        Change(name="moved", samples=5_000, transform="permute_patches", variant=seed),
    ]


def abrupt_labels(seed: int) -> list[Change]:
    relabelled = [
        Change(name=f"relabelled {n}", samples=5_000, transform="permute_labels", variant=10 * seed + n)
        for n in range(1, 4)
    ]
    return [Change(name="upright", samples=5_000), *relabelled]


def gradual_inputs(seed: int) -> list[Change]:
    return [
        Change(name="upright", samples=7_000),
        Change(name="moved", samples=9_000, transition_samples=2_000, transform="permute_patches", variant=seed),
        Change(name="turned", samples=9_000, transition_samples=3_000, transform="rotate", degrees=90),
        Change(name="shuffled", samples=9_000, transition_samples=4_000, transform="permute_pixels", variant=seed),
    ]


def recurring(seed: int) -> list[Change]:
    upright = Change(name="upright", samples=4_000)
    turned = Change(name="turned", samples=4_000, transform="rotate", degrees=60)
    relabelled = Change(name="relabelled", samples=4_000, transform="permute_labels", variant=seed)
    return [upright, turned, upright, relabelled, turned, relabelled, upright]


def classes(seed: int) -> list[Change]:
    """New classes twice, then all of them, then other frequencies, then all of them alike again."""
    order = np.random.default_rng(seed).permutation(10).tolist()
    rare = {str(label): 0.15 if label in order[:5] else 1.0 for label in range(10)}
    return [
        Change(name="first", samples=4_000, classes=tuple(order[:4])),
        Change(name="second", samples=4_000, classes=tuple(order[4:7])),
        Change(name="third", samples=4_000, classes=tuple(order[7:])),
        Change(name="all", samples=4_000),
        Change(name="skewed", samples=4_000, class_weights=rare),
        Change(name="all", samples=4_000),
    ]


def stationary(seed: int) -> list[Change]:
    return [Change(name="upright", samples=100_000)]


STREAMS: dict[str, Callable[[int], list[Change]]] = {
    "abrupt inputs": abrupt_inputs,
    "abrupt labels": abrupt_labels,
    "gradual inputs": gradual_inputs,
    "recurring": recurring,
    "classes": classes,
    "stationary": stationary,
}


# -- the learners


class OnlineLearner:
    """A small MLP that learns each batch once, together with as many remembered rows."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self._chance = np.random.default_rng(seed)
        widths = ((784, 96), (96, 96))
        hidden = [layer for width in widths for layer in (torch.nn.Linear(*width), torch.nn.ReLU())]
        self._net = torch.nn.Sequential(*hidden, torch.nn.Linear(96, 10))
        self._optimizer = torch.optim.AdamW(self._net.parameters(), lr=1e-3, weight_decay=0.01)
        self._memory_x = torch.zeros(MEMORY, 784)
        self._memory_y = torch.zeros(MEMORY, dtype=torch.int64)
        self._seen = 0

    def test_then_train(self, image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of each row and logits, as they were before learning."""
        output = self._net(image)
        loss = F.cross_entropy(output, target, reduction="none")
        objective = loss.mean()
        if self._seen:
            at = torch.from_numpy(self._chance.integers(0, min(self._seen, MEMORY), len(target)))
            objective = objective + F.cross_entropy(self._net(self._memory_x[at]), self._memory_y[at])
        self._optimizer.zero_grad()
        objective.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._remember(image, target)
        return loss.detach(), output.detach()

    def _remember(self, image: torch.Tensor, target: torch.Tensor) -> None:
        for row in range(len(target)):
            at = self._seen if self._seen < MEMORY else int(self._chance.integers(0, self._seen + 1))
            if at < MEMORY:
                self._memory_x[at], self._memory_y[at] = image[row], target[row]
            self._seen += 1


@dataclass
class Watched:
    """What came of one stream."""

    shifts: list[Shift]
    rows: int
    detect_seconds: float = float("nan")


def settings_of(contexts: list[Change]) -> StreamSettings:
    return StreamSettings(source="fashion_mnist", scenario=Scenario(contexts=tuple(contexts)))


def watch_mlp(contexts: list[Change], seed: int) -> Watched:
    stream = open_stream(settings_of(contexts), seed=seed, base=Path.cwd(), hold_out_fraction=0.0)
    learner, sketch = OnlineLearner(seed), Sketch(stream.fields, seed)
    monitor = ShiftMonitor(Detector(), "classification")
    watched = Watched([], 0, 0.0)
    for step, rows in enumerate(batches(stream.read)):
        features = rows.select(slice(0, len(rows)))
        image = torch.from_numpy(features["image"].reshape(len(rows), -1)).float() / 255
        target = torch.from_numpy(rows.target.copy())
        loss, output = learner.test_then_train(image, target)
        started = time.perf_counter()
        report = StepReport(
            step=step,
            start=rows.start,
            loss_B=loss.numpy(),
            error_B=(output.argmax(1) != target).float().numpy(),
            target_B=rows.target,
            output_BC=output.numpy(),
            sketch_BF=sketch(features),
        )
        shift = monitor.update(report)
        watched.detect_seconds += time.perf_counter() - started
        watched.rows += len(rows)
        if shift is not None:
            watched.shifts.append(shift)
    return watched


def batches(read: Callable[[int, int], Rows]) -> Iterator[Rows]:
    start = 0
    while len(rows := read(start, BATCH)):
        yield rows
        start += len(rows)


def watch_planaria(contexts: list[Change], seed: int) -> Watched:
    """A whole run with defaults, in this process."""
    import pyarrow.parquet as pq

    import planaria

    job = Job(stream=settings_of(contexts), seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        planaria.run(job, out=Path(folder) / "run", workers=0)
        table = pq.read_table(Path(folder) / "run" / "shifts.parquet").to_pylist()
    fields = Shift.__dataclass_fields__
    shifts = [Shift(**{name: value for name, value in row.items() if name in fields}) for row in table]
    return Watched(shifts, sum(change.samples for change in contexts))


LOOPS: dict[str, Callable[[list[Change], int], Watched]] = {"mlp": watch_mlp, "planaria": watch_planaria}


# -- the score


@dataclass
class Score:
    """Of one stream, over the seeds."""

    changes: int = 0
    missed: int = 0
    extra: int = 0
    false: int = 0
    rows: int = 0
    delays: list[int] = field(default_factory=list)
    kinds_right: int = 0
    returns: int = 0
    returns_right: int = 0
    """Of the changes to an earlier context: reported as recurring, with the right concept."""
    detect_seconds: float = 0.0

    def add(self, contexts: list[Change], watched: Watched) -> None:
        unclaimed = list(watched.shifts)
        self.rows += watched.rows
        self.detect_seconds += watched.detect_seconds
        names = [change.name for change in contexts]
        concepts = list(dict.fromkeys(names))
        start = 0
        for number, change in enumerate(contexts[1:], 1):
            start += contexts[number - 1].samples
            until = start + change.transition_samples + REPORTED_WITHIN
            claimed = [shift for shift in unclaimed if start <= shift.sample <= until]
            unclaimed = [shift for shift in unclaimed if shift not in claimed]
            self.changes += 1
            if not claimed:
                self.missed += 1
                continue
            returns = change.name in names[:number]
            self._judge(claimed[0], true_kind(change, returns), returns, concepts.index(change.name))
            self.delays.append(claimed[0].sample - start)
            self.extra += len(claimed) - 1
        self.false += len(unclaimed)

    def _judge(self, shift: Shift, kind: str, returns: bool, concept: int) -> None:
        self.kinds_right += shift.kind == kind
        self.returns += returns
        self.returns_right += returns and shift.kind == "recurring" and shift.concept == concept

    def row(self) -> list[str]:
        found = self.changes - self.missed
        return [
            str(self.changes),
            f"{statistics.median(self.delays):.0f}" if self.delays else "-",
            f"{max(self.delays)}" if self.delays else "-",
            str(self.missed),
            str(self.extra),
            str(self.false),
            f"{1e4 * self.false / self.rows:.2f}",
            f"{self.kinds_right}/{found}" if found else "-",
            f"{self.returns_right}/{self.returns}" if self.returns else "-",
        ]


def true_kind(change: Change, returns: bool) -> str:
    if change.transition_samples:
        return "gradual"
    return "recurring" if returns else "abrupt"


HEADINGS = ["changes", "delay", "longest", "missed", "extra", "false", "per 10k", "kind right", "return right"]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--loop", choices=sorted(LOOPS), default="mlp")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments.add_argument("--streams", nargs="+", choices=sorted(STREAMS), default=list(STREAMS))
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "detection.json")
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    print(f"{'stream':16}" + "".join(f"{heading:>13}" for heading in HEADINGS))
    results: dict[str, Any] = {"loop": chosen.loop, "seeds": chosen.seeds, "streams": {}}
    for name in chosen.streams:
        score, reports = Score(), {}
        for seed in chosen.seeds:
            contexts = STREAMS[name](seed)
            watched = LOOPS[chosen.loop](contexts, seed)
            score.add(contexts, watched)
            reports[str(seed)] = [asdict(shift) for shift in watched.shifts]
        print(f"{name:16}" + "".join(f"{cell:>13}" for cell in score.row()), flush=True)
        measured = {key: value for key, value in asdict(score).items() if key != "detect_seconds"}
        cost = 1e6 * score.detect_seconds / score.rows
        measured["detect_microseconds_per_row"] = None if np.isnan(cost) else round(cost, 2)
        results["streams"][name] = measured | {"reports": reports}
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten: {chosen.out}")


if __name__ == "__main__":
    main()
