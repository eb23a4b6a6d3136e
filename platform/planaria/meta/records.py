"""Families of real records: `segments` under changing views, and `weather` as it was.

Legend: N rows of the table, B rows, K columns, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from planaria.meta.simulate import (
    TOTAL_ROWS_RANGE,
    Change,
    Integers,
    Numbers,
    SimStream,
    Source,
    draw_price,
    generator,
    pick,
    simulate,
)
from planaria.signals import Features, Fields
from planaria.stream import fetch
from planaria.stream.sets import weather as weather_set

SEGMENT_COLUMNS = (
    "region-centroid-col",
    "region-centroid-row",
    "vedge-mean",
    "hedge-mean",
    "exred-mean",
    "exblue-mean",
    "exgreen-mean",
    "saturation-mean",
    "hue-mean",
)
SEGMENT_CLASSES = 7
_JITTER = 0.05
"""Added to every number, in standard deviations of its column: 2,310 rows are drawn again and again."""
_SCALES_RANGE = (0.3, 1.5)

WEATHER_NUMERIC_COLUMNS = 8
AIRPORTS = ("EWR", "JFK", "LGA")
_FEWEST_AIRPORTS = 2
_ALWAYS = ("humid", "precip", "pressure", "visib")
"""Without these there is little to tell of rain; the other four are drawn."""


@dataclass(frozen=True)
class Records:
    """Standardised numbers and classes."""

    numeric_NK: Numbers
    target_N: Integers


@dataclass(frozen=True)
class ColumnsView:
    """How a concept shows the columns: in which order, and with which factor."""

    order_K: Integers
    factor_K: Numbers


def segments(seed: int) -> SimStream:
    """Image segments (UCI 1990, as in river): 2,310 rows in seven classes, nine columns."""
    return simulate("segments", seed, lambda random: _segments_source())


def weather(seed: int) -> SimStream:
    """The weather table in the order of time, from some month on, and on into the same year again.

    A stream has two or three of the airports, and eight of the ten numeric columns. The months are its phases.
    Raises InputError where the table cannot be had.
    """
    random = generator("weather", seed)
    table = _weather()
    airports = random.permutation(len(AIRPORTS))[: int(random.integers(_FEWEST_AIRPORTS, len(AIRPORTS) + 1))]
    optional = [name for name in weather_set.NUMERIC if name not in _ALWAYS]
    drawn = random.permutation(optional)[: WEATHER_NUMERIC_COLUMNS - len(_ALWAYS)]
    columns = [name for name in weather_set.NUMERIC if name in _ALWAYS or name in drawn]
    rows = _from_month(table, np.sort(airports), int(random.integers(1, 13)))
    month_B = table.month_N[rows]
    starts = np.flatnonzero(np.diff(month_B, prepend=-1))
    phases = len(starts)
    numeric = table.numeric_NK[:, [weather_set.NUMERIC.index(name) for name in columns]][rows]
    month: Change = "month"
    return SimStream(
        family="weather",
        seed=seed,
        fields=Fields(
            "classification", numeric=tuple(columns), categorical=weather_set.CATEGORICAL, categories=len(AIRPORTS) + 1
        ),
        outputs=2,
        patch=1,
        features={"numeric": numeric, "categorical": table.airport_N[rows][:, None] + 1},
        target=table.target_N[rows],
        starts=tuple(int(row) for row in starts),
        contexts=tuple(int(month) for month in month_B[starts]),
        demand=(None,) * phases,
        changes=("start", *[month] * (phases - 1)),
        gradual_rows=(0,) * phases,
        price=draw_price(random),
        label_noise=0.0,
    )


def _segments_source() -> Source[ColumnsView]:
    records = _segments()
    count = len(SEGMENT_COLUMNS)

    def draw(random: np.random.Generator, view: ColumnsView, tilt: Numbers, rows: int) -> tuple[Features, Integers]:
        weight_C = np.exp(tilt[:SEGMENT_CLASSES])
        chosen_B = pick(weight_C[records.target_N], rows, random)
        x_BK = records.numeric_NK[chosen_B] + _JITTER * random.normal(size=(rows, count))
        return {"numeric": (x_BK[:, view.order_K] * view.factor_K).astype(np.float32)}, records.target_N[chosen_B]

    return Source(
        fields=Fields("classification", numeric=tuple(f"x{number}" for number in range(count))),
        outputs=SEGMENT_CLASSES,
        new_rule=_new_view,
        draw=draw,
    )


def _new_view(random: np.random.Generator, before: ColumnsView | None) -> ColumnsView:
    """One thing changes: the columns' places, their signs or their scales."""
    count = len(SEGMENT_COLUMNS)
    if before is None:
        return ColumnsView(np.arange(count), np.ones(count))
    kind = random.choice(["order", "signs", "scales"])
    if kind == "order":
        return replace(before, order_K=random.permutation(count))
    if kind == "signs":
        flipped = random.permutation(count)[: int(random.integers(2, count + 1))]
        return replace(before, factor_K=np.where(np.isin(np.arange(count), flipped), -1, 1) * before.factor_K)
    low, high = _SCALES_RANGE
    scale_K = np.exp(random.uniform(math.log(low), math.log(high), count))
    return replace(before, factor_K=np.sign(before.factor_K) * scale_K)


@lru_cache(maxsize=1)
def _segments() -> Records:
    from river.datasets import ImageSegments  # Slow to import.

    rows = list(ImageSegments())  # type: ignore[no-untyped-call]
    numeric = np.array([[row[name] for name in SEGMENT_COLUMNS] for row, _ in rows])
    names = sorted({label for _, label in rows})
    target = np.array([names.index(label) for _, label in rows])
    return Records((numeric - numeric.mean(0)) / numeric.std(0), target)


@dataclass(frozen=True)
class Weather:
    """The whole table, hour by hour. Airports are numbers in AIRPORTS, months 1 to 12."""

    numeric_NK: npt.NDArray[np.float32]
    airport_N: Integers
    month_N: Integers
    target_N: Integers


@lru_cache(maxsize=1)
def _weather() -> Weather:
    table = pq.read_table(fetch(weather_set.NAME))
    numeric = [table[name].to_numpy().astype(np.float32) for name in weather_set.NUMERIC]
    airport = np.array([AIRPORTS.index(name) for name in table["origin"].to_pylist()])
    rains = pc.equal(table[weather_set.TARGET], "rain").to_numpy().astype(np.int64)
    return Weather(np.stack(numeric, 1), airport, table[weather_set.CONTEXT].to_numpy().astype(np.int64), rains)


def _from_month(table: Weather, airports: Integers, month: int) -> Integers:
    """Row numbers in order of time from the start of a month, through the year's end, for at least a year."""
    of_year = np.flatnonzero(np.isin(table.airport_N, airports))
    first = int(np.argmax(table.month_N[of_year] == month))
    count = max(TOTAL_ROWS_RANGE[0], len(of_year))
    return of_year[(first + np.arange(count)) % len(of_year)]
