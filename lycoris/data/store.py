"""What was encoded once, on disk for later runs: a folder of small files named by what they hold.

A file is found by a hash of everything that its tensors depend on, so it is never out of date: what
has changed has another name. A file that is damaged is as good as none, so none is fsynced. The
folder has a limit; the longest unused files go.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .. import durable, tensorfile
from ..errors import DatasetError, DiskError
from ..settings import Config

GIB = 2**30
FOLDER = "cache"  # in the folder of the runs
STALE = 3600  # seconds after which a file that is being written has been left by a killed process
VERSION = "1"  # of how pictures and captions are encoded: with another, nothing old is found


@dataclass(frozen=True)
class Size:
    files: int
    bytes: int


class Store:
    """Tensors by key in `folder`, of at most `limit` bytes; 0 keeps none."""

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        self.problem: DiskError | None = None  # why nothing more is written

    def get(self, key: str) -> dict[str, Tensor] | None:
        """What was put under the key; None where there is nothing, or nothing whole."""
        path = self._path(key)
        if not self.limit or not path.is_file():
            return None
        try:
            tensors, about = tensorfile.read(path, DatasetError)
            if about.get("sum") != tensorfile.digest(tensors):
                return None
            os.utime(path)  # used: it goes last
        except (DatasetError, OSError):
            return None
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep the tensors. A disk that takes no more ends the keeping, not the run."""
        if not self.limit or self.problem is not None:
            return
        try:
            tensorfile.write(self._path(key), tensors, {"sum": tensorfile.digest(tensors)},
                             sync=False)
        except DiskError as error:
            self.problem = error

    def tidy(self) -> Size:
        """Delete the longest unused files beyond the limit; what is there then."""
        found = sorted(self._files(), key=lambda each: each[1])
        total = sum(size for _, _, size in found)
        count = len(found)
        for path, used, size in found:
            left_over = path.suffix == ".tmp" and used < time.time() - STALE
            if total <= self.limit and not left_over:
                continue
            with contextlib.suppress(DiskError):  # another program reads it (Windows)
                durable.remove(path)
                total, count = total - size, count - 1
        return Size(count, total)

    def size(self) -> Size:
        sizes = [size for _, _, size in self._files()]
        return Size(len(sizes), sum(sizes))

    def clear(self) -> Size:
        """Delete everything; what there was."""
        found = self.size()
        for path, _, _ in list(self._files()):
            durable.remove(path)
        return found

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _files(self) -> Iterator[tuple[Path, float, int]]:
        """(path, when it was last used, bytes) of all that is ours in the folder."""
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            if path.suffix in (".safetensors", ".tmp"):
                try:
                    status = path.stat()
                except OSError:
                    continue  # another run has deleted it
                yield path, status.st_mtime, status.st_size


def of(run: Config) -> Store:
    """The store that a run's settings name."""
    own = run.dataset.cache_folder
    folder = Path(own).expanduser() if own else Path(run.output.folder).expanduser() / FOLDER
    return Store(folder, round(run.dataset.cache_limit * GIB))


def key(*parts: object) -> str:
    """The name of what depends on these parts and nothing else."""
    text = "\0".join([VERSION, *map(str, parts)]).encode()
    return hashlib.blake2b(text, digest_size=20).hexdigest()


def of_file(path: Path) -> str:
    """A hash of a file's bytes. Raises DatasetError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(f"{path.name} cannot be read: {error.strerror}.",
                           "Check its permissions, or take it out of the folder.",
                           [path]) from error
