"""Nothing is ever lost: whatever fails in between, the old file or the new one is there."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from lycoris import durable
from lycoris.errors import DiskError

STEPS = ["open", "write", "flush", "fsync", "rename"]


def test_write_and_replace(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "captions é 🙂.txt"
    durable.write_text(file, "one\r\ntwo")
    durable.write_text(file, "three")
    assert file.read_bytes() == b"three"
    assert os.listdir(file.parent) == [file.name]


def test_mode_is_kept_and_new_files_follow_the_umask(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    durable.write_text(file, "one")
    plain = tmp_path / "b.txt"
    plain.write_text("plain")
    assert file.stat().st_mode == plain.stat().st_mode
    file.chmod(0o600)
    durable.write_text(file, "two")
    assert file.stat().st_mode & 0o777 == 0o600


def test_links_are_written_through(tmp_path: Path) -> None:
    target, link = tmp_path / "real.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    durable.write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_any_failing_step_leaves_the_old_file_and_no_rest(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int) -> None:
    file = tmp_path / "a.txt"
    durable.write_text(file, "the old words")
    _break(monkeypatch, step, code)
    with pytest.raises(DiskError) as caught:
        durable.write_text(file, "the new words")
    monkeypatch.undo()
    assert file.read_text() == "the old words"
    assert os.listdir(tmp_path) == ["a.txt"]
    assert str(file) in caught.value.message and caught.value.fix


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _break(monkeypatch, "write", errno.ENOSPC)
    with pytest.raises(DiskError, match="disk is full"):
        durable.write_text(tmp_path / "a.txt", "words")


def test_a_really_full_disk(tmp_path: Path) -> None:
    """A 256 KiB file system: the good file stays, the error says what to do."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)],
                             capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        file = small / "a.bin"
        durable.write_bytes(file, b"x" * 100_000)
        with pytest.raises(DiskError, match="disk is full"):
            durable.write_bytes(file, b"y" * 200_000)
        assert file.read_bytes() == b"x" * 100_000
        assert os.listdir(small) == ["a.bin"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_kill_at_any_moment(tmp_path: Path) -> None:
    """A writer is killed forty times while it rewrites one file in a loop."""
    file = tmp_path / "caption.txt"
    texts = {f"{letter * 4000}" for letter in "abc"}
    durable.write_text(file, "a" * 4000)
    code = ("import sys; from lycoris import durable\n"
            "while True:\n"
            "    for letter in 'abc': durable.write_text(sys.argv[1], letter * 4000)\n")
    for number in range(40):
        writer = subprocess.Popen([sys.executable, "-c", code, str(file)], cwd=ROOT)
        time.sleep(0.08 + number * 0.002)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert file.read_text() in texts
    durable.sweep(tmp_path)
    assert os.listdir(tmp_path) == ["caption.txt"]


def test_sweep_reaches_the_folders_below(tmp_path: Path) -> None:
    for name in ("state/.step-000100.abc.tmp", "checkpoints/.x.abc.tmp", ".config.abc.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    (tmp_path / "state" / "step-000090").write_text("whole")
    durable.sweep(tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["step-000090"]


def test_a_file_that_someone_reads_is_replaced_and_removed_later(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: while another program reads it, a file can be neither replaced nor deleted."""
    monkeypatch.setattr(durable, "PAUSES", (0.0, 0.0))
    file = tmp_path / "a.txt"
    refused: list[str] = []

    def stubborn(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def act(self: Path, *args: Any, **kwargs: Any) -> Any:
            if refused.count(name) < 2:
                refused.append(name)
                raise PermissionError(errno.EACCES, "in use")
            return real(self, *args, **kwargs)

        return act

    monkeypatch.setattr(Path, "replace", stubborn("replace", Path.replace))
    durable.write_text(file, "new")
    assert file.read_text() == "new"
    monkeypatch.setattr(Path, "unlink", stubborn("unlink", Path.unlink))
    durable.remove(file)
    assert not file.exists() and refused == ["replace"] * 2 + ["unlink"] * 2


def test_a_file_that_cannot_be_deleted_is_a_typed_error(tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(DiskError, match="could not be deleted"):
        durable.remove(tmp_path / "a.txt")


def test_append_repairs_a_torn_line(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    durable.append_line(file, "whole")
    with file.open("ab") as out:
        out.write(b'{"torn": ')
    durable.append_line(file, "next")
    assert file.read_text().splitlines() == ["whole", '{"torn": ', "next"]


def _break(monkeypatch: pytest.MonkeyPatch, step: str, code: int) -> None:
    """Make one step of a durable write fail with an operating system's error."""

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    if step == "fsync":
        monkeypatch.setattr(durable.os, "fsync", fail)
    elif step == "rename":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        real: Callable[..., Any] = Path.open

        def opened(self: Path, *args: Any, **kwargs: Any) -> Any:
            if self.suffix != ".tmp":
                return real(self, *args, **kwargs)
            if step == "open":
                return fail()
            return _Broken(real(self, *args, **kwargs), step, fail)

        monkeypatch.setattr(Path, "open", opened)


class _Broken:
    """A file of which one method fails."""

    def __init__(self, file: Any, step: str, fail: Callable[..., Any]):
        self.file, self.step, self.fail = file, step, fail

    def __enter__(self) -> _Broken:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return self.fail if name == self.step else getattr(self.file, name)
