"""The architecture, held: imports only go down, Gradio is upstairs only, rooms stay small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

ENGINE, PAGE = ROOT / "lycoris", ROOT / "lycogui"
FLOORS = {
    1: ("errors", "durable", "knobs", "settings", "units", "words", "config", "events", "runs",
        "runpresets"),
    2: ("original", "modelfiles", "chosen",
        "registry", "known", "layers", "streams", "crew", "tensorfile", "schedules",
        "objectives", "optimizers",
        "samplers", "devices", "guideline", "algorithms", "families", "captioners", "presetfile",
        "presets", "swapping", "unetnames", "paths", "effort", "products", "quantised", "lowrank",
        "progress", "prompts", "emphasis", "embeddings",
        "weightings", "distances", "timesteps", "noises",
        "promptfile", "hub"),
    3: ("modelout",
        "data", "assignments", "sizes", "published", "metadata", "thumbnail", "plan",
        "following", "adapterfile",
        "adapter", "slot", "network", "checkpoint", "sampling", "contestants", "grid", "wrapper",
        "dialects", "sources", "deltas", "outfile", "peftfolder", "provenance", "surprises",
        "weigher", "choose", "goals", "advice", "blame", "kohya", "recipes", "footprint", "holding",
        "memory", "relief", "machine", "disk", "outlook", "tracing", "activations",
        "writing", "resuming",
        "compiling", "feed", "conditions", "validating", "lesson", "learner", "stepping", "keeping",
        "showing", "loading",
        "kohya_loss", "kohya_data", "kohya_blocks", "kohya_course",
        "kohya_file", "focus",
        "starting", "sparing", "curves", "report", "eventfile"),
    4: ("trainer", "sample", "compare", "caption", "inspect", "merge", "extract", "resize",
        "convert"),
    5: ("arguments", "terminal", "follow", "tools", "estimate", "choices", "calibration",
        "readers", "survey", "__main__", "__init__"),
}
# An entry that is another with one thing changed.
INHERITS = {"dylora": "lora", "boft": "diag_oft", "sdxl": "sd"}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
# What the page may know of the engine: facts, names, the plan; never weights.
FOR_THE_PAGE = {"runpresets", "known", "hub",
                "errors", "durable", "knobs", "settings", "config", "events", "runs", "devices",
                "families", "presets", "algorithms", "captioners", "guideline", "plan", "following",
                "footprint", "memory",
                "relief", "machine", "disk", "outlook", "choose", "advice", "recipes",
                "contestants", "optimizers", "schedules", "data.folder", "data.gather",
                "data.captions", "data.epoch", "focus",
                "promptfile", "report", "resuming"}
HEAVY = {"diffusers", "transformers", "accelerate", "bitsandbytes", "tokenizers"}
CELLAR_MAY_USE = {"psutil"}  # a process's start time, on every system


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    """Absolute module names a file imports; a name imported from a package counts as its module."""
    tree = ast.parse(path.read_text("utf-8"))
    nodes = tree.body if top_only else list(ast.walk(tree))
    package = path.relative_to(ROOT).with_suffix("").parts
    package = package[:-1]
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[:len(package) - node.level + 1]) if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = (ROOT / home.replace(".", "/") / f"{alias.name}.py")
                folder = (ROOT / home.replace(".", "/") / alias.name)
                found.add(f"{home}.{alias.name}" if inner.exists() or folder.is_dir() else home)
    return found


def room(module: str) -> str:
    """lycoris.data.folder -> data.folder; lycoris -> __init__."""
    return module.partition(".")[2] or "__init__"


@pytest.mark.parametrize("path", sources(ENGINE), ids=lambda p: str(p.relative_to(ROOT)))
def test_engine_imports_only_go_down(path: Path) -> None:
    own = ".".join(path.relative_to(ENGINE).with_suffix("").parts)
    floor = FLOOR_OF[own.partition(".")[0]]
    for module in imports(path):
        if module.partition(".")[0] != "lycoris":
            continue
        other = room(module)
        head = other.partition(".")[0]
        if head == "__init__":  # the version, nothing else
            continue
        assert FLOOR_OF[head] <= floor, f"{own} reaches up to {other}"
        if floor == 4 and FLOOR_OF[head] == 4:
            pytest.fail(f"the verb {own} imports the verb {other}")


@pytest.mark.parametrize("name", FLOORS[1])
def test_cellar_needs_only_the_standard_library(name: str) -> None:
    files = sources(ENGINE / name) or [ENGINE / f"{name}.py"]
    outside = {m.partition(".")[0] for file in files for m in imports(file)} - {"lycoris"}
    assert outside <= set(sys.stdlib_module_names) | CELLAR_MAY_USE


@pytest.mark.parametrize("folder", ["algorithms", "families", "captioners"])
def test_catalogue_entries_know_no_other_entry(folder: str) -> None:
    for path in (ENGINE / folder).glob("*.py"):
        if path.name == "__init__.py":
            continue
        for module in imports(path):
            head = f"lycoris.{folder}."
            own = INHERITS.get(path.stem, "-")
            assert not module.startswith(head) or module == head + own, (
                f"{path.name} imports the entry {module}")


@pytest.mark.parametrize("path", sources(ENGINE), ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_libraries_are_imported_inside_functions(path: Path) -> None:
    assert not {m.partition(".")[0] for m in imports(path, top_only=True)} & HEAVY


@pytest.mark.parametrize("path", sources(PAGE), ids=lambda p: str(p.relative_to(ROOT)))
def test_page_knows_facts_and_never_weights(path: Path) -> None:
    for module in imports(path):
        if module.partition(".")[0] == "lycoris":
            other = room(module)
            known = other in FOR_THE_PAGE or other.partition(".")[0] in (
                FOR_THE_PAGE - {"data"}) or other == "__init__"
            assert known, f"{path.name} imports lycoris.{other}"


def test_tabs_never_import_each_other() -> None:
    for path in (PAGE / "tabs").glob("*.py"):
        others = {m for m in imports(path) if m.startswith("lycogui.tabs.")}
        assert not others, f"{path.name} imports {others}"


@pytest.mark.parametrize("path", sources(ENGINE), ids=lambda p: str(p.relative_to(ROOT)))
def test_engine_has_no_gradio_and_prints_nothing(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    printed = [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
    assert not printed or path.name == "__main__.py"
    assert "gradio" not in {m.partition(".")[0] for m in imports(path)}


@pytest.mark.parametrize("name", ["trainer", "feed", "lesson", "keeping",
                                  "network", "plan", "sampling", "assignments"])
def test_machinery_names_no_algorithm_and_no_family(name: str) -> None:
    from lycoris import algorithms, families

    tree = ast.parse((ENGINE / f"{name}.py").read_text("utf-8"))
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)
             and isinstance(n.value, str)}
    assert not texts & {*algorithms.catalogue(), *families.catalogue()}


def test_broad_excepts_stand_only_where_errors_become_words() -> None:
    allowed = {"lycoris/__main__.py", "lycoris/sparing.py", "lycogui/guard.py",
               "lycogui/routes.py"}
    pattern = re.compile(r"except(\s+(Exception|BaseException).*)?:")
    found = {str(path.relative_to(ROOT)) for folder in (ENGINE, PAGE) for path in sources(folder)
             if pattern.search(path.read_text("utf-8"))}
    assert found <= allowed


def test_starting_the_page_loads_no_model_library() -> None:
    code = ("import sys; from pathlib import Path; import tempfile\n"
            "from lycogui import ui\nfrom lycogui.workspace import Workspace\n"
            "w = Workspace(Path(tempfile.mkdtemp()) / 'last.toml')\n"
            "ui.build(w); w.jobs.close()\n"
            "print(sorted({'diffusers', 'transformers', 'bitsandbytes', 'lycoris.network'}"
            " & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_importing_the_package_costs_nothing() -> None:
    code = "import sys, lycoris; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    assert done.stdout.strip() == "False"


def test_rooms_stay_small() -> None:
    big = []
    for path in [*sources(ENGINE), *sources(PAGE), ROOT / "app.py"]:
        text = path.read_text("utf-8")
        if len(text.splitlines()) > 400:
            big.append(f"{path.name}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno:
                length = node.end_lineno - node.lineno + 1
                if length > 60:
                    big.append(f"{path.name}:{node.name}: {length} lines")
    assert not big, big
