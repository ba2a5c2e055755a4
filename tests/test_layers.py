"""The directions of the layers, held by parsing imports: see "Layers" of the design."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("conf", "pruning", "results", "runner")
STANDARD = set(sys.stdlib_module_names)
# Who may know what, among the modules of `runner`; all others may not.
HYDRA = {
    "runner/__main__.py",
    "runner/config/__init__.py",
    "runner/sweeps/launcher.py",
    "runner/sweeps/launchers.py",
    "runner/sweeps/callback.py",
}
HYDRA_ERRORS = {"runner/system/process.py"}  # hydra.errors only: it tells them to the user
MLFLOW = "runner/tracking/"
DATASETS = "runner/data/"
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


def test_pruning_imports_torch_and_the_standard_library_only() -> None:
    seen = {name.split(".")[0] for tree in modules("pruning").values() for name in imports(tree, "pruning")}
    assert seen - STANDARD == {"torch", "pruning"}


def test_results_imports_neither_runner_nor_pruning() -> None:
    assert knowing("results", "runner", "pruning", "conf", type_checking=True) == {}
    seen = {name.split(".")[0] for tree in modules("results").values() for name in imports(tree, "results")}
    assert "mlflow" in seen  # it does import things


def test_runner_imports_of_results_the_columns_and_pictures_only() -> None:
    found = knowing("runner", "results", type_checking=True)
    assert "runner/tracking/operations.py" in found
    names = {(path, ".".join(name.split(".")[:2])) for path, names in found.items() for name in names}
    assert {name for _, name in names} == {"results.columns", "results.pictures"}
    assert {path for path, name in names if name == "results.pictures"} == {"runner/tracking/operations.py"}


def test_nothing_imports_the_configuration_package() -> None:
    for package in PACKAGES:
        assert knowing(package, "conf", "tests", type_checking=True) == {}


def test_who_knows_hydra() -> None:
    found = knowing("runner", "hydra", type_checking=True)
    assert found.keys() == HYDRA | HYDRA_ERRORS
    for path in HYDRA_ERRORS:
        assert {name.rsplit(".", 1)[0] for name in found[path]} == {"hydra.errors"}


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
