"""The house's layer table, held against the imports that the sources really have.

Every file under ``src/qlassify`` is parsed. An import counts wherever it stands: at the top, inside a function, or
under ``TYPE_CHECKING``; a type is knowledge of a room too. The other house rules that a parser can check stand here as
well: who imports torch and transformers' model classes, relative imports, sizes, docstrings.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import qlassify

ROOT = Path(qlassify.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

LAYERS = {
    0: {"errors", "masking", "seeding", "terminal", "version", "demo_corpus", "durable"},
    1: {"config", "contracts", "kernels"},
    2: {"quant", "formats", "data", "planning"},
    3: {"methods", "models"},
    4: {"training", "evaluation", "tracking"},
    5: {
        "pipeline",
        "multi_classifier",
        "stepwise",
        "base_model",
        "probing",
        "forecasting",
        "preparation",
        "prospects",
        "job",
        "scoring",
        "calibrating",
        "dense_copies",
        "comparing",
        "differences",
        "repeating",
        "auditing",
        "assessment",
        "reporting",
        "artifact",
        "classifier_record",
        "digests",
        "recording",
        "run_notes",
        "unwritten",
        "peft_classifier",
        "runs",
        "run_lock",
        "quantization",
        "conversion",
        "inspection",
        "export",
    },
    6: {"cli", "serving", "tuning", "distributed", "estimator"},
}
ROOMS = {room: layer for layer, rooms in LAYERS.items() for room in rooms}
STRANGERS = {frozenset(("methods", "models"))}
"""Rooms of one layer that must not know each other."""
WITHOUT_TORCH = {"config", "contracts", "data", "planning"}
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70


def name_of(path: Path) -> str:
    """``data.packing`` for ``data/packing.py``; ``data`` for its ``__init__.py``; empty for the package's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.partition(".")[0]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


MODULES = {name_of(path): path for path in FILES}


@cache
def imports_of(path: Path) -> tuple[tuple[str, int], ...]:
    """(full dotted name, line) of everything that a file imports; ``from a import b`` gives ``a.b``."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return tuple(found)


def own_imports(path: Path) -> Iterator[tuple[str, int]]:
    """(module inside the package, line) of each import of our own; a name in a module stands for the module."""
    for full, line in imports_of(path):
        if full.partition(".")[0] != "qlassify":
            continue
        inner = full.removeprefix("qlassify").removeprefix(".")
        while inner and inner not in MODULES:
            inner = inner.rpartition(".")[0]
        yield inner, line


def test_every_room_has_a_layer() -> None:
    rooms = {room_of(name) for name in MODULES} - {""}
    assert rooms - set(ROOMS) == set(), "a new room must be put into the layer table"


def test_modules_import_only_from_their_layer_and_below() -> None:
    wrong = []
    for module, path in MODULES.items():
        room = room_of(module)
        if room == "":  # the public face names everything
            continue
        for imported, line in own_imports(path):
            target = room_of(imported)
            if target == "":
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports the public face instead of the module")
            elif ROOMS[target] > ROOMS[room] or frozenset((room, target)) in STRANGERS:
                wrong.append(f"{path.relative_to(ROOT)}:{line} (L{ROOMS[room]}) imports {imported} (L{ROOMS[target]})")
    assert wrong == []


def test_the_layer_check_sees_imports_in_functions_and_under_type_checking() -> None:
    """The checks above are only worth something if the parser finds what is hidden."""
    seen = {inner for inner, _ in own_imports(MODULES["cli.train"])}
    assert {"job", "training.loop", "config.files"} <= seen
    assert "torch" in {full for full, _ in imports_of(MODULES["seeding"])}


def test_no_module_imports_itself_in_a_circle() -> None:
    """Rooms of one layer may know each other; modules in a circle could not be read one after another."""
    graph = {module: {inner for inner, _ in own_imports(path)} - {""} for module, path in MODULES.items() if module}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for inner in graph[module] - {module}:
                visit(inner, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("room", sorted(WITHOUT_TORCH))
def test_rooms_without_torch_do_not_name_it(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for module, path in MODULES.items()
        if room_of(module) == room
        for full, line in imports_of(path)
        if full.partition(".")[0] == "torch"
    ]
    assert wrong == []


def test_config_reaches_no_torch_by_any_road() -> None:
    """Follow every import from ``config`` through our own modules, functions included."""
    waiting = [module for module in MODULES if room_of(module) in ("config", "contracts")]
    reached = set(waiting)
    while waiting:
        module = waiting.pop()
        for inner, _ in own_imports(MODULES[module]):
            if inner not in reached:
                reached.add(inner)
                waiting.append(inner)
    heavy = {
        f"{module} imports {full}"
        for module in reached
        for full, _ in imports_of(MODULES[module])
        if full.partition(".")[0] in ("torch", "transformers", "tokenizers", "safetensors")
    }
    assert heavy == set()


def test_only_the_backbone_imports_model_classes_of_transformers() -> None:
    def is_model_class(full: str) -> bool:
        last = full.rpartition(".")[2]
        return full.partition(".")[0] == "transformers" and (
            last.startswith("AutoModel")
            or last.endswith(("Model", "ForSequenceClassification", "ForCausalLM"))
            or full.startswith(("transformers.models", "transformers.modeling_"))
            or full == "transformers"
        )

    importers = {module for module, path in MODULES.items() for full, _ in imports_of(path) if is_model_class(full)}
    assert importers == {"models.backbone"}


def test_imports_are_absolute() -> None:
    relative = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert relative == []


def test_files_fit_their_ceiling() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: size for name, size in sizes.items() if size > MAX_FILE_LINES} == {}


def test_functions_fit_a_screen() -> None:
    """From ``def`` to the last line; decorators are not counted."""
    long = {}
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = lines
    assert long == {}


def _public_without_docstring(path: Path) -> Iterator[str]:
    """Public modules, classes, functions and methods without a docstring; overloads and dunders are exempt."""
    tree = tree_of(path)
    if ast.get_docstring(tree) is None:
        yield f"{path.relative_to(ROOT)}: module"
    waiting: list[tuple[ast.AST, str]] = [(tree, "")]
    while waiting:
        parent, prefix = waiting.pop()
        for node in ast.iter_child_nodes(parent):
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if node.name.startswith("_"):
                continue
            if ast.get_docstring(node) is None:
                yield f"{path.relative_to(ROOT)}:{node.lineno} {prefix}{node.name}"
            if isinstance(node, ast.ClassDef):
                waiting.append((node, f"{node.name}."))


def test_everything_public_says_what_it_is() -> None:
    assert [problem for path in FILES for problem in _public_without_docstring(path)] == []
