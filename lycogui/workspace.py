"""What the app knows between two requests: the settings on screen, the open base and dataset, jobs.

One user, one desktop: the settings are kept in a file, so that a reload, a second tab or a restart
shows what was there. Facts read from disk are cached until the files change.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from lycogui import guard
from lycogui.jobs import Jobs
from lycoris import (
    config,
    contestants,
    devices,
    disk,
    durable,
    families,
    following,
    hub,
    knobs,
    plan,
)
from lycoris.data import folder, gather
from lycoris.data.folder import Dataset
from lycoris.errors import DatasetError, LycorisError, RunError
from lycoris.families import Family
from lycoris.plan import Plan
from lycoris.runs import RunFolder
from lycoris.settings import Config, DatasetConfig

T = TypeVar("T")
COMPARISONS, TOOLS, ADAPTERS, MODELS = "comparisons", "tools", "adapters", "models"
BASE = "base"
LOOK_EVERY = 3  # seconds
SAMPLES = "datasets"  # copies of the samples that were changed, beside the runs


class Workspace:
    """The app's own state. `settings` is the file the settings on screen are kept in."""

    def __init__(self, settings: Path):
        self.settings = settings
        self.config = self._remembered()
        # the base whose recommended settings the form was given
        self.follows = self.kept(BASE).get("follows", self.config.model.base)
        self._lock = threading.RLock()
        self._cache: dict[Any, tuple[Any, Any]] = {}
        self._gathered: tuple[DatasetConfig | None, list[tuple[Path, Dataset]], Dataset | None]
        self._gathered = None, [], None
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

    @property
    def adapters_folder(self) -> Path:
        """Where the tools write adapters, beside the runs."""
        return self.runs_folder / ADAPTERS

    @property
    def models_folder(self) -> Path:
        """Where the tools write whole models."""
        return self.runs_folder / MODELS

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

    def follow(self, base: str) -> None:
        """The settings on screen are for this base from now on."""
        self.follows = base
        self.keep(BASE, {"follows": base})

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

    def base(self, run: Config) -> Family:
        """The facts of the base model itself, whatever model the sizes are shown for."""
        if config.known_model(run.model.family):
            run = replace(run, model=replace(run.model, family="auto"))
        return self.family(run)

    def base_problem(self, run: Config) -> LycorisError | None:
        """Why nothing can be trained on the base: its files, or the tokenizer it needs beside them;
        looked at every few seconds, for both may come."""
        def look() -> LycorisError | None:
            try:
                self.base(run).require_files()
            except LycorisError as error:
                return error
            return None

        return self._cached(("problem", run.model), int(time.monotonic() / LOOK_EVERY), look)

    def family(self, run: Config) -> Family:
        """The facts of the model that is planned for, read again only when its files have changed.
        """
        base = hub.found(config.find(run.model.base))
        stamps = tuple(_stamp(base / name) for name in (
            "", "model_index.json", "unet", "text_encoder", "vae", "scheduler", "tokenizer"))
        return self._cached(("family", run.model), stamps,
                            lambda: families.open_chosen(run.model))

    def facts(self, adapter: Path, run: Config) -> Mapping[str, Any]:
        """What an adapter's header tells, read again only when its file or the base changes."""
        try:
            family = self.base(run)
        except LycorisError:
            family = None
        return self._cached(("facts", adapter), (_stamp(adapter), id(family)),
                            lambda: contestants.facts(adapter, family))

    def dataset(self, run: Config) -> Dataset:
        """The main folder, whose captions are edited."""
        return self.open_folder(config.find(run.dataset.folder))

    def pictures(self, run: Config) -> Dataset:
        """Everything the run learns from: the main folder and the further ones; gathered again when
        the settings or one of the folders have changed."""
        settings, opened, found = self._gathered
        if settings == run.dataset and found is not None and all(
                self.open_folder(path) is held for path, held in opened):
            return found
        opened = []

        def scan(path: Path) -> Dataset:
            opened.append((path, self.open_folder(path)))
            return opened[-1][1]

        found = gather.gather(run.dataset, scan)
        self._gathered = run.dataset, opened, found
        return found

    def open_folder(self, path: Path) -> Dataset:
        """A dataset folder, scanned again when anything in it has changed; from now on its pictures
        may be shown."""
        found = self._cached(("dataset", path), _folder_stamp(path), lambda: folder.scan(path))
        self._roots |= {path.resolve(), *(inner.resolve() for inner in found.folders)}
        return found

    def may_show(self, path: Path) -> bool:
        """Is this a folder that was opened as a dataset?"""
        return path.resolve() in self._roots

    def writable(self, home: Path) -> Path:
        """The folder where captions of this one are written: itself; for a sample that comes with
        the program, a copy of it beside the runs, which is the dataset from now on."""
        if not home.resolve().is_relative_to(config.ASSETS / "datasets"):
            return home
        with self._lock:
            mine = self.runs_folder.parent / SAMPLES / home.name
            if not mine.is_dir():
                with durable.whole_folder(mine) as fresh:
                    for file in home.iterdir():
                        if file.is_file():
                            durable.copy(file, fresh / file.name)
            self.remember(replace(self.config, dataset=replace(
                self.config.dataset, folder=str(mine))))
        return mine

    def plan(self, run: Config) -> Plan:
        """The plan for the size; a missing dataset leaves it without pictures."""
        try:
            dataset = self.pictures(run)
        except DatasetError:
            dataset = None
        family = self.family(run)
        if family.known is not None and run.dataset.resolution < family.resolution / 2:
            run = at_own_size(run, family)
        return plan.make(run, family=family, dataset=dataset, need_dataset=False)

    def ready(self, run: Config) -> Plan:
        """The plan of a run that may be put into the queue; a typed error says why it may not."""
        made = plan.make(run)
        disk.require(made, Path(run.output.folder).expanduser() / config.run_name(run))
        return made

    def enqueue(self, run: Config, **notes: Any) -> str:
        """A new run folder, waiting to be started; returns its name."""
        folder = plan.create(plan.make(run), **notes)
        self.jobs.enqueue(self.jobs.run(folder.path))
        return folder.name

    def adapters(self) -> list[tuple[str, str]]:
        """(label, path) of every adapter that is known, the newest first: runs, and what the tools
        made. A run is its folder, so that one of another folder is found whatever its name."""
        runs = [(run.path, run.adapter_file) for run in self.jobs.runs()]
        made = _made(self.adapters_folder.resolve())  # as the results name them
        found = sorted(((stamp, path) for path, file in [*runs, *made]
                        if (stamp := _stamp(file))), reverse=True)
        names = [path.name.removesuffix(".safetensors") for _, path in found]
        times = Counter(names)
        return [(name if times[name] == 1 else f"{name} in {path.parent}", str(path))
                for name, (_, path) in zip(names, found, strict=True)]

    @property
    def tools_folder(self) -> Path:
        """What the tools were asked for, and what came of it."""
        return self.runs_folder / TOOLS

    def tool_jobs(self, most: int | None = None) -> list[RunFolder]:
        """What the tools did and do, the newest first."""
        return self._folders_in(self.tools_folder, most)

    def comparisons(self) -> list[RunFolder]:
        """The comparisons made in the runs folder, the newest first."""
        return self._folders_in(self.comparisons_folder)

    def _folders_in(self, parent: Path, most: int | None = None) -> list[RunFolder]:
        try:
            names = sorted((e.name for e in os.scandir(parent) if e.is_dir()), reverse=True)
        except FileNotFoundError:
            return []
        return [self.jobs.run(parent / name) for name in names[:most]]

    def comparison(self, name: str = "") -> RunFolder | None:
        """The comparison with that id; the latest where none is named, but for one whose folder is
        just being made."""
        found = self.comparisons()
        if not name:
            return next((run for run in found if (run.path / "request.json").is_file()), None)
        return next((run for run in found if run_id(run.path) == name), None)

    def known_run(self, name: str) -> RunFolder:
        """The run of that id; RunError where there is none."""
        for run in self.jobs.runs():
            if run_id(run.path) == name:
                return run
        raise RunError("That run is no longer there.", "It may have been deleted or moved.")

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


def at_own_size(run: Config, family: Family) -> Config:
    """The run at the resolution the model was made for: the form's is another model's."""
    return knobs.replace(run, following.size_of(family))


def run_id(path: Path) -> str:
    """A name for a run folder that can stand in an address."""
    return hashlib.blake2b(str(path.resolve()).encode(), digest_size=8).hexdigest()


def new_folder(parent: Path) -> Path:
    """A new folder named after the time."""
    name, number = time.strftime("%Y%m%d-%H%M%S"), 1
    while True:
        try:
            return durable.make_folder(parent / (name if number == 1 else f"{name}-{number}"),
                                       new=True)
        except FileExistsError:
            number += 1


def _made(folder: Path) -> list[tuple[Path, Path]]:
    """(adapter, its file) in a folder: single files, and folders as PEFT saves them."""
    try:
        entries = [e for e in os.scandir(folder) if e.is_dir() or e.name.endswith(".safetensors")]
    except FileNotFoundError:
        return []
    found = []
    for entry in entries:
        with contextlib.suppress(LycorisError):  # a folder that holds something else
            file = contestants.parse(entry.path, folder).path
            assert file is not None
            found.append((Path(entry.path), file))
    return found


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
            found = sorted((e.name, s.st_mtime_ns, s.st_size, e.is_dir())
                           for e in entries if (s := e.stat()))
    except OSError:
        return ()
    inner = [_folder_stamp(path / name) for name, _, _, is_folder in found
             if is_folder and folder.REPEATED.fullmatch(name)]
    return *found, *inner
