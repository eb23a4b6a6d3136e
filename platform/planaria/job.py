"""A job: which stream, which model, which policy, at what scale, kept where. One YAML file each."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from planaria.blueprint import PARTS, Blueprint
from planaria.errors import InputError, nearest
from planaria.plain_yaml import dump_yaml, load_yaml, read_yaml
from planaria.policy import Policy
from planaria.settings import FolderName, Settings, parse_from


class ImageColumn(Settings):
    """Pictures in a column."""

    column: str = "image"
    """Column that holds a picture a row: a list of numbers, raw bytes, a PNG or a JPEG."""
    shape: tuple[int, int] | tuple[int, int, int]
    """height, width, or height, width, channels, of the values in one row of the column."""


class FeatureColumns(Settings):
    """Which columns are inputs: those of a table, or one of pictures."""

    numeric: tuple[str, ...] = ()
    """Columns of numbers; missing values are allowed."""
    categorical: tuple[str, ...] = ()
    """Columns of words or codes; values that are missing or were never seen are allowed."""
    image: ImageColumn | None = None
    """The column of pictures, instead of a table's columns."""


class Change(Settings):
    """One context of a scenario: what is done to the source's rows, and how the stream gets there."""

    name: str
    """Name of the context. One that was there before makes this a return to it."""
    samples: int = Field(ge=1)
    """How long the context lasts, its transition included."""
    transition_samples: int = Field(0, ge=0)
    """0 is an abrupt change; otherwise rows are drawn more and more often from the new context."""
    transform: Literal["none", "rotate", "permute_pixels", "permute_patches", "permute_labels", "corrupt", "invert"] = (
        "none"
    )
    """What is done to every row."""
    degrees: float = 0.0
    """rotate"""
    patch: int = Field(7, ge=1)
    """permute_patches: side of the square patches that change places"""
    severity: float = Field(0.3, ge=0, le=1)
    """corrupt: strength of the noise"""
    variant: int = 0
    """permute_*, corrupt: which of the random permutations; equal variants are equal"""
    classes: tuple[int | str, ...] | None = None
    """Only these labels (class-incremental streams)."""
    class_weights: dict[str, float] | None = None
    """How often each label is drawn, relative to the others; 1 where not named (unbalanced streams)."""
    blur: float = Field(0.0, ge=0, lt=1)
    """Share of rows drawn from the other contexts' classes (blurry boundaries)."""

    @field_validator("class_weights", mode="before")
    @classmethod
    def _labels_as_text(cls, weights: object) -> object:
        """YAML's 3 and "3" are one label."""
        return {str(label): weight for label, weight in weights.items()} if isinstance(weights, dict) else weights

    @model_validator(mode="after")
    def _possible(self) -> Change:
        if self.transition_samples > self.samples:
            raise ValueError(
                f"transition_samples is {self.transition_samples} but samples is {self.samples}; "
                f"a transition must end within its context"
            )
        if self.degrees and self.transform != "rotate":
            raise ValueError(f"degrees is {self.degrees} but transform is {self.transform}; set transform: rotate")
        if self.classes is not None and not self.classes:
            raise ValueError("classes is empty; name at least one label or remove it")
        weights = self.class_weights or {}
        if any(weight < 0 for weight in weights.values()):
            raise ValueError("class_weights must not be negative; 0 leaves a label out")
        return self


class Scenario(Settings):
    """Contexts over any labelled source, one after the other; a name that comes again is a recurring context."""

    contexts: tuple[Change, ...] = ()
    """The contexts, in order."""
    kind: Literal["contexts", "class_incremental", "domain_incremental", "permuted", "rotated"] = "contexts"
    """contexts: those listed. The others make `count` contexts of their kind: groups of classes in label order; the
    same, but the target is a class's place within its group; shuffled pixels; turned pictures."""
    count: int = Field(5, ge=1)
    """All kinds but contexts: how many contexts to make"""
    samples_per_context: int = Field(6_000, ge=1)
    """All kinds but contexts: how long each context lasts, on average where imbalance makes them differ"""
    transition_samples: int = Field(0, ge=0)
    """All kinds but contexts: length of each transition"""
    blur: float = Field(0.0, ge=0, lt=1)
    """class_incremental, domain_incremental: share of rows drawn from the other contexts' classes"""
    imbalance: float = Field(1.0, ge=1, le=1e6)
    """How many times as often the first class comes as the last, falling exponentially in label order (long-tailed
    streams). In class_incremental and domain_incremental, contexts are as long as their classes are frequent."""
    repeat: int = Field(1, ge=1)
    """Go through the contexts this many times."""

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        if self.kind == "contexts" and not self.contexts:
            raise ValueError("contexts is empty; list contexts, or set kind to another one, such as class_incremental")
        # By their values: a job that was written out in full names every key.
        of_made = ("count", "samples_per_context", "transition_samples", "blur")
        changed = [name for name in of_made if getattr(self, name) != type(self).model_fields[name].default]
        if self.kind == "contexts" and changed:
            raise ValueError(f"{changed[0]} means nothing when contexts are listed; set it in each context")
        if self.kind != "contexts" and self.contexts:
            raise ValueError(f"kind is {self.kind}, which makes its own contexts; remove contexts or kind")
        if self.blur and self.kind not in ("class_incremental", "domain_incremental"):
            raise ValueError(f"blur needs contexts with different classes, but kind is {self.kind}; remove blur")
        if self.transition_samples > self.samples_per_context:
            raise ValueError(
                f"transition_samples is {self.transition_samples} but samples_per_context is "
                f"{self.samples_per_context}; a transition must end within its context"
            )
        definitions: dict[str, Change] = {}
        for change in self.contexts:
            same = change.model_copy(update={"samples": 1, "transition_samples": 0})
            if definitions.setdefault(change.name, same) != same:
                raise ValueError(f"context '{change.name}' comes again with other settings; rename it or equal them")
        return self


class StreamSettings(Settings):
    """Where the rows come from, and what they hold."""

    source: str
    """parquet, arrow, csv, or a named set such as fashion_mnist."""
    path: str | None = None
    """A file, a folder or a glob, here or as a URI that pyarrow.fs knows; read in the order of the files' names."""
    features: FeatureColumns = FeatureColumns()
    """Which columns are inputs. The named sets bring their own."""
    target: str | None = None
    """Column to predict. The named sets bring their own."""
    task: Literal["classification", "regression"] = "classification"
    """Classes that may grow in number as labels appear, or a number."""
    context: str | None = None
    """Column for evaluation only, hidden from learner, detector and controller (but for its boundaries, where the
    policy has them told)."""
    categories: int = Field(64, ge=2)
    """Distinct values that are told apart in each categorical column; the first to appear count."""
    follow: bool = False
    """Wait for new files in the folder, whose names must sort after those that are there."""
    follow_poll_s: float = Field(1.0, gt=0)
    """Seconds between looks for new files."""
    delimiter: str | None = Field(None, min_length=1, max_length=1)
    """csv only; a comma, or a tab for .tsv, where it is not given."""
    scenario: Scenario | None = None
    """Contexts made from the source's rows: a stream that changes when you say."""


class Model(Settings):
    """The transformer that learns, apart from its heads, which the policy rules."""

    width: int = Field(64, ge=4)
    """Length of a token's vector."""
    layers: int = Field(2, ge=1)
    """Transformer layers, each with its own number of heads."""
    head_width: int = Field(8, ge=1)
    """Length of one head's queries, keys and values."""
    mlp_width: int = Field(128, ge=1)
    """Hidden units of each layer's MLP."""
    patch: int = Field(7, ge=1)
    """Images: side of the square patches that become tokens."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is faster where the machine has it; weights stay float32."""
    compile_after_rows: int | None = Field(None, ge=0)
    """Compile the model's passes once it has had the same form for so many rows: faster on long streams, after half a
    minute or so. Needs a C++ compiler, or a GPU. None never compiles."""


class Scale(Settings):
    """How many workers train together, and with what."""

    workers: int | tuple[int, int] = 1
    """Ray Train workers; 0 runs in this process without Ray; a pair is elastic (at least, at most)."""
    shards: int | None = Field(None, ge=1)
    """Parts in which a batch is computed. Runs with equal shards are bit-identical for every number of
    workers that is a power of two and divides it. Default: the largest number of workers."""
    watched_rows: int = Field(1_024, ge=64)
    """Of a larger step, detectors, memory, readout, router and the scales of columns see about so many rows, a sample.
    Every worker sees all of those, so that this bounds what a step costs beside learning, however many workers there
    are. What counts rows for them (windows, half-lives) counts those that they see."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """What Ray sets aside for each worker."""
    gpus: bool | None = None
    """None uses GPUs where the cluster has one for every worker."""
    max_failures: int = Field(10, ge=-1)
    """Restarts after lost workers before the run fails; -1 is without limit."""

    @model_validator(mode="after")
    def _workers(self) -> Scale:
        low, high = self.bounds
        written = list(self.workers) if isinstance(self.workers, tuple) else self.workers
        if low < 0 or high < low:
            raise ValueError(f"workers is {written}; give a number of at least 0, or a pair such as [1, 4]")
        if isinstance(self.workers, tuple) and low == 0:
            raise ValueError(f"workers is {written}; an elastic run has at least 1 worker")
        if self.shards is not None and self.shards < high:
            raise ValueError(f"shards is {self.shards} but workers may be {high}; raise shards or lower workers")
        return self

    @property
    def bounds(self) -> tuple[int, int]:
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)

    @property
    def shard_count(self) -> int:
        return self.shards or max(1, self.bounds[1])


class Storage(Settings):
    """Where a run keeps what it needs to go on."""

    folder: str = "runs"
    """Each run gets a folder in here. On a cluster, every node must see it."""
    keep_checkpoints: int = Field(3, ge=1)
    """Older ones are removed."""
    checkpoint_every_s: float = Field(15.0, gt=0)
    """Seconds of work that a crash costs at most."""
    patience_s: float = Field(60.0, ge=0)
    """How long a folder that cannot be written is tried again before the run stops. Meanwhile it goes on."""


class Evaluation(Settings):
    """How a run is scored on rows that it does not learn from."""

    rows_per_context: int = Field(500, ge=1)
    """Held-out rows on which each context is scored."""
    hold_out_fraction: float = Field(0.02, ge=0, lt=1)
    """Streams without a scenario: share of rows that are scored but never learned from."""
    max_contexts: int = Field(64, ge=1)
    """The newest so many are scored at the end; a stream may have more of them than can be kept."""


class Record(Settings):
    """What is recorded, where, and how densely."""

    tracking_uri: str | None = None
    """None is an embedded SQLite store in the run's folder."""
    experiment: str = "planaria"
    """Name of the MLflow experiment."""
    interval_samples: int = Field(1_000, ge=1)
    """Samples between two points of the curves."""
    max_intervals: int = Field(4_000, ge=16)
    """Rows kept in steps.parquet: beyond it, neighbouring intervals are merged."""
    register_model: bool = True
    """Keep the models of revisions in MLflow's registry."""
    register_after_samples: int = Field(5_000, ge=1)
    """Only of revisions that lived for so many samples; the last one is always kept."""
    register_newest: int = Field(5, ge=1)
    """How many models of earlier revisions stay in the run's folder."""


class Energy(Settings):
    """What is taken for the power of what has no counter that can be read. Where it has one, that is read."""

    watts_per_core: float = Field(10.0, ge=0)
    """Of a core that is busy, with its share of the machine: a server's 350 W over 32 to 56 cores, or a laptop's 45 W
    over 4 to 10, are 5 to 11 W. A guess: set it to what your machine draws."""
    watts_per_gpu: float = Field(300.0, ge=0)
    """Of a GPU, for as long as the run has it."""


class Job(Settings):
    name: FolderName = "run"
    """Names the run's folder and its MLflow run."""
    seed: int = Field(0, ge=0)
    """Equal seeds give equal runs, whatever the number of workers."""
    stream: StreamSettings
    model: Model = Model()
    policy: Policy = Policy()
    """Name of a policy, path of a policy file (relative to the job file), or its keys."""
    batch_rows: Annotated[int, Field(ge=1)] = 128
    """Rows of one global step, over all workers."""
    batch_fraction: float | None = Field(None, gt=0, le=1)
    """First steps are smaller: this share of the rows so far, at least 4, until that is batch_rows. After a shift, and
    while one is suspected, it is a share of the rows since, and at least half of batch_rows. For streams whose first
    hundred rows count. None takes whole steps."""
    samples: int | None = Field(None, ge=1)
    """Stop after this many rows; None runs to the end of the stream."""
    scale: Scale = Scale()
    storage: Storage = Storage()
    evaluation: Evaluation = Evaluation()
    record: Record = Record()
    energy: Energy = Energy()

    @model_validator(mode="after")
    def _loss_fits_the_task(self) -> Job:
        if self.policy.learner.loss == "er_ace" and self.stream.task == "regression":
            raise ValueError(
                "policy.learner.loss is er_ace, which compares classes, but stream.task is regression; "
                "choose er or der++"
            )
        return self

    @model_validator(mode="after")
    def _layers_can_share(self) -> Job:
        for part in PARTS:
            self.policy.sharing.owners(part, self.model.layers)
        return self

    @model_validator(mode="after")
    def _gates_fit_the_model(self) -> Job:
        gate, model = self.policy.gate, self.model
        if gate is not None and model.mlp_width % gate.mlp_blocks:
            raise ValueError(
                f"policy.gate.mlp_blocks is {gate.mlp_blocks}, which does not divide model.mlp_width "
                f"{model.mlp_width}; change one"
            )
        if gate is not None and model.compile_after_rows is not None:
            raise ValueError(
                "policy.gate is given, and what rows leave out cannot be compiled; remove model.compile_after_rows"
            )
        return self

    @model_validator(mode="after")
    def _as_much_can_be_pruned(self) -> Job:
        policy, model = self.policy, self.model
        if policy.prune is None:
            return self
        whole = Blueprint(
            self.stream.task,
            model.width,
            model.head_width,
            model.mlp_width,
            (policy.heads.start,) * model.layers,
            1,
            attention_of=policy.sharing.owners("attention", model.layers),
            mlp_of=policy.sharing.owners("mlp", model.layers),
            difference_rank=policy.sharing.difference_rank,
            gates=None if policy.gate is None else policy.gate.gates,
        )
        units = 1 if policy.gate is None else policy.gate.mlp_blocks
        least = replace(whole, heads=(policy.heads.min,) * model.layers, mlp_width=units)
        most = math.floor(1_000 * (1 - least.prunable / whole.prunable)) / 1_000
        if policy.prune.fine > most:
            raise ValueError(
                f"policy.prune.fine is {policy.prune.fine:g}, but where every layer keeps heads.min "
                f"{policy.heads.min} and a hidden unit{'' if units == 1 else ' of each block'}, {most:.3f} can go; "
                "lower it or heads.min"
            )
        return self

    @model_validator(mode="after")
    def _can_be_quantised(self) -> Job:
        quantise, model = self.policy.quantise, self.model
        if quantise is None:
            return self
        if quantise.from_samples is None and self.samples is None:
            raise ValueError(
                "policy.quantise begins at a share of the job's samples, but there are none; give samples, or "
                "policy.quantise.from_samples"
            )
        if model.precision == "bfloat16":
            raise ValueError(
                "policy.quantise is given, and bfloat16 would round what it rounds a second time; set model.precision "
                "to float32, or remove policy.quantise"
            )
        return self

    @model_validator(mode="after")
    def _boundaries_can_be_told(self) -> Job:
        scenario = self.stream.scenario
        if self.policy.detector.boundaries == "detected" or scenario is None:
            return self
        if scenario.transition_samples or any(change.transition_samples for change in scenario.contexts):
            raise ValueError(
                "policy.detector.boundaries is told, but stream.scenario has transition_samples, and a change that "
                "comes gradually has no boundary; set them to 0 or choose detected"
            )
        return self

    @model_validator(mode="after")
    def _shards_fit_the_batch(self) -> Job:
        if self.scale.shard_count > self.batch_rows:
            raise ValueError(
                f"batch_rows is {self.batch_rows} but scale needs {self.scale.shard_count} parts of a batch; "
                "raise batch_rows or lower scale.workers or scale.shards"
            )
        return self


SHIPPED_POLICIES = Path(__file__).parents[2] / "policies"
"""There in a checkout, which is what a user has; the package runs without."""


def load_job(path: Path | str, overrides: Sequence[str] = ()) -> Job:
    """The job in a YAML file, with its policy read in and its data path made absolute.

    An override is `key.path=value`; its value is read as YAML: `policy.heads.max=8`, `policy=thrifty`.
    Data paths are relative to the working directory; a policy is a file (relative to the job's), or the name
    of one in a `policies` folder. Raises InputError, with one line.
    """
    path = Path(path)
    values = read_yaml(path)
    changed: list[str] = []
    policy_file = _read_policy(values, path)
    for override in overrides:
        key, value = read_override(override)
        put(values, key.split("."), value)
        if key == "policy" and isinstance(value, str):
            policy_file = _read_policy(values, path)
        else:
            changed.append(key)

    def origin(key: str) -> tuple[str, str]:
        if any(key == it or key.startswith(f"{it}.") or (key and it.startswith(f"{key}.")) for it in changed):
            return "command line", key
        if policy_file and key.partition(".")[0] == "policy":
            return str(policy_file), key.removeprefix("policy").removeprefix(".")
        return str(path), key

    return resolved(parse_from(Job, values, origin))


def resolved(job: Job) -> Job:
    """The job with an absolute data path (URIs are), so that it means the same data wherever it is read again."""
    stream = job.stream
    if stream.path is None or re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", stream.path):
        return job
    path = os.path.abspath(os.path.expanduser(stream.path))
    return job.model_copy(update={"stream": stream.model_copy(update={"path": path})})


def dump_job(job: Job) -> str:
    """The whole job as YAML, policy included: `load_job` reads it back as an equal one."""
    return dump_yaml(job.model_dump(mode="json"))


def read_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise InputError(f"command line: '{text}' is no setting; write key.path=value, such as policy.heads.max=8")
    return key, load_yaml(value, f"command line: {key}")


def put(values: dict[str, Any], steps: list[str], value: Any) -> None:
    """Set a value at a dotted key, making the sections on the way; numbers index lists."""
    inside: Any = values
    for number in range(1, len(steps)):
        place = _place(inside, steps[:number])
        if isinstance(inside, dict):
            inside.setdefault(place, {})
        if not isinstance(inside[place], dict | list):
            inside[place] = {}
        inside = inside[place]
    inside[_place(inside, steps)] = value


def _place(inside: dict[str, Any] | list[Any], steps: list[str]) -> Any:
    """The last step as a key of a section, or as the number of an item of a list."""
    if isinstance(inside, dict):
        return steps[-1]
    if steps[-1].isdigit() and int(steps[-1]) < len(inside):
        return int(steps[-1])
    key = ".".join(steps)
    raise InputError(f"command line: {key}: '{steps[-1]}' is not the number of an item; the list has {len(inside)}")


def _read_policy(values: dict[str, Any], job: Path) -> Path | None:
    """Put the policy that a job names in the place of its name; the file it came from, where it names one."""
    given = values.get("policy", {})
    if not isinstance(given, str):
        values["policy"] = {} if given is None else given
        return None
    path = _find_policy(given, job)
    values["policy"] = read_yaml(path)
    return path


def _find_policy(given: str, job: Path) -> Path:
    if (beside := job.parent / given).is_file():
        return Path(os.path.relpath(beside)) if not Path(given).is_absolute() else beside
    folders = [job.parent / "policies", job.parent / "../policies", Path("policies"), SHIPPED_POLICIES]
    for folder in folders:
        if (named := folder / f"{given}.yaml").is_file():
            return Path(os.path.relpath(named))
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    hint = nearest(given, known) or "; give the path of a policy file, relative to the job file"
    raise InputError(f"{job}: policy: there is no policy '{given}'{hint}")
