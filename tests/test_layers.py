"""The directions of the layers and of the rooms of `runner`, held by parsing imports."""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("conf", "pruning", "results", "runner")
STANDARD = set(sys.stdlib_module_names)
# Who may know what, among the modules of `runner`; all others may not.
HYDRA = {
    "runner/command_line.py",
    "runner/config/compose.py",
    "runner/config/refusals.py",
    "runner/config/schemas.py",
    "runner/config/sweep.py",
    "runner/sweeps/launcher.py",
    "runner/sweeps/launchers.py",
    "runner/sweeps/callback.py",
    "runner/system/completion.py",
}
MLFLOW = "runner/tracking/"
DATASETS = "runner/data/"
FLOORS = {
    9: ("runner.__main__",),
    8: ("runner.command_line", "runner.interface"),
    7: (
        "runner.experiment",
        "runner.dry_run",
        "runner.evaluate",
        "runner.reproduce",
        "runner.sensitivity",
        "runner.tradeoff",
    ),
    6: ("runner.stages", "runner.sweeps", "runner.share", "runner.examples", "runner.export", "runner.serving"),
    5: ("runner.training", "runner.records", "runner.reference", "runner.benchmark"),
    4: ("runner.config", "runner.inspect", "runner.upload"),
    3: (
        "runner.data",
        "runner.models",
        "runner.tracking",
        "runner.runs",
        "runner.cache",
        "runner.speed",
        "runner.exports",
    ),
    2: ("runner.system",),
    1: ("pruning", "results", "runner.demo"),
}
"""Floor -> rooms: folders and modules that may import rooms of their own floor and of those below."""
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
VAGUE = {"utils", "util", "common", "base", "factory", "registry", "helpers", "misc"}


def modules(package: str) -> dict[str, ast.Module]:
    """Path from the root -> parsed source, for every module of a package."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {f.relative_to(ROOT).as_posix(): ast.parse(f.read_text(encoding="utf-8"), str(f)) for f in files}


def imports(tree: ast.AST, package: str, type_checking: bool = True) -> Iterator[str]:
    """Dotted names that a module of `package` imports, anywhere in it; `from a import b` gives a.b.

    Args:
        type_checking: also those under `if TYPE_CHECKING`, which do not run.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and _is_type_checking(node.test) and not type_checking:
            yield from imports(ast.Module(body=node.orelse, type_ignores=[]), package, type_checking)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:  # relative: inside its own package, whatever the depth
                source = f"{package}.{source}".rstrip(".")
            yield from (f"{source}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node, package, type_checking)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def knowing(package: str, *libraries: str, type_checking: bool = False) -> dict[str, set[str]]:
    """Modules of a package that import any of these libraries, and what of them."""
    found = {}
    for path, tree in modules(package).items():
        names = {name for name in imports(tree, package, type_checking) if name.split(".")[0] in libraries}
        if names:
            found[path] = names
    return found


def test_modules_were_found() -> None:
    least = {"conf": 1, "pruning": 8, "results": 5, "runner": 22}
    found = {package: len(modules(package)) for package in PACKAGES}
    assert {package: count for package, count in found.items() if count < least[package]} == {}
    assert sum(found.values()) >= 36
    assert {path for path in modules("runner") if path.startswith(DATASETS)} >= {"runner/data/question_answering.py"}


@pytest.mark.parametrize("text", [
    "import mlflow.entities",
    "from mlflow import MlflowClient",
    "def f():\n    import mlflow",
    "class A:\n    def f(self):\n        with x:\n            from mlflow.entities import Run",
    "try:\n    import mlflow\nexcept ImportError:\n    pass",
    "if TYPE_CHECKING:\n    pass\nelse:\n    import mlflow",
])  # fmt: skip
def test_an_import_is_seen_wherever_it_stands(text: str) -> None:
    assert [name.split(".")[0] for name in imports(ast.parse(text), "runner", type_checking=False)] == ["mlflow"]


def test_imports_for_the_type_checker_alone_are_told_apart() -> None:
    tree = ast.parse("if TYPE_CHECKING:\n    import datasets\nfrom . import models\nfrom .data import tagging")
    assert list(imports(tree, "runner", type_checking=False)) == ["runner.models", "runner.data.tagging"]
    assert "datasets" in set(imports(tree, "runner"))


def test_the_engine_imports_torch_and_the_standard_library_only() -> None:
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    for path, tree in modules("pruning").items():
        names = {name.split(".")[0] for name in imports(tree, path.rpartition("/")[0].replace("/", "."))}
        if path == "pruning/transformers.py":  # the callback of Trainer
            assert names - STANDARD == {"torch", "pruning", "transformers", "safetensors"}
            continue
        seen[path.startswith("pruning/runtime/")] |= names - STANDARD
    assert seen[False] == {"torch", "pruning"}
    assert seen[True] == {"torch", "pruning", "transformers", "safetensors", "filelock"}  # the runtime runs models
    apart = ("pruning.runtime", "pruning.transformers")
    assert not any(name.startswith(apart) for module, all_imported in graph().items()
                   if module.startswith("pruning") and not module.startswith("pruning.runtime")
                   for name in all_imported)  # fmt: skip


def test_results_imports_neither_runner_nor_pruning() -> None:
    assert knowing("results", "runner", "pruning", "conf", type_checking=True) == {}
    seen = {name.split(".")[0] for tree in modules("results").values() for name in imports(tree, "results")}
    assert "mlflow" in seen  # it does import things


def test_runner_imports_of_results_what_both_need_only() -> None:
    found = knowing("runner", "results", type_checking=True)
    assert "runner/tracking/operations.py" in found
    names = {(path, ".".join(name.split(".")[:2])) for path, names in found.items() for name in names}
    interface = {name for path, name in names if path == "runner/interface.py"}  # it returns the rows of the table
    assert interface == {"results.filters", "results.load", "results.rows", "results.safe_text"}
    names = {(path, name) for path, name in names if path != "runner/interface.py"}
    drawing = {"results.pictures", "results.layers", "results.runs", "results.sensitivity", "results.quick_look"}
    text = {"results.arguments", "results.columns", "results.safe_text"}  # command lines, names, printing
    assert {name for _, name in names} == text | {"results.sqlite"} | drawing
    by_name = {name: {path for path, other in names if other == name} for name in drawing - {"results.pictures"}}
    assert by_name.pop("results.quick_look") == {"runner/tradeoff.py"}
    assert all(paths == {"runner/sensitivity.py"} for paths in by_name.values())
    assert {path for path, name in names if name == "results.pictures"} == {"runner/tracking/operations.py"}


def test_nothing_imports_the_configuration_package() -> None:
    for package in PACKAGES:
        assert knowing(package, "conf", "tests", type_checking=True) == {}


def test_who_knows_hydra() -> None:
    assert knowing("runner", "hydra", type_checking=True).keys() == HYDRA


def test_who_knows_mlflow() -> None:
    importers = knowing("runner", "mlflow", type_checking=True)
    assert {"runner/tracking/store.py", "runner/tracking/operations.py"} <= importers.keys()
    assert [path for path in importers if not path.startswith(MLFLOW)] == []


def test_who_knows_datasets_and_evaluate() -> None:
    found = knowing("runner", "datasets", "evaluate")
    assert {"runner/data/sources.py", "runner/data/squad_metric.py"} <= found.keys()
    assert [path for path in found if not path.startswith(DATASETS)] == []


def test_no_module_with_a_vague_name() -> None:
    parts = {part for package in PACKAGES for path in modules(package) for part in Path(path).with_suffix("").parts}
    assert "data" in parts
    assert parts & VAGUE == set()


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        path
        for package in PACKAGES
        for path, tree in modules(package).items()
        if tree.body and ast.get_docstring(tree) is None
    ]
    assert silent == []


# --- the rooms of runner ------------------------------------------------------------------------------------


def room_of(module: str) -> str | None:
    """The room that holds a module, by its dotted name."""
    while module and module not in FLOOR:
        module = module.rpartition(".")[0]
    return module or None


def graph_of(sources: Mapping[str, ast.AST]) -> dict[str, set[str]]:
    """Module -> modules that it imports when it runs, at its top or in its functions, by dotted names.

    A package is not counted as imported by its own modules, nor by imports of a module in it.
    """
    graph: dict[str, set[str]] = {module: set() for module in sources}
    for module, tree in sources.items():
        for name in imports(tree, module.partition(".")[0], type_checking=False):
            # from a.b import c: c is a module, or a name in a.b
            imported = next((part for part in (name, name.rpartition(".")[0]) if part in sources), module)
            graph[module] |= {imported} - {module}
    return graph


@cache
def graph() -> dict[str, set[str]]:
    """The imports among all modules of all packages."""
    sources = {path: tree for package in PACKAGES for path, tree in modules(package).items()}
    return graph_of({path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): tree
                     for path, tree in sources.items()})  # fmt: skip


def circle(graph: Mapping[str, Iterable[str]]) -> str | None:
    """A circle in a graph, or None."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " imports ".join(reversed(error.args[1]))
    return None


def test_the_graph_has_what_runs_and_nothing_else() -> None:
    sources = {
        "a": "from b import c\nif TYPE_CHECKING:\n    import d",
        "b": "",
        "b.c": "def f():\n    import d.e\n    from b import name",
        "d": "import os, a.name",
    }
    assert graph_of({module: ast.parse(text) for module, text in sources.items()}) == {
        "a": {"b.c"}, "b": set(), "b.c": {"d", "b"}, "d": {"a"},
    }  # fmt: skip


def test_a_circle_is_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) is None
    seen = circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})
    assert seen in ("b imports c imports b", "c imports b imports c")


def test_the_graph_is_that_of_all_modules() -> None:
    edges = {(module, imported) for module, all_imported in graph().items() for imported in all_imported}
    assert len(graph()) >= 105
    assert len(edges) >= 375
    assert edges >= {
        ("runner.models", "runner.models.checkpoint"),
        ("runner.models.checkpoint", "runner.system.hub"),
        ("runner.data.task", "runner.data.arrow"),  # in a function
        ("runner.tracking.tracker", "results.columns"),
    }
    assert ("runner.models.structure", "runner.models.checkpoint") not in edges  # for the type checker alone


def test_every_module_is_in_a_room() -> None:
    assert [module for module in graph() if room_of(module) is None] == ["conf", "runner"]
    assert not graph()["conf"] | graph()["runner"]
    assert {room_of(module) for module in graph()} - {None} == FLOOR.keys()  # no room is empty


def test_nothing_imports_a_room_above() -> None:
    upwards = [
        f"{module} imports {imported}"
        for module, all_imported in graph().items()
        for imported in sorted(all_imported)
        if FLOOR[str(room_of(imported))] > FLOOR[str(room_of(module))]
    ]
    assert upwards == []


def test_no_circle_of_modules() -> None:
    assert circle(graph()) is None


def test_no_circle_of_rooms() -> None:
    rooms: dict[str, set[str]] = {}
    for module, all_imported in graph().items():
        room = str(room_of(module))
        rooms.setdefault(room, set()).update({str(room_of(imported)) for imported in all_imported} - {room})
    assert circle(rooms) is None
