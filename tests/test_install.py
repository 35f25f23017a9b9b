"""The installer's choices: which PyTorch for which machine, and what is installed again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from lycogui import install

SMI = "| NVIDIA-SMI 580.1   Driver Version: 580.1   CUDA Version: {} |"


@pytest.mark.parametrize(("cuda", "cards", "build"), [
    ("13.0", "9.0", "cu130"), ("13.2", "12.0", "cu130"), ("12.8", "8.9", "cu128"),
    ("12.9", "8.6\n7.5", "cu128"), ("12.6", "8.6", "cu126"), ("12.7", "7.5", "cu126"),
    ("13.0", "6.1", "cu126"), ("12.8", "8.6\n5.2", "cu126"), ("12.4", "8.6", "cpu"),
    ("11.8", "6.1", "cpu"), ("13.0", "", "cu130")])
def test_the_build_for_a_driver_and_its_cards(cuda: str, cards: str, build: str) -> None:
    assert install.build_for(SMI.format(cuda), cards) == build


def test_no_card_no_cuda() -> None:
    assert install.build_for("", "") == "cpu"
    assert install.build_for("NVIDIA-SMI has failed because it couldn't communicate", "") == "cpu"


class Pip:
    """Records what would be installed; `refuse` makes calls with that word fail."""

    def __init__(self, refuse: str = ""):
        self.calls: list[str] = []
        self.refuse = refuse

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        text = " ".join(command)
        self.calls.append(text)
        failed = bool(self.refuse) and self.refuse in text
        return subprocess.CompletedProcess(command, int(failed), "", "")


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    made = Pip()
    monkeypatch.setattr(install.subprocess, "run", made)
    return made


def test_torch_comes_from_its_own_index_where_it_can(pip: Pip,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "reachable", lambda url: True)
    assert install.install_torch(["pip"], "cu128")
    assert pip.calls == [f"pip {install.TORCH} --index-url {install.INDEX}/cu128"]


def test_else_from_the_default_one(pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "reachable", lambda url: False)
    assert install.install_torch(["pip"], "cu128")
    assert pip.calls == [f"pip {install.TORCH}"]
    pip.calls.clear()
    assert install.install_torch(["pip"], "")
    assert pip.calls == [f"pip {install.TORCH}"]


def test_an_index_without_that_version_gives_another(pip: Pip,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "reachable", lambda url: True)
    pip.refuse = install.TORCH
    assert install.install_torch(["pip"], "cpu")
    assert pip.calls[-1] == f"pip {install.TORCH_RANGE} --index-url {install.INDEX}/cpu"


def test_nothing_is_installed_twice(pip: Pip, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "torch_build", lambda: "cpu")
    monkeypatch.setattr(install, "reachable", lambda url: False)
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    wanted = tmp_path / "requirements.txt"
    wanted.write_text("one")
    assert install.install(python, [wanted]) and len(pip.calls) == 2
    assert install.install(python, [wanted]) and len(pip.calls) == 2
    wanted.write_text("two")
    assert install.install(python, [wanted]) and len(pip.calls) == 4
    pip.refuse = "-r"
    wanted.write_text("three")
    assert not install.install(python, [wanted])
    pip.refuse = ""
    assert install.install(python, [wanted]), "a failed installation is tried again"


def test_an_index_out_of_reach_is_noticed() -> None:
    assert not install.reachable("http://127.0.0.1:9/torch/")
    assert not install.reachable("not an address")


def test_requirements_are_bounded_and_explained() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        assert ">=" in line and "<" in line, f"{line} has no bounds"
        name = line.split(">")[0]
        assert f"`{name}`" in readme, f"README does not say why {name} is here"


def test_the_installer_needs_the_standard_library_only() -> None:
    import ast
    import sys

    tree = ast.parse((ROOT / "lycogui" / "install.py").read_text("utf-8"))
    names = {alias.name.partition(".")[0] for node in ast.walk(tree)
             if isinstance(node, ast.Import) for alias in node.names}
    names |= {(node.module or "").partition(".")[0] for node in ast.walk(tree)
              if isinstance(node, ast.ImportFrom)}
    assert names <= set(sys.stdlib_module_names)
