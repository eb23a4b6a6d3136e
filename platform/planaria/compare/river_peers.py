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

from planaria.compare.blocks import blocks
from planaria.compare.outcome import Curve, Outcome
from planaria.compare.peer import check_table
from planaria.errors import InputError, nearest
from planaria.job import Job
from planaria.signals import Fields, Rows
from planaria.stream import open_stream


def _forest(seed: int) -> Any:
    from river import forest

    return forest.ARFClassifier(seed=seed)


def _patches(seed: int) -> Any:
    from river import ensemble, tree

    return ensemble.SRPClassifier(model=tree.HoeffdingTreeClassifier(), n_models=10, seed=seed)


def _bagging(seed: int) -> Any:
    from river import ensemble, tree

    return ensemble.LeveragingBaggingClassifier(model=tree.HoeffdingTreeClassifier(), seed=seed)


def _logistic(seed: int) -> Any:
    from river import compose, linear_model, multiclass, preprocessing

    encoded = compose.SelectType(float) | preprocessing.StandardScaler()
    encoded += compose.SelectType(str) | preprocessing.OneHotEncoder()
    return encoded | multiclass.OneVsRestClassifier(linear_model.LogisticRegression())


def _last_class(seed: int) -> Any:
    from river import dummy

    return dummy.NoChangeClassifier()


def _forest_regression(seed: int) -> Any:
    from river import compose, forest, preprocessing

    encoded = compose.TransformerUnion(
        compose.SelectType(float), compose.SelectType(str) | preprocessing.OneHotEncoder()
    )
    return encoded | forest.ARFRegressor(seed=seed)  # its leaves are linear models, which know numbers alone


CLASSIFIERS: Mapping[str, Callable[[int], Any]] = {
    "arf": _forest,
    "srp": _patches,
    "leveraging_bagging": _bagging,
    "logistic_regression": _logistic,
    "last_class": _last_class,
}
REGRESSORS: Mapping[str, Callable[[int], Any]] = {"arf": _forest_regression}


def check(name: str, job: Job) -> None:
    """Raises InputError where the peer cannot learn the job's stream."""
    check_table(f"river:{name}", job)
    known = CLASSIFIERS if job.stream.task == "classification" else REGRESSORS
    if name not in known:
        raise InputError(
            f"--peers: river:{name} is not known for a {job.stream.task}{nearest(name, known)}; "
            f"use one of {', '.join(f'river:{one}' for one in known)}"
        )


def run(name: str, job: Job, base: Path, interval: int) -> Outcome:
    """The whole stream, once."""
    classes = job.stream.task == "classification"
    model = (CLASSIFIERS if classes else REGRESSORS)[name](job.seed)
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
