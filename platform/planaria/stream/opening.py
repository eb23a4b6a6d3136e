"""From the settings of a job to a stream, with every mistake that can be seen before the run reported at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from planaria.errors import InputError, nearest
from planaria.job import Scenario, StreamSettings
from planaria.signals import Stream
from planaria.stream import sets
from planaria.stream.arrow_file import ArrowFormat
from planaria.stream.columns import Columns, columns_of
from planaria.stream.csv_file import CsvFormat
from planaria.stream.file_stream import FileStream
from planaria.stream.listing import Listing, list_files
from planaria.stream.loaded import Loaded, LoadedFormat, LoadedListing, about, read_tables
from planaria.stream.parquet_file import ParquetFormat
from planaria.stream.pool import Pools
from planaria.stream.scenario_stream import ScenarioStream
from planaria.stream.source import DataError, Files, Format, Wanted
from planaria.stream.spool import spool
from planaria.stream.tape import Tape
from planaria.stream.window import Window

logger = logging.getLogger(__name__)

FORMATS: dict[str, Format] = {"parquet": ParquetFormat(), "arrow": ArrowFormat(), "csv": CsvFormat()}

_TABLE_PIECE_ROWS = 16_384
_IMAGE_PIECE_BYTES = 8 << 20
_FILES_CHECKED = 256
"""Whose schemas are compared before the run; those of later files when they are reached."""
_ROWS_SCANNED = 1_000_000
"""In search of a second label before the run."""
_OWN_OF_A_SET = ("path", "features", "target", "context", "follow", "delimiter")


def _never() -> bool:
    return False


def open_stream(
    settings: StreamSettings,
    *,
    seed: int,
    base: Path,
    hold_out_fraction: float,
    stop_waiting: Callable[[], bool] = _never,
    loaded: Loaded | None = None,
) -> Stream:
    """The stream that a job describes; relative paths start at `base`. Rows that are `loaded` are not read again.

    Fetches a named set that is not there yet. Raises InputError for every mistake that can be seen now.
    """
    if loaded is not None and loaded.is_of(settings, seed):
        return _open_loaded(loaded, settings, seed, hold_out_fraction)
    if settings.source in sets.TABLES:
        settings = sets.table_settings(settings, seed)
    if settings.source in sets.IMAGES:
        return _image_set(settings, seed)
    format_ = FORMATS.get(settings.source)
    if format_ is None:
        known = [*FORMATS, *sets.NAMES]
        raise InputError(
            f"stream.source: '{settings.source}' is not known{nearest(settings.source, known)}; "
            f"use one of {', '.join(known)}"
        )
    if settings.follow and settings.scenario:
        raise InputError("stream.follow: a scenario needs all rows at the start; remove follow or scenario")
    columns = columns_of(settings)
    try:
        listing = _listing(settings, format_, base)
        total_rows = _check_rows(settings, format_, listing, columns)
    except DataError as error:
        raise InputError(str(error)) from error

    def opened(fraction: float) -> FileStream:
        return _file_stream(listing, format_, columns, settings, seed, fraction, total_rows, stop_waiting)

    if settings.scenario is None:
        return opened(hold_out_fraction)
    pools = spool(opened(0.0), listing, settings, seed)
    return ScenarioStream(pools, settings.scenario, seed)


def load_stream(settings: StreamSettings, *, seed: int, base: Path, most_bytes: int) -> Loaded | None:
    """All rows that a job's stream draws from, to be read by many; None where they take more than `most_bytes`, or have
    no end. Raises InputError as `open_stream` does."""
    if settings.follow:
        return None
    name = about(settings, seed)
    resolved = sets.table_settings(settings, seed) if settings.source in sets.TABLES else settings
    if resolved.source in sets.IMAGES or resolved.scenario is not None:
        stream = open_stream(settings, seed=seed, base=base, hold_out_fraction=0.0)
        assert isinstance(stream, ScenarioStream)
        found = Loaded(name, pools=stream.pools)
        return found if found.size_bytes <= most_bytes else None
    open_stream(settings, seed=seed, base=base, hold_out_fraction=0.0)  # finds mistakes
    format_, columns = FORMATS[resolved.source], columns_of(resolved)
    listing = _listing(resolved, format_, base)
    tables, schemas, used = {}, {}, 0
    try:
        tape = Tape(listing, format_, columns, _piece_rows(columns), resolved.delimiter)
        total_rows = tape.check_first(_FILES_CHECKED)
        if sum(info.size or 0 for info in listing.files().values()) > most_bytes:
            return None
        files = read_tables(listing, format_, columns, tape.kinds, _piece_rows(columns), resolved.delimiter)
        for file, schema, table in files:
            tables[file], schemas[file], used = table, schema, used + table.nbytes
            if used > most_bytes:
                return None
    except DataError as error:
        raise InputError(str(error)) from error
    return Loaded(name, tables=tables, schemas=schemas, settings=resolved, total_rows=total_rows)


def _open_loaded(loaded: Loaded, settings: StreamSettings, seed: int, hold_out_fraction: float) -> Stream:
    if loaded.pools is not None:
        return ScenarioStream(loaded.pools, settings.scenario or _whole(settings, loaded.pools), seed)
    assert loaded.settings is not None
    listing = LoadedListing(loaded, str(loaded.settings.path))
    columns, rows = columns_of(loaded.settings), loaded.total_rows
    return _file_stream(listing, LoadedFormat(loaded), columns, loaded.settings, seed, hold_out_fraction, rows, _never)


def _file_stream(
    listing: Files,
    format_: Format,
    columns: Columns,
    settings: StreamSettings,
    seed: int,
    hold_out_fraction: float,
    total_rows: int | None,
    stop_waiting: Callable[[], bool],
) -> FileStream:
    tape = Tape(listing, format_, columns, _piece_rows(columns), settings.delimiter)
    window = Window(tape, columns, follow=settings.follow, poll_s=settings.follow_poll_s, stop_waiting=stop_waiting)
    return FileStream(
        tape,
        window,
        columns,
        categories=settings.categories,
        seed=seed,
        hold_out_fraction=hold_out_fraction,
        total_rows=total_rows,
    )


def _image_set(settings: StreamSettings, seed: int) -> ScenarioStream:
    given = [name for name in _OWN_OF_A_SET if getattr(settings, name) != StreamSettings.model_fields[name].default]
    if given:
        raise InputError(f"stream.{given[0]}: the set {settings.source} brings its own; remove it")
    if settings.task != "classification":
        raise InputError(f"stream.task: {settings.source} has classes; use task: classification")
    pools: Pools = sets.open_images(settings.source)
    return ScenarioStream(pools, settings.scenario or _whole(settings, pools), seed)


def _whole(settings: StreamSettings, pools: Pools) -> Scenario:
    """All rows of a set in one context."""
    return Scenario.model_validate({"contexts": [{"name": settings.source, "samples": pools.train.rows}]})


def _listing(settings: StreamSettings, format_: Format, base: Path) -> Listing:
    if settings.path is None:
        raise InputError(f"stream.path: is missing; name the {settings.source} file, folder or glob")
    listing = list_files(settings.path, base, format_.extensions)
    if settings.follow and listing.single:
        raise InputError(f"stream.follow: {settings.path} is one file; name the folder in which new files arrive")
    if not settings.follow and not listing.names():
        raise InputError(
            f"stream.path: {settings.path} holds no {settings.source} file ({', '.join(format_.extensions)}); "
            f"correct it, or set follow: true to wait for files"
        )
    return listing


def _piece_rows(columns: Columns) -> int:
    if columns.image_shape is None:
        return _TABLE_PIECE_ROWS
    channels, height, width = columns.image_shape
    return max(64, min(_TABLE_PIECE_ROWS, _IMAGE_PIECE_BYTES // (channels * height * width)))


def _check_rows(settings: StreamSettings, format_: Format, listing: Listing, columns: Columns) -> int | None:
    """That all files have the columns, and that there is something to learn: rows, and two labels.

    Returns the number of rows where that is free to know. Raises InputError and DataError.
    """
    tape = Tape(listing, format_, columns, _piece_rows(columns), settings.delimiter)
    total_rows = tape.check_first(_FILES_CHECKED)
    if settings.follow:
        return None
    labels, scanned = _scan(listing, format_, columns, tape.kinds, settings.delimiter)
    if scanned == 0:
        raise InputError(f"stream.path: {settings.path} holds no rows; give files with at least one")
    if settings.task == "classification" and len(labels) == 1 and scanned < _ROWS_SCANNED:
        raise InputError(
            f"stream.target: '{settings.target}' is {labels[0]!r} in all {scanned} rows; "
            f"a classifier needs at least two labels, name another column"
        )
    return total_rows


def _scan(
    listing: Listing, format_: Format, columns: Columns, kinds: dict[str, str], delimiter: str | None
) -> tuple[list[object], int]:
    """Labels and rows met until there are two labels (one row in a regression). Reads the target column alone."""
    labels: list[object] = []
    scanned = 0
    for name in listing.names():
        wanted = Wanted([columns.target], columns.text_types(kinds), _TABLE_PIECE_ROWS, delimiter)
        file = format_.open(listing.place(name), wanted)
        for _, batch in file.batches(0):
            scanned += batch.num_rows
            labels += [
                value for value in batch.column(0).unique().to_pylist() if value not in labels and value is not None
            ]
            if len(labels) > 1 or (scanned and columns.task == "regression") or scanned >= _ROWS_SCANNED:
                return labels, scanned
        file.close()
    return labels, scanned
