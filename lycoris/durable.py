"""The only way anything is written that a user would miss.

A file is written beside its target under another name, flushed, fsynced and renamed over it, and
the folder is fsynced: whatever happens in between, a reader finds the old file or the new one,
whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .errors import DiskError

# Windows lets nobody replace or delete a file while another program reads it: seconds to wait.
PAUSES = (0.02, 0.1, 0.5, 1.0) if os.name == "nt" else ()


def write_bytes(path: Path | str, chunks: bytes | Iterable[bytes | memoryview], *,
                sync: bool = True) -> Path:
    """Replace the file at `path` atomically; `chunks` may stream. Raises DiskError.

    Without `sync` a power cut may leave it damaged: for what is checked and can be made again.
    """
    target = Path(path)
    if target.is_symlink():
        target = target.resolve()  # write through the link, never replace it
    if isinstance(chunks, bytes):
        chunks = (chunks,)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name[:40]}.{secrets.token_hex(6)}.tmp"
        with temporary.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        _patiently(lambda: temporary.replace(target))
        if sync:
            sync_folder(target.parent)
    except OSError as error:
        raise disk_error(error, target) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
    return target


def write_text(path: Path | str, text: str) -> Path:
    """As write_bytes, in UTF-8 and with the line ends as given."""
    return write_bytes(path, text.encode("utf-8"))


def append_line(path: Path, line: str) -> None:
    """Add one whole line; a line torn by a crash has no newline and readers leave it alone."""
    try:
        with path.open("ab") as file:
            if file.tell() and not _ends_with_newline(path):
                file.write(b"\n")  # a torn line of an earlier process must not swallow this one
            file.write(line.encode("utf-8") + b"\n")
    except OSError as error:
        raise disk_error(error, path) from error


def make_folder(path: Path, *, new: bool = False) -> Path:
    """Create the folder and its parents; with `new` it must not exist yet (FileExistsError)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=not new)
        sync_folder(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise disk_error(error, path) from error
    return path


@contextlib.contextmanager
def whole_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder that appears at `path` whole or not at all: the block writes into the one it is
    given, which is renamed at the end, and gone if the block does not come to its end.

    There must be nothing at `path` yet (FileExistsError), unless it is to `replace` the folder
    there, which stays until the new one is whole; should the power fail between two renames,
    `sweep` puts it back.
    """
    if path.exists() and not replace:
        raise FileExistsError(path)
    temporary = path.parent / f".{path.name[:40]}.{secrets.token_hex(6)}.part"
    try:
        yield make_folder(temporary, new=True)
        old = path.with_name(f".{path.name}.old")
        try:
            _put_back(old)
            if path.exists():
                _patiently(lambda: path.rename(old))
            _patiently(lambda: temporary.rename(path))
            sync_folder(path.parent)
        except OSError as error:
            raise disk_error(error, path) from error
        finally:
            _put_back(old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_back(old: Path) -> None:
    """The folder that was about to be replaced goes; where no other took its place, it is back."""
    target = old.with_name(old.name[1:].removesuffix(".old"))
    if old.is_dir():
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)


def copy(source: Path, target: Path) -> Path:
    """A durable copy of one file."""
    def chunks() -> Iterator[bytes]:
        with source.open("rb") as file:
            while chunk := file.read(2**24):
                yield chunk

    return write_bytes(target, chunks())


def remove(path: Path) -> None:
    """Delete one file that has been superseded; that it is gone already is fine."""
    try:
        _patiently(lambda: path.unlink(missing_ok=True))
    except OSError as error:
        raise disk_error(error, path, "deleted") from error


def remove_folder(path: Path) -> None:
    """Delete a folder and all in it; links in it go, what they lead to stays. It is out of sight at
    once, whole, also where a file of it cannot be deleted."""
    grave = path.parent / f".{path.name[:40]}.{secrets.token_hex(6)}.part"
    try:
        _patiently(lambda: path.rename(grave))
        shutil.rmtree(grave)
    except OSError as error:
        raise disk_error(error, path, "deleted") from error


def _patiently(act: Callable[[], object]) -> None:
    for pause in PAUSES:
        try:
            act()
            return
        except PermissionError:
            time.sleep(pause)
    act()


def sweep(folder: Path) -> None:
    """Delete temporary files that a killed process left in `folder` and below, and folders in it;
    one that was about to be replaced is put back."""
    for leftover in folder.rglob(".*.tmp"):
        remove(leftover)
    for leftover in folder.glob(".*.part"):
        shutil.rmtree(leftover, ignore_errors=True)
    for old in folder.glob(".*.old"):
        _put_back(old)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut (folders cannot be fsynced on Windows)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_error(error: OSError, path: Path, what: str = "written") -> DiskError:
    """The same failure in words: which file could not be `what`, why, and the way out."""
    if error.errno == errno.ENOSPC:
        free = _free_megabytes(path)
        return DiskError(
            f"The disk is full: {path} could not be written ({free} MB free).",
            "Free some space or choose another folder; what was there before is intact.", path)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DiskError(f"No permission: {path} could not be {what}.",
                         "Close the programs that use it, or choose a folder you may write to.",
                         path)
    return DiskError(f"{path} could not be {what}: {error.strerror or error}.",
                     "Check that the folder exists and the disk is well.", path)


def _free_megabytes(path: Path) -> int:
    existing = next((folder for folder in path.parents if folder.exists()), Path.cwd())
    return shutil.disk_usage(existing).free // 2**20


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
