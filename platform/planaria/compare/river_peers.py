"""river's learners on a planaria stream: row by row, each predicted before it is learned from.

Source: river (Montiel et al. 2021). A missing number is left out of its row, as river expects; words and codes are told
apart by the classifying trees and one-hot encoded for the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from planaria.compare.blocks import blocks
from planaria.compare.outcome import Curve, Outcome
from planaria.compare.peer import check_table, read_peer
from planaria.errors import InputError
from planaria.job import Job
from planaria.settings import Settings
from planaria.signals import Fields, Rows
from planaria.stream import open_stream


class Changes(Settings):
    """What may follow a learner's name: river:logistic_regression,rate=0.03. Without, river's own defaults."""

    rate: float | None = Field(None, gt=0)
    """Of the logistic regression's gradient descent."""
    grace_rows: int | None = Field(None, ge=1)
    """Rows that a leaf of a tree takes in between attempts to split it."""
    models: int = Field(10, ge=1)
    """Of an ensemble."""


def _grace(changes: Changes) -> dict[str, Any]:
    return {} if changes.grace_rows is None else {"grace_period": changes.grace_rows}


def _forest(seed: int, changes: Changes) -> Any:
    from river import forest

    return forest.ARFClassifier(n_models=changes.models, seed=seed, **_grace(changes))


def _patches(seed: int, changes: Changes) -> Any:
    from river import ensemble, tree

    usual: dict[str, Any] = {"grace_period": 50, "delta": 0.01}  # river's own, for these
    model = tree.HoeffdingTreeClassifier(**{**usual, **_grace(changes)})
    return ensemble.SRPClassifier(model=model, n_models=changes.models, seed=seed)


def _bagging(seed: int, changes: Changes) -> Any:
    from river import ensemble, tree

    model = tree.HoeffdingTreeClassifier(**_grace(changes))
    return ensemble.LeveragingBaggingClassifier(model=model, n_models=changes.models, seed=seed)


def _logistic(seed: int, changes: Changes) -> Any:
    from river import compose, linear_model, multiclass, optim, preprocessing

    encoded = compose.SelectType(float) | preprocessing.StandardScaler()
    encoded += compose.SelectType(str) | preprocessing.OneHotEncoder()
    descent = None if changes.rate is None else optim.SGD(changes.rate)
    return encoded | multiclass.OneVsRestClassifier(linear_model.LogisticRegression(descent))


def _last_class(seed: int, changes: Changes) -> Any:
    from river import dummy

    return dummy.NoChangeClassifier()


def _forest_regression(seed: int, changes: Changes) -> Any:
    from river import compose, forest, preprocessing

    encoded = compose.TransformerUnion(
        compose.SelectType(float), compose.SelectType(str) | preprocessing.OneHotEncoder()
    )
    # its leaves are linear models, which know numbers alone
    return encoded | forest.ARFRegressor(n_models=changes.models, seed=seed, **_grace(changes))


CLASSIFIERS: Mapping[str, Callable[[int, Changes], Any]] = {
    "arf": _forest,
    "srp": _patches,
    "leveraging_bagging": _bagging,
    "logistic_regression": _logistic,
    "last_class": _last_class,
}
REGRESSORS: Mapping[str, Callable[[int, Changes], Any]] = {"arf": _forest_regression}
_TREES = ("arf", "srp", "leveraging_bagging")


def check(name: str, job: Job) -> None:
    """Raises InputError where the peer cannot learn the job's stream, or does not know the changes."""
    check_table(f"river:{name}", job)
    known = _known(job)
    learner, changes = read_peer("river", name, list(known), Changes, f" for a {job.stream.task}")
    for change, learners in (("rate", ("logistic_regression",)), ("grace_rows", _TREES), ("models", _TREES)):
        if change in changes.model_fields_set and learner not in learners:
            raise InputError(f"--peers: {change} in 'river:{name}' is for {' and '.join(learners)}; leave it out")


def _known(job: Job) -> Mapping[str, Callable[[int, Changes], Any]]:
    return CLASSIFIERS if job.stream.task == "classification" else REGRESSORS


def run(name: str, job: Job, base: Path, interval: int) -> Outcome:
    """The whole stream, once."""
    classes = job.stream.task == "classification"
    learner, changes = read_peer("river", name, list(_known(job)), Changes)
    model = _known(job)[learner](job.seed, changes)
    stream = open_stream(job.stream, seed=job.seed, base=base, hold_out_fraction=job.evaluation.hold_out_fraction)
    curve, began = Curve(interval), time.process_time()
    for rows in blocks(stream, job):
        for features, label, held_out in _samples(rows, stream.fields):
            answer = model.predict_one(features)
            if classes:
                curve.add(float(answer == label))
            else:
                curve.add(abs((answer or 0.0) - label))
            if not held_out:
                model.learn_one(features, label)
    return Outcome(
        name=f"river:{name}",
        seed=job.seed,
        samples=curve.rows,
        score=curve.total / max(1, curve.rows),
        final=None,
        parameters=None,
        cpu_seconds=time.process_time() - began,
        curve=curve.points,
    )


def _samples(rows: Rows, fields: Fields) -> Iterator[tuple[dict[str, Any], Any, bool]]:
    features = rows.select(slice(None))
    numeric_BF, categorical_BF = features.get("numeric"), features.get("categorical")
    for at in range(len(rows)):
        sample: dict[str, Any] = {}
        if numeric_BF is not None:
            values = zip(fields.numeric, numeric_BF[at].tolist(), strict=True)
            sample = {name: value for name, value in values if not np.isnan(value)}
        if categorical_BF is not None:
            codes = zip(fields.categorical, categorical_BF[at].tolist(), strict=True)
            sample |= {name: str(code) for name, code in codes}
        yield sample, rows.target[at].item(), bool(rows.held_out[at])
