"""Meta-training as a job: gather experience on Ray, learn a value from it, gather more with that, and measure it.

Everything that was gathered is a file, written once and whole: a campaign that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from planaria.control.features import NAMES
from planaria.control.learned import LearnedJudge
from planaria.control.value import ValueEnsemble, ValueNetwork, load_value
from planaria.errors import InputError
from planaria.meta.episodes import Start, live, policy_for
from planaria.meta.experience import Experience, experience_of, joined
from planaria.meta.explore import Exploring
from planaria.meta.families import make_stream
from planaria.meta.job import MetaJob
from planaria.meta.script import write_script
from planaria.meta.training import regret, train
from planaria.plain_yaml import dump_yaml
from planaria.policy import Policy
from planaria.record.tracking import connect, embedded_uri, experiment_id
from planaria.train.allocator import reuse_freed_memory
from planaria.uri import refuse_uri

logger = logging.getLogger(__name__)

VALUE, SUMMARY, JOB = "value.safetensors", "summary.json", "meta_job.yaml"
_AT_ONCE = 22
"""Streams that one task lives through side by side."""
_VALIDATION_SEED = 500_000
_MOST_BYTES = 4 << 30
"""Of an experience file once it is unpacked."""
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Errand:
    """Streams of one family to live through, and how."""

    family: str
    seeds: tuple[int, ...]
    value: bytes | None
    """What to act by; None acts at random."""
    followed: float
    randomness: float
    name: str
    """Of the file that holds what was gathered."""


def meta_train(job: MetaJob, out: Path | None = None, *, tell: Tell = lambda line: None) -> dict[str, Any]:
    """Run the job, or go on with it where `out` holds one that was stopped; returns the summary. Raises InputError."""
    folder = _folder(job, out)
    done = _summary_of(folder)
    if done is not None:
        return done
    began = time.time()
    with _ray():
        value: ValueEnsemble | None = None
        parts: list[Experience] = []
        for number in range(job.rounds):
            parts += _gather(_errands(job, number, value), folder, tell)
            value = _learned(job, number, joined(parts), folder, tell)
        known = joined(_gather(_validation_errands(job), folder, tell))
    assert value is not None
    summary = {**_figures(value, known), "decisions": sum(map(len, parts)), "seconds": round(time.time() - began)}
    value = ValueEnsemble(
        value.members, value.mean_X, value.spread_X, {**value.about, **_provenance(job), "validation": summary}
    )
    write_whole(folder / VALUE, value.to_bytes())
    _record(job, folder, summary)
    write_whole(folder / SUMMARY, _as_json(summary).encode())  # the last thing: it says that all is done
    return _placed(summary, folder)


def gather(errand: Errand) -> bytes:
    """Live through the streams; what was followed, as a .npz file."""
    torch.set_num_threads(1)
    reuse_freed_memory()
    value = None if errand.value is None else ValueEnsemble.from_bytes(errand.value)
    streams = [make_stream(errand.family, seed) for seed in errand.seeds]
    starts = []
    for stream in streams:
        policy = _free(policy_for(stream))
        inner = None if value is None else LearnedJudge(policy.controller, value)
        judge = Exploring(inner, stream.seed, errand.followed, errand.randomness)
        starts.append(Start(stream, write_script(stream), judge, policy))
    return to_bytes(experience_of(live(starts, branch=True)))


def to_bytes(experience: Experience) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **{field.name: getattr(experience, field.name) for field in fields(Experience)})
    return content.getvalue()


def from_bytes(content: bytes) -> Experience:
    """Raises ValueError where it is not what `to_bytes` made, with the features of today."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            unpacked = sum(one.file_size for one in packed.infolist())
        if unpacked > _MOST_BYTES:
            raise ValueError(f"it unpacks to {unpacked:,} bytes")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            experience = Experience(**{field.name: arrays[field.name] for field in fields(Experience)})
    except (OSError, EOFError, LookupError, TypeError, AttributeError, MemoryError, *_ZIP_ERRORS) as error:
        raise ValueError(f"no experience: {error}") from None
    if experience.before_DKX.shape[-1] != len(NAMES):
        raise ValueError(f"experience with {experience.before_DKX.shape[-1]} features, not {len(NAMES)}")
    return experience


def gathered(folder: Path, part: str) -> Experience:
    """All experience of a campaign's folder: of "validation", or of its rounds ("round-*")."""
    return joined([from_bytes(path.read_bytes()) for path in sorted(folder.glob(f"{part}/*.npz"))])


def write_whole(path: Path, content: bytes) -> None:
    """The file is there with all of its content, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _folder(job: MetaJob, out: Path | None) -> Path:
    """The job's folder, new or that of the same job before it was stopped."""
    refuse_uri(out or job.folder, "a meta-training's folder")
    folder = out or Path(job.folder) / f"{job.name}-{job.seed}"
    text = dump_yaml(job.model_dump(mode="json"))
    kept = folder / JOB
    try:
        if not kept.exists():
            write_whole(kept, text.encode())
        elif kept.read_text() != text:
            raise InputError(f"{folder}: holds another meta-training ({JOB} differs); choose another folder with --out")
    except OSError as error:
        raise InputError(f"{folder}: cannot write here ({error.strerror}); choose another folder with --out") from None
    return folder


def _summary_of(folder: Path) -> dict[str, Any] | None:
    """What a meta-training that is done came to."""
    try:
        return _placed(json.loads((folder / SUMMARY).read_text()), folder) if (folder / VALUE).exists() else None
    except (OSError, ValueError, TypeError):
        return None


def _placed(summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {**summary, "folder": str(folder), "value": str(folder / VALUE)}


def _as_json(summary: dict[str, Any]) -> str:
    return json.dumps(summary, indent=1)


def _errands(job: MetaJob, number: int, value: ValueEnsemble | None) -> list[Errand]:
    first = (job.seed * 100 + number) * 1_000
    acting = None if value is None else value.to_bytes()
    randomness = 1.0 if value is None else job.randomness
    return [
        Errand(family, seeds, acting, job.followed, randomness, f"round-{number}/{family}-{seeds[0]}.npz")
        for family in job.families
        for seeds in _chunks(first, job.streams)
    ]


def _validation_errands(job: MetaJob) -> list[Errand]:
    return [
        Errand(family, seeds, None, job.followed, 1.0, f"validation/{family}-{seeds[0]}.npz")
        for family in job.validation
        for seeds in _chunks(_VALIDATION_SEED, max(2, job.streams // 3))
    ]


def _chunks(first: int, count: int) -> list[tuple[int, ...]]:
    seeds = range(first, first + count)
    return [tuple(seeds[low : low + _AT_ONCE]) for low in range(0, count, _AT_ONCE)]


def _gather(errands: Sequence[Errand], folder: Path, tell: Tell) -> list[Experience]:
    """Each errand's experience, in order; those that are there already, and whole, are read."""
    import ray

    kept = {errand.name: _kept(folder / errand.name) for errand in errands}
    missing = [errand for errand in errands if kept[errand.name] is None]
    task = ray.remote(num_cpus=1)(gather)
    waiting = {task.remote(errand): errand for errand in missing}
    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=1)
        errand = waiting.pop(done[0])
        content = _result(done[0])
        write_whole(folder / errand.name, content)
        kept[errand.name] = gathered = from_bytes(content)
        tell(f"{errand.name}: {len(gathered)} decisions followed")
    return [experience for experience in kept.values() if experience is not None]


def _kept(path: Path) -> Experience | None:
    """What was gathered before; None where it has to be gathered (again)."""
    try:
        return from_bytes(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s: cannot be read (%s); gathered again", path, error)
        return None


def _learned(job: MetaJob, number: int, experience: Experience, folder: Path, tell: Tell) -> ValueEnsemble:
    path = folder / f"round-{number}" / VALUE
    with contextlib.suppress(InputError):
        return load_value(path)
    began = time.time()
    write_whole(path, train(experience, job.outer, job.seed, _spread).to_bytes())
    tell(f"round {number}: learned from {len(experience)} decisions in {time.time() - began:.0f} s")
    return load_value(path)


def _result(reference: Any) -> bytes:
    """What a gathering task made. Ray wraps what it raises in a traceback of the worker's: its own line is enough."""
    import ray

    try:
        content: bytes = ray.get(reference)
    except InputError as error:
        raise InputError(str(getattr(error, "cause", error))) from None
    return content


def _spread(make: Callable[[int], ValueNetwork], numbers: Sequence[int]) -> list[ValueNetwork]:
    """A map, each call a Ray task."""
    import ray

    task = ray.remote(num_cpus=1)(_alone)
    made: list[ValueNetwork] = ray.get([task.remote(make, number) for number in numbers])
    return made


def _alone(make: Callable[[int], ValueNetwork], number: int) -> ValueNetwork:
    torch.set_num_threads(1)
    return make(number)


def _figures(value: ValueEnsemble, known: Experience) -> dict[str, float]:
    """Mean regret per decision on the validation families, in nats: the best candidate's true value minus that of the
    choice."""
    scale_D1 = known.scale_D[:, None]
    true_DK = scale_D1 * (known.return_DK - known.return_DK[:, :1]) - known.price_DK
    true_DK = np.where(known.there_DK, true_DK, -np.inf)
    best_D = true_DK.max(1)
    chance_D = np.array([row[there].mean() for row, there in zip(true_DK, known.there_DK, strict=True)])
    return {
        "regret_keep": float((best_D - true_DK[:, 0]).mean()),
        "regret_random": float((best_D - chance_D).mean()),
        "regret_value": float(regret(value, known, looked=False, support=0).mean()),
        "regret_value_16_outcomes": float(regret(value, known, looked=False, support=16).mean()),
        "regret_looked": float(regret(value, known, looked=True, support=0).mean()),
        "regret_looked_16_outcomes": float(regret(value, known, looked=True, support=16).mean()),
    }


def _provenance(job: MetaJob) -> dict[str, object]:
    return {"families": list(job.families), "seed": job.seed, "rounds": job.rounds, "streams": job.streams}


def _free(policy: Policy) -> Policy:
    """A policy whose decisions cost nothing: what is gathered must not depend on a budget."""
    budget = policy.budget.model_copy(update={"decision_fraction": 1.0})
    return policy.model_copy(update={"budget": budget})


@contextlib.contextmanager
def _ray() -> Iterator[None]:
    """The cluster that this process has joined, or one of this machine for this job."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    joined_before = ray.is_initialized()
    if not joined_before:
        address = os.environ.get("RAY_ADDRESS") or "local"
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        if not joined_before:
            ray.shutdown()


def _record(job: MetaJob, folder: Path, summary: dict[str, Any]) -> None:
    """One MLflow run: the job as parameters, the figures as metrics, value and summary as artifacts."""
    uri = job.tracking_uri or embedded_uri(folder)
    client = connect(uri)
    run = client.create_run(experiment_id(client, uri, job.experiment), run_name=job.name)
    run_id = run.info.run_id
    for key, value in job.model_dump(mode="json").items():
        client.log_param(run_id, key, json.dumps(value) if isinstance(value, dict | list) else value)
    for key, value in summary.items():
        client.log_metric(run_id, key, float(value))
    for name in (VALUE, JOB):
        client.log_artifact(run_id, str(folder / name))
    client.log_text(run_id, _as_json(summary), SUMMARY)
    client.set_terminated(run_id)
