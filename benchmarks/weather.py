"""Bring your own data: rain in the next hour at New York's airports in 2013, a table whose rules drift with the year.

    python -m benchmarks.weather                 5 seeds, about 4 CPU minutes
    python -m benchmarks.weather --seeds 1

planaria runs through the year once, in order, with jobs/weather.yaml: every row is predicted before it is learned
from. Against it stand models that learned from January and were then left alone, among them the same transformer
trained to convergence, and boosted trees that are fitted anew on all rows so far at the start of every month. All are
scored on the rows of February to December. Prints tables, and writes results/weather.json and docs/images/weather.svg.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from benchmarks.measure import write
from rich.console import Console
from rich.table import Table
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from planaria.blueprint import Blueprint
from planaria.job import Job, load_job
from planaria.learn import build_optimizer
from planaria.model import ElasticTransformer, build
from planaria.signals import Features, Shift, StepReport
from planaria.stream import open_stream
from planaria.train.group import Alone
from planaria.train.lifelong import Lifelong

REPOSITORY = Path(__file__).parents[1]
RAIN = "rain"
RAIN_IN_JANUARY = 0.073
"""Share of January's rows. Whoever calls rain above it, rather than above one half, misses fewer rains."""
METRICS: dict[str, Callable[[npt.NDArray[Any], npt.NDArray[Any]], float]] = {
    "auc": lambda truth, rain: float(roc_auc_score(truth, rain)),
    "log_loss": lambda truth, rain: float(log_loss(truth, rain.clip(1e-6, 1 - 1e-6), labels=[0, 1])),
    "accuracy": lambda truth, rain: float(accuracy_score(truth, rain > 0.5)),
    "balanced_accuracy": lambda truth, rain: float(balanced_accuracy_score(truth, rain > 0.5)),
    "balanced_at_rate": lambda truth, rain: float(balanced_accuracy_score(truth, rain > RAIN_IN_JANUARY)),
}
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Year:
    """All rows in the order of time. N rows."""

    features: Features
    rain_N: npt.NDArray[np.int64]
    month_N: npt.NDArray[np.int64]

    def of(self, chosen: npt.NDArray[np.bool_]) -> Features:
        return {name: column[chosen] for name, column in self.features.items()}


def job_of(seed: int, overrides: Sequence[str] = ()) -> Job:
    """jobs/weather.yaml in this process."""
    return load_job(REPOSITORY / "jobs" / "weather.yaml", ["scale.workers=0", f"seed={seed}", *overrides])


def read_year(job: Job) -> Year:
    stream = open_stream(job.stream, seed=0, base=REPOSITORY, hold_out_fraction=0.0)
    features: list[Features] = []
    target, month = [], []
    at = 0
    while len(rows := stream.read(at, 4_096)):
        features.append(rows.select(slice(None)))
        target.append(rows.target)
        assert rows.context is not None
        month.append(rows.context)
        at += len(rows)
    return Year(
        features={name: np.concatenate([part[name] for part in features]) for name in features[0]},
        rain_N=(np.concatenate(target) == stream.labels.index(RAIN)).astype(np.int64),
        month_N=np.array([int(name) for name in stream.contexts])[np.concatenate(month)],
    )


# -- planaria, through the year


class Witness:
    """Stands before the run's monitor and keeps what the model answered before it learned."""

    def __init__(self, run: Lifelong) -> None:
        self._monitor, self._stream = run.monitor, run.stream
        self.rain: list[Probabilities] = []

    def update(self, report: StepReport) -> Shift | None:
        logits_BC = report.output_BC.astype(np.float64)
        odds_BC = np.exp(logits_BC - logits_BC.max(1, keepdims=True))
        known = self._stream.labels.index(RAIN) if RAIN in self._stream.labels else None
        rain = np.zeros(len(odds_BC)) if known is None else odds_BC[:, known] / odds_BC.sum(1)
        self.rain.append(rain)
        return self._monitor.update(report)

    def adapted(self, sample: int) -> None:
        self._monitor.adapted(sample)


def live_through(job: Job) -> tuple[Probabilities, dict[str, Any]]:
    """Probability of rain of every row before it was learned from, and the run's summary."""
    stream = open_stream(job.stream, seed=job.seed, base=REPOSITORY, hold_out_fraction=job.evaluation.hold_out_fraction)
    run = Lifelong(job, stream, Alone(), torch.device("cpu"))
    run.begin()
    witness = Witness(run)
    run.monitor = witness  # type: ignore[assignment]
    while run.take_step() is not None:
        pass
    return np.concatenate(witness.rain), run.summary("done", run.finish())


# -- models that learned from January and were left alone


def static_transformer(job: Job, year: Year, most_epochs: int = 60, patience: int = 8) -> Probabilities:
    """The job's transformer as it starts, trained on January until its last fifth gets no better; its best epoch."""
    january = np.flatnonzero(year.month_N == 1)
    learn, check = january[: len(january) * 4 // 5], january[len(january) * 4 // 5 :]
    fields = open_stream(job.stream, seed=0, base=REPOSITORY, hold_out_fraction=0.0).fields
    blueprint = Blueprint.for_fields(
        fields,
        width=job.model.width,
        head_width=job.model.head_width,
        mlp_width=job.model.mlp_width,
        heads=(job.policy.heads.start,) * job.model.layers,
        outputs=2,
        patch=job.model.patch,
    )
    model = build(blueprint, job.seed)
    optimizer = build_optimizer(model, job.policy.learner)
    features = {name: torch.from_numpy(column) for name, column in year.features.items()}
    target = torch.from_numpy(year.rain_N)
    model.observe({"numeric": features["numeric"][learn]})
    generator = np.random.default_rng(job.seed)
    best, best_weights, since = float("inf"), model.state_dict(), 0
    for _ in range(most_epochs):
        for rows in np.array_split(generator.permutation(learn), -(-len(learn) // job.batch_rows)):
            optimizer.zero_grad()
            F.cross_entropy(model(_take(features, rows)), target[rows]).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), job.policy.learner.clip_norm)
            optimizer.step()
        with torch.no_grad():
            loss = float(F.cross_entropy(model(_take(features, check)), target[check]))
        since += 1
        if loss < best:
            best, since = loss, 0
            best_weights = {name: value.clone() for name, value in model.state_dict().items()}
        if since >= patience:
            break
    model.load_state_dict(best_weights)
    return _rain(model, features)


def _take(features: Mapping[str, torch.Tensor], rows: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
    return {name: column[rows] for name, column in features.items()}


@torch.no_grad()
def _rain(model: ElasticTransformer, features: Mapping[str, torch.Tensor]) -> Probabilities:
    answers = []
    for first in range(0, len(features["numeric"]), 2_048):
        part = {name: column[first : first + 2_048] for name, column in features.items()}
        answers.append(model(part).softmax(1)[:, 1].double())
    return torch.cat(answers).numpy()


def table_of(year: Year) -> npt.NDArray[np.float64]:
    return np.hstack([year.features["numeric"], year.features["categorical"]]).astype(np.float64)


def logistic_regression(columns: int) -> Any:
    numbers = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    encoded = make_column_transformer(
        (numbers, list(range(columns - 1))), (OneHotEncoder(handle_unknown="ignore"), [columns - 1])
    )
    return make_pipeline(encoded, LogisticRegression(max_iter=2_000))


def boosted_trees(columns: int) -> Any:
    return HistGradientBoostingClassifier(categorical_features=[columns - 1], random_state=0)


def frozen(model: Callable[[int], Any], year: Year) -> Probabilities:
    table = table_of(year)
    january = year.month_N == 1
    fitted = model(table.shape[1]).fit(table[january], year.rain_N[january])
    return np.asarray(fitted.predict_proba(table)[:, 1])


def refitted_monthly(model: Callable[[int], Any], year: Year) -> Probabilities:
    """Fitted anew on all earlier months at the start of each."""
    table, rain = table_of(year), np.zeros(len(year.rain_N))
    for month in range(2, 13):
        before, now = year.month_N < month, year.month_N == month
        rain[now] = model(table.shape[1]).fit(table[before], year.rain_N[before]).predict_proba(table[now])[:, 1]
    return rain


def base_rate(year: Year) -> Probabilities:
    """Always dry, with January's share of rain as the probability."""
    return np.full(len(year.rain_N), year.rain_N[year.month_N == 1].mean())


# -- scores


def scores(year: Year, rain: Probabilities) -> dict[str, float]:
    later = year.month_N > 1
    return {name: metric(year.rain_N[later], rain[later]) for name, metric in METRICS.items()}


def auc_by_month(year: Year, rain: Probabilities) -> dict[int, float]:
    months = {month: year.month_N == month for month in range(2, 13)}
    return {month: METRICS["auc"](year.rain_N[mine], rain[mine]) for month, mine in months.items()}


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% interval (Student's t; 0 for what has no chance in it)."""
    if len(values) < 2 or max(values) == min(values):
        return statistics.fmean(values), 0.0
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}[len(values)]
    return statistics.fmean(values), t * statistics.stdev(values) / len(values) ** 0.5


def show(results: Mapping[str, Any]) -> None:
    console = Console(width=130)
    table = Table(title="February to December, mean and 95% interval over seeds", title_justify="left")
    for column in ("model", *METRICS):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, found in results.items():
        cells = [found["scores"][metric] for metric in METRICS]
        table.add_row(name, *(f"{mean:.4f}" + (f" ± {half:.4f}" if half else "") for mean, half in cells))
    console.print(table)
    months = Table(title="AUC by month", title_justify="left")
    for column in ("model", *range(2, 13)):
        months.add_column(str(column), justify="left" if column == "model" else "right")
    for name, found in results.items():
        months.add_row(name, *(f"{mean:.3f}" for mean in found["auc_by_month"].values()))
    console.print(months)


def plot(results: Mapping[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "planaria"
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for name, found in results.items():
        if name == "majority class":
            continue
        own = name.startswith("planaria")
        months, values = zip(*found["auc_by_month"].items(), strict=True)
        style = "-" if own else (":" if "refitted" in name else "--")
        axes.plot(months, values, style, marker="o", markersize=3, linewidth=2.4 if own else 1.2, label=name)
    names = "Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
    axes.set_xticks(range(2, 13), names)
    axes.set_ylabel("ROC AUC, rain in the next hour")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, default=5, help="how many, from 0 on")
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    year = read_year(job_of(0))
    lived, runs, still = [], [], []
    for seed in range(chosen.seeds):
        rain, summary = live_through(job_of(seed))
        lived.append(rain)
        runs.append(summary)
        still.append(static_transformer(job_of(seed), year))
    answers: dict[str, list[Probabilities]] = {
        "planaria": lived,
        "the same transformer, January only": still,
        "boosted trees, January only": [frozen(boosted_trees, year)],
        "logistic regression, January only": [frozen(logistic_regression, year)],
        "majority class": [base_rate(year)],
        "boosted trees, refitted monthly": [refitted_monthly(boosted_trees, year)],
    }
    results = {}
    for name, each in answers.items():
        found = [scores(year, rain) for rain in each]
        monthly = [auc_by_month(year, rain) for rain in each]
        results[name] = {
            "scores": {metric: mean_and_interval([one[metric] for one in found]) for metric in METRICS},
            "auc_by_month": {month: statistics.fmean(one[month] for one in monthly) for month in monthly[0]},
            "each_seed": found,
        }
    show(results)
    plot(results, REPOSITORY / "docs" / "images" / "weather.svg")
    kept = ("seed", "shifts", "decisions", "grows", "shrinks", "heads_last", "parameters_mean", "prequential_accuracy")
    of_runs = [{key: summary[key] for key in kept} for summary in runs]
    print(write("weather", {"seeds": chosen.seeds, "results": results, "runs": of_runs}))


if __name__ == "__main__":
    main()
