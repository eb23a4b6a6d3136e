"""A run's folder that is kept at a URI: a folder of this machine to work in, and the one there, kept in step.

Checkpoints go there directly (train/checkpoint.py). All else is small: what has changed on either side is copied by a
thread a few seconds later, whole files and whole models only, so that training never waits for it. Where both sides
have changed, this one counts: rank 0 and the driver write different files, or the same one at different times.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from pyarrow import fs

from planaria.errors import InputError, RunError
from planaria.plain_yaml import one_line
from planaria.train.lease import REFRESH_S, Lease
from planaria.train.patience import TakenOver
from planaria.uri import opened

logger = logging.getLogger(__name__)

EVERY_S = 5.0
_MODELS = ("models", "model")
_MODEL = re.compile(r"model|models/[A-Za-z0-9][\w-]*")
_FILE = re.compile(r"[A-Za-z0-9][\w.-]*")
"""Names that are fetched: an object's name may hold anything, and must not lead out of the folder."""
_LARGEST_BYTES = 1 << 30
"""Nothing that is fetched is larger."""
_LAST_OF_A_MODEL = "model.safetensors"
"""Files are put in the order of their names, so that a model that has this one is whole."""
_SUMMARY = "summary.json"
_STORE = "mlflow.db"
"""How names of the embedded store and of SQLite's journals begin: a journal beside another store would break that."""

Files = tuple[tuple[str, int, int], ...]
"""(name, bytes, time of change in ns) of the files of a unit: of one file, or of one model's folder."""
Units = dict[str, Files]


class Mirror:
    """Keeps `local` in step with the folder at `uri`."""

    def __init__(self, uri: str, local: Path) -> None:
        """Raises InputError where the URI is none that can be opened."""
        self.uri, self.local = uri, local
        self._filesystem, self._root = opened(uri, "storage")
        self._here: Units = {}
        """As they were here when both sides were equal."""
        self._there: Units = {}
        """The same of the other side."""
        self._just_put: set[str] = set()
        """What is found there next under these names is what was put."""
        self._gone: set[str] = set()
        self._leases: list[Lease] = []
        self._lost, self._away = False, False
        self._lock = threading.RLock()

    def is_empty(self) -> bool:
        """Whether nothing is kept there. Raises InputError where that cannot be known."""
        try:
            return not any(info.is_file for info in self._listed("", recursive=True))
        except OSError as error:
            raise InputError(self._in_words(error)) from None

    def remove_if_unused(self) -> None:
        with contextlib.suppress(OSError, InputError):
            if self.is_empty():
                self._filesystem.delete_dir(self._root)

    @contextlib.contextmanager
    def held(self, by: str, *, take_over: bool) -> Iterator[_LeaseHold]:
        """As RunFolder.held, by a lease. The one before is not waited for where it is taken over."""
        lease = Lease(self._filesystem, f"{self._root}/{by}.lease")
        try:
            if take_over:
                lease.write()
            elif not lease.take():
                raise InputError(
                    f"{self.uri}: another process runs this; wait for it, or `planaria stop {self.uri}` first"
                )
        except OSError as error:
            raise InputError(self._in_words(error)) from None
        self._leases.append(lease)
        # One that others may take over is written once: writing it anew could undo their taking it.
        refreshed = contextlib.nullcontext() if take_over else _again_and_again(lambda: self._refresh(lease), REFRESH_S)
        try:
            with refreshed:
                yield _LeaseHold(self)
        finally:
            self._leases.remove(lease)
            with contextlib.suppress(OSError):
                lease.release()

    def check_held(self) -> None:
        """Raises TakenOver where another process has taken this one's place, as far as the latest look shows."""
        if self._lost:
            raise TakenOver(f"{self.uri}: another process has gone on with this run; this one stops")

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """While the body runs, a thread keeps both sides equal."""
        with _again_and_again(self._settle_or_warn, EVERY_S):
            yield

    def settle(self) -> None:
        """Make both sides equal. Raises RunError where that fails, TakenOver where another process has taken over."""
        try:
            with self._lock:
                self._look()
                self._push()
                self._pull()
        except OSError as error:
            raise RunError(f"{self._in_words(error)}, then `planaria resume {self.uri}`") from None

    def fetch(self) -> None:
        """Get what is there, but for models, at the beginning. Raises InputError where it cannot be reached."""
        try:
            with self._lock:
                self._pull(models=False)
        except OSError as error:
            raise InputError(self._in_words(error)) from None

    def leave(self, name: str) -> None:
        """An empty file there, for whoever works with the folder. Raises InputError."""
        try:
            with self._filesystem.open_output_stream(f"{self._root}/{name}"):
                pass
        except OSError as error:
            raise InputError(self._in_words(error)) from None

    def forget(self, name: str) -> None:
        """Remove a file or a model's folder here, and soon there."""
        with self._lock:
            path = self.local / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            self._gone.add(name)

    def put_store(self, database: str, artifacts: str) -> None:
        """Put the embedded MLflow store, as one consistent file, and its artifacts, in place of an earlier one's.
        Raises RunError."""
        if not (self.local / database).exists():
            return
        try:
            self._put_store(database, artifacts)
        except OSError as error:
            raise RunError(f"{self._in_words(error)}, then `planaria resume {self.uri}`") from None

    def _put_store(self, database: str, artifacts: str) -> None:
        with tempfile.TemporaryDirectory(prefix="planaria-") as temporary:
            copy = Path(temporary) / database
            with contextlib.closing(sqlite3.connect(self.local / database)) as source:
                with contextlib.closing(sqlite3.connect(copy)) as target:
                    source.backup(target)
            with self._lock:
                self._look()
                if any(info.is_file for info in self._listed(artifacts, recursive=True)):
                    self._filesystem.delete_dir(f"{self._root}/{artifacts}")
                for path in sorted((self.local / artifacts).rglob("*")):
                    if path.is_file():
                        self._put(str(path.relative_to(self.local)), path.read_bytes())
                self._put(database, copy.read_bytes())

    def _look(self) -> None:
        """As `check_held`, by a look now."""
        self._lost = self._lost or any(lease.is_lost() for lease in self._leases)
        self.check_held()

    def _push(self) -> None:
        told = self._told()
        here = self._units_here()
        here.pop(_SUMMARY, None)
        for unit in list(self._gone - here.keys()):
            self._drop_there(unit)
        self._gone.clear()
        for unit, files in here.items():
            if self._here.get(unit) != files:
                try:
                    for name, *_ in files:
                        self._put(name, (self.local / name).read_bytes())
                except FileNotFoundError:  # as below
                    continue
                self._here[unit] = files
                self._just_put.add(unit)
        if told is not None and self._here.get(_SUMMARY) != told[0]:
            self._put(_SUMMARY, told[1])
            self._here[_SUMMARY] = told[0]
            self._just_put.add(_SUMMARY)

    def _told(self) -> tuple[Files, bytes] | None:
        """The summary as it is now. What it tells of was written before it, so what is put between this look and the
        summary itself is no older: a run that is done there is there whole, whenever this process is killed."""
        with contextlib.suppress(FileNotFoundError):
            return self._looks((_SUMMARY,)), (self.local / _SUMMARY).read_bytes()
        return None

    def _pull(self, models: bool = True) -> None:
        here, there = self._units_here(), self._units_there(models)
        for unit, files in there.items():
            if unit in self._just_put:
                self._just_put.remove(unit)
            elif self._there.get(unit) == files or unit in self._gone or here.get(unit) != self._here.get(unit):
                continue
            else:
                try:
                    self._get(unit, files)
                except (FileNotFoundError, _Replaced):  # meanwhile; the next look finds what there is
                    continue
                self._here[unit] = self._units_here()[unit]
            self._there[unit] = files
        for unit in [unit for unit in self._there if unit not in there and _is_model(unit) and models]:
            shutil.rmtree(self.local / unit, ignore_errors=True)
            self._here.pop(unit, None)
            del self._there[unit]

    def _units_here(self) -> Units:
        names = [path.name for path in self.local.iterdir() if path.is_file()]
        units: dict[str, tuple[str, ...]] = {name: (name,) for name in names if not name.startswith((".", _STORE))}
        folders = [self.local / "model", *(self.local / "models").glob("[!.]*")]
        for folder in (path for path in folders if path.is_dir()):
            inside = tuple(str(path.relative_to(self.local)) for path in sorted(folder.iterdir()))
            units[str(folder.relative_to(self.local))] = inside
        found: Units = {}
        for unit, inside in units.items():
            with contextlib.suppress(FileNotFoundError):
                found[unit] = self._looks(inside)
        return found

    def _looks(self, names: tuple[str, ...]) -> Files:
        stats = [(name, (self.local / name).stat()) for name in names]
        return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)

    def _units_there(self, models: bool) -> Units:
        infos = [info for info in self._listed("") if info.is_file and (info.size or 0) <= _LARGEST_BYTES]
        units: Units = {
            info.base_name: (_print(info.base_name, info),)
            for info in infos
            if _FILE.fullmatch(info.base_name)
            and not info.base_name.startswith(_STORE)
            and not info.base_name.endswith((".lease", ".html"))
        }
        inside: dict[str, list[tuple[str, int, int]]] = {}
        for info in (info for top in _MODELS if models for info in self._listed(top, recursive=True)):
            if info.is_file:
                name = info.path[len(self._root) + 1 :]
                folder, _, file = name.rpartition("/")
                if _MODEL.fullmatch(folder) and _FILE.fullmatch(file) and (info.size or 0) <= _LARGEST_BYTES:
                    inside.setdefault(folder, []).append(_print(name, info))
        for folder, files in inside.items():
            if any(name == f"{folder}/{_LAST_OF_A_MODEL}" for name, *_ in files):
                units[folder] = tuple(sorted(files))
        return units

    def _get(self, unit: str, files: Files) -> None:
        """A file or a model's folder, which others find whole or not at all."""
        target, partial = self.local / unit, self.local / f".{unit.replace('/', '-')}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, size, _ in files:
            with self._filesystem.open_input_stream(f"{self._root}/{name}") as stream:
                content = stream.read()
            if len(content) != size:
                raise _Replaced(name)
            (partial / name.rpartition("/")[2]).write_bytes(content)
        target.parent.mkdir(exist_ok=True)
        if _is_model(unit):
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            return
        (partial / unit).replace(target)
        partial.rmdir()

    def _put(self, name: str, content: bytes) -> None:
        with self._filesystem.open_output_stream(f"{self._root}/{name}") as stream:
            stream.write(content)

    def _drop_there(self, unit: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            remove = self._filesystem.delete_dir if _is_model(unit) else self._filesystem.delete_file
            remove(f"{self._root}/{unit}")
        self._here.pop(unit, None)
        self._there.pop(unit, None)
        self._gone.discard(unit)

    def _listed(self, name: str, *, recursive: bool = False) -> list[fs.FileInfo]:
        folder = f"{self._root}/{name}".rstrip("/")
        found: list[fs.FileInfo] = self._filesystem.get_file_info(
            fs.FileSelector(folder, allow_not_found=True, recursive=recursive)
        )
        return found

    def _refresh(self, lease: Lease) -> None:
        with contextlib.suppress(OSError):  # whoever watches it sees it grow old
            if lease.is_lost():
                self._lost = True
            else:
                lease.write()

    def _settle_or_warn(self) -> None:
        try:
            self.settle()
        except TakenOver:
            return  # the run itself is told by its hold
        except RunError as error:
            if not self._away:
                logger.warning("%s; trying again", error)
            self._away = True
            return
        if self._away:
            logger.warning("%s: can be reached again", self.uri)
        self._away = False

    def _in_words(self, error: OSError) -> str:
        reason = one_line(error.strerror or str(error))[:300]
        return f"{self.uri}: cannot be reached ({reason}); check the address, the network and your rights there"


class _LeaseHold:
    """A process's right to drive or write, by what its leases showed when they were last looked at."""

    def __init__(self, mirror: Mirror) -> None:
        self.check = mirror.check_held


class _Replaced(Exception):
    """A file is no longer the one that was listed."""


@contextlib.contextmanager
def _again_and_again(work: Callable[[], None], every_s: float) -> Iterator[None]:
    over = threading.Event()

    def loop() -> None:
        while not over.wait(every_s):
            try:
                work()
            except Exception:
                logger.exception("storage could not be kept in step; trying again")

    thread = threading.Thread(target=loop, name="planaria-storage", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _is_model(unit: str) -> bool:
    return unit.partition("/")[0] in _MODELS


def _print(name: str, info: fs.FileInfo) -> tuple[str, int, int]:
    return name, info.size or 0, info.mtime_ns or 0
