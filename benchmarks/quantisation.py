"""What weights and activations of few bits cost in accuracy, after training and learned, and what their files save.

    python -m benchmarks.quantisation                            both streams, seeds 0 to 4 (some 15 minutes of a core)
    python -m benchmarks.quantisation --streams shuttle --seeds 0

The model and the streams of benchmarks.techniques, at the learning rates that its plain model has in
benchmarks/results/techniques.json. Every run learns in float32 up to LEARNED_FROM of the stream; from a checkpoint
there it goes on once in float32 and once for each of LEARNED, over the same rows. The float32 one is then rounded as it
is (AFTER). All are scored on the same held-out rows. Files and their latencies are those of the last seed's models.
Writes benchmarks/results/quantisation.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.elastic import ROOT, interval
from benchmarks.measure import RESULTS, alternate, median_ratio
from benchmarks.techniques import STREAMS, job_of

from planaria.blueprint import Quantisation
from planaria.deploy.formats import format_of
from planaria.deploy.plain import input_names
from planaria.job import Job
from planaria.model import ElasticTransformer
from planaria.stream import open_stream
from planaria.train.group import Alone
from planaria.train.lifelong import Lifelong

LEARNED_FROM = 0.8
"""Of the stream."""
LEARNED = tuple(Quantisation(bits, "token") for bits in (8, 4))
AFTER = (*(Quantisation(bits, "token") for bits in (8, 6, 4)), Quantisation(8, "tensor"))
RATES = {"fashion_mnist": 2e-3, "shuttle": 5e-4}
"""Of the plain model, chosen on seed 100."""
BATCHES, ROUNDS = (1, 64, 256), 15


def _begun(stream: str, seed: int, quantisation: Quantisation | None) -> Lifelong:
    job = job_of(stream, "plain", RATES[stream], seed)
    if quantisation is not None:
        first = round(LEARNED_FROM * STREAMS[stream]["samples"] / job.batch_rows) * job.batch_rows
        phase = {"bits": quantisation.bits, "activations": quantisation.activations, "from_samples": first}
        values = job.model_dump()
        job = Job.model_validate({**values, "policy": {**values["policy"], "quantise": phase}})
    rows = open_stream(job.stream, seed=seed, base=ROOT, hold_out_fraction=job.evaluation.hold_out_fraction)
    return Lifelong(job, rows, Alone(), torch.device("cpu"))


def _finished(run: Lifelong) -> tuple[float, float]:
    """Final accuracy, and CPU seconds until then."""
    began = time.process_time()
    while run.take_step() is not None:
        pass
    spent = time.process_time() - began
    return 1 - run.finish()[0][0], spent


def lives(stream: str, seed: int) -> tuple[dict[str, Any], dict[str, ElasticTransformer], Lifelong]:
    """What one seed shows, its models by name, and its float32 run."""
    plain = _begun(stream, seed, None)
    plain.begin()
    part = round(LEARNED_FROM * STREAMS[stream]["samples"] / plain.job.batch_rows)
    while plain.step < part:
        plain.take_step()
    state = plain.state()
    accuracy, spent = {}, {}
    accuracy["float32"], spent["float32"] = _finished(plain)
    models = {"float32": plain.model}
    for quantisation in LEARNED:
        run = _begun(stream, seed, quantisation)
        run.load_state(state)
        name = f"{_name(quantisation)}, learned"
        accuracy[name], spent[name] = _finished(run)
        assert run.blueprint.quantisation == quantisation
        models[name] = run.model
    for quantisation in AFTER:
        plain.model.quantise(quantisation)
        accuracy[f"{_name(quantisation)}, after"] = 1 - plain.evaluator.measure(plain.group.spread, plain._score)[0][0]
    plain.model.quantise(None)
    print(stream, seed, {name: round(value, 4) for name, value in accuracy.items()}, flush=True)
    return {"accuracy": accuracy, "cpu_seconds": spent}, models, plain


def files(models: dict[str, ElasticTransformer], run: Lifelong) -> dict[str, Any]:
    """Bytes, latency against float32's file in the same rounds, and distance from the live model, by file."""
    held = run.evaluator.held_out(0)
    assert held is not None
    given = [np.ascontiguousarray(held[0][name]) for name in input_names(run.blueprint)]
    kinds = {"float32": ("float32", "onnx", None), "8 bits, tensor": ("float32", "int8", AFTER[-1])}
    kinds |= {_name(q): (f"{_name(q)}, learned", "int8", q) for q in LEARNED}
    answers, found = {}, {}
    with tempfile.TemporaryDirectory() as place:
        for name, (model_name, to, quantisation) in kinds.items():
            model, path = models[model_name], Path(place) / f"{len(answers)}{format_of(to).suffix}"
            before = model.blueprint.quantisation
            model.quantise(quantisation)
            format_of(to).write(model, {}, [x[:64] for x in given], path)
            answers[name] = format_of(to).read(path)
            rows = [x[:64] for x in given]
            with torch.no_grad():
                live = model(dict(zip(input_names(run.blueprint), map(torch.from_numpy, rows), strict=True)))
            difference = float(np.abs(answers[name](rows) - live.numpy()).max())
            model.quantise(before)
            found[name] = {"bytes": path.stat().st_size, "difference": difference}
        for batch in BATCHES:
            rows = [np.resize(x, (batch, *x.shape[1:])) for x in given]
            seconds = alternate({name: partial(_several, one, rows, batch) for name, one in answers.items()}, ROUNDS)
            for name in found:
                found[name][f"latency_{batch}"] = round(median_ratio(seconds[name], seconds["float32"]), 3)
    return found


def _several(answer: Any, rows: list[Any], batch: int) -> None:
    for _ in range(max(1, 64 // batch)):
        answer(rows)


def _name(quantisation: Quantisation) -> str:
    scale = "" if quantisation.activations == "token" else ", tensor"
    return f"{quantisation.bits} bits{scale}"


def summed_up(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, and differences in points from float32, paired, with 95% intervals."""
    rows = {}
    for name in found[0]["accuracy"]:
        row: dict[str, Any] = {"accuracy": round(statistics.fmean(one["accuracy"][name] for one in found), 4)}
        pairs = [(one["accuracy"][name], one["accuracy"]["float32"]) for one in found]
        if name != "float32" and len(found) > 1:
            mean, half = interval([100 * (ours - theirs) for ours, theirs in pairs])
            row["points"] = [round(value, 3) for value in (mean, mean - half, mean + half)]
        if name in found[0]["cpu_seconds"]:
            ratios = [one["cpu_seconds"][name] / one["cpu_seconds"]["float32"] for one in found]
            row["cpu_of_float32"] = round(statistics.median(ratios), 3)
        rows[name] = row
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--out", type=Path, default=RESULTS / "quantisation.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for stream in arguments.streams:
        found = []
        for seed in arguments.seeds:
            life, models, run = lives(stream, seed)
            found.append(life)
            results[stream] = {"seeds": arguments.seeds[: len(found)], "models": summed_up(found)}
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        results[stream]["files"] = files(models, run)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps(results[stream], indent=1), flush=True)


if __name__ == "__main__":
    main()
