"""What the app knows between two requests: the settings on screen, the open base and dataset, jobs.

One user, one desktop: the settings are kept in a file, so that a reload, a second tab or a restart
shows what was there. Facts read from disk are cached until the files change.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lycogui import guard
from lycogui.jobs import Jobs
from lycoris import config, devices, durable, families, plan
from lycoris.config import Config
from lycoris.data import folder
from lycoris.data.folder import Dataset
from lycoris.errors import LycorisError
from lycoris.families import Family
from lycoris.plan import Plan
from lycoris.runs import RunFolder

T = TypeVar("T")
COMPARISONS = "comparisons"


class Workspace:
    """The app's own state. `settings` is the file the settings on screen are kept in."""

    def __init__(self, settings: Path):
        self.settings = settings
        self.config = self._remembered()
        self._lock = threading.RLock()
        self._cache: dict[Any, tuple[Any, Any]] = {}
        self._folders = {self.runs_folder}
        self._roots: set[Path] = set()
        self.device = devices.choose("auto")
        self.jobs = Jobs(lambda: sorted(self._folders))

    @property
    def runs_folder(self) -> Path:
        return Path(self.config.output.folder).expanduser()

    @property
    def comparisons_folder(self) -> Path:
        return self.runs_folder / COMPARISONS

    def remember(self, run: Config) -> None:
        """The settings on screen have changed; they are kept on disk."""
        with self._lock:
            if run == self.config:
                return
            self.config = run
            self._folders.add(self.runs_folder)
            durable.write_text(self.settings, config.dump(run))

    def keep(self, name: str, facts: dict[str, Any]) -> None:
        """What stands on the page and is no setting of a run; kept in a file beside the settings.
        """
        if facts != self.kept(name):
            durable.write_text(self._kept(name), json.dumps(facts, ensure_ascii=False))

    def kept(self, name: str) -> dict[str, Any]:
        """What was kept under that name; empty where there is nothing."""
        try:
            return json.loads(self._kept(name).read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return {}

    def _kept(self, name: str) -> Path:
        return self.settings.with_name(f"{name}.json")

    def _remembered(self) -> Config:
        """The settings of last time; those that work out of the box where there are none.

        A file that cannot be used any more is set aside, not deleted.
        """
        if not self.settings.is_file():
            return config.load()
        try:
            return config.load(self.settings)
        except LycorisError as error:
            aside = self.settings.with_suffix(".unusable.toml")
            self.settings.replace(aside)
            guard.log.warning("The last settings cannot be used: %s They are kept in %s.", error,
                              aside)
            return config.load()

    def family(self, run: Config) -> Family:
        """The base model's facts, read again only when its files have changed."""
        base = config.find(run.model.base)
        stamps = tuple(_stamp(base / name) for name in (
            "model_index.json", "unet", "text_encoder", "vae", "scheduler", "tokenizer"))
        return self._cached(("family", base, run.model.family), stamps,
                            lambda: families.open_base(base, run.model.family))

    def dataset(self, run: Config) -> Dataset:
        return self.open_folder(config.find(run.dataset.folder))

    def open_folder(self, path: Path) -> Dataset:
        """A dataset folder, scanned again when anything in it has changed; from now on its pictures
        may be shown."""
        found = self._cached(("dataset", path), _folder_stamp(path), lambda: folder.scan(path))
        self._roots.add(path.resolve())
        return found

    def may_show(self, path: Path) -> bool:
        """Is this a folder that was opened as a dataset?"""
        return path.resolve() in self._roots

    def plan(self, run: Config) -> Plan:
        """The plan for the size; a missing dataset leaves it without pictures."""
        try:
            dataset = self.dataset(run)
        except LycorisError:
            dataset = None
        return plan.make(run, family=self.family(run), dataset=dataset, need_dataset=False)

    def comparisons(self) -> list[RunFolder]:
        """The comparisons made in the runs folder, the newest first."""
        try:
            names = sorted((e.name for e in os.scandir(self.comparisons_folder) if e.is_dir()),
                           reverse=True)
        except FileNotFoundError:
            return []
        return [self.jobs.run(self.comparisons_folder / name) for name in names]

    def comparison(self, name: str = "") -> RunFolder | None:
        """The comparison with that id; the latest where none is named."""
        found = self.comparisons()
        if not name:
            return found[0] if found else None
        return next((run for run in found if run_id(run.path) == name), None)

    def painted_root(self, name: str) -> Path | None:
        """The folder of the run or comparison with that id."""
        for run in (*self.jobs.runs(), *self.comparisons()):
            if run_id(run.path) == name:
                return run.path
        return None

    def _cached(self, key: Any, stamp: Any, make: Callable[[], T]) -> T:
        with self._lock:
            held = self._cache.get(key)
            if held is None or held[0] != stamp:
                held = (stamp, make())
                self._cache[key] = held
                while len(self._cache) > 32:
                    self._cache.pop(next(iter(self._cache)))
            return held[1]


def run_id(path: Path) -> str:
    """A name for a run folder that can stand in an address."""
    return hashlib.blake2b(str(path.resolve()).encode(), digest_size=8).hexdigest()


def stamp_name() -> str:
    """A folder's name from the time, for comparisons."""
    return time.strftime("%Y%m%d-%H%M%S")


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _folder_stamp(path: Path) -> tuple[Any, ...]:
    """Names, sizes and times of a folder's files: cheap, and different after any change."""
    try:
        with os.scandir(path) as entries:
            return tuple(sorted((e.name, s.st_mtime_ns, s.st_size)
                                for e in entries if (s := e.stat())))
    except OSError:
        return ()
