"""The rules of the house that a program can check: folders, imports, sizes, docstrings, randomness."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("models", "samplers", "guidance", "methods", "train", "scripts", "assets")
ORDER = ("models", "samplers", "guidance", "train", "methods", "scripts")  # a folder imports from those before it
SHARED = ("errors", "io", "_version")  # modules of the package itself
LONGEST_MODULE, LONGEST_FUNCTION, MOST_PARAMETERS = 400, 40, 7

FILES = sorted(path for part in PARTS for path in (ROOT / part).rglob("*.py")) + sorted(
    (ROOT / "src" / "steerdiff").glob("*.py")
)
LIBRARY = [path for path in FILES if "scripts" not in path.relative_to(ROOT).parts]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def where(path: Path, node: ast.AST | None = None) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def imported(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Yield the absolute dotted names that a file imports; relative imports stay as written."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            if base == "steerdiff":
                yield from ((f"steerdiff.{alias.name}", node) for alias in node.names)
            else:
                yield base, node


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its decorators and its docstring."""
    body = node.body
    first = body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        assert first.end_lineno is not None
        return (node.end_lineno or 0) - node.lineno + 1 - (first.end_lineno - first.lineno + 1)
    return (node.end_lineno or 0) - node.lineno + 1


def test_each_part_is_a_folder_a_link_and_a_name_in_setup() -> None:
    setup = re.search(r"^PARTS = (\(.*\))$", (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert setup and ast.literal_eval(setup.group(1)) == PARTS
    package = ROOT / "src" / "steerdiff"
    links = {path.name for path in package.iterdir() if path.is_symlink()}
    if not links and not (package / "models" / "__init__.py").exists():
        pytest.skip("this checkout has no symbolic links; setup.py maps the folders instead")
    assert links == set(PARTS)
    for part in PARTS:
        assert (ROOT / part / "__init__.py").is_file()
        assert (package / part).readlink() == Path("../..") / part


def test_folders_import_only_from_those_before_them() -> None:
    wrong = []
    for path in FILES:
        part = path.relative_to(ROOT).parts[0]
        if part not in ORDER:
            continue
        allowed = {*ORDER[: ORDER.index(part) + 1], "assets", *SHARED, "__version__", "UserError"}
        for name, node in imported(path):
            pieces = name.split(".")
            if pieces[0] == "steerdiff" and (len(pieces) == 1 or pieces[1] not in allowed) and part != "scripts":
                wrong.append(f"{where(path, node)} imports {name}")
    assert wrong == []


def test_the_code_is_never_imported_under_its_short_name() -> None:
    short = (*PARTS, "tests", "src")
    wrong = [
        f"{where(path, node)} imports {name}"
        for path in FILES + TESTS
        for name, node in imported(path)
        if name.split(".")[0] in short
    ]
    assert wrong == []


def test_imports_are_relative_inside_a_folder_and_absolute_across() -> None:
    wrong = []
    for path in FILES:
        part = path.relative_to(ROOT).parts[0]
        for name, node in imported(path):
            if name.startswith(".."):
                wrong.append(f"{where(path, node)} imports {name}")
            if part in ORDER and name.startswith(f"steerdiff.{part}.") and path.parent.name == part:
                wrong.append(f"{where(path, node)} imports {name}; inside {part} it is .{name.split('.', 2)[2]}")
    assert wrong == []


def test_the_library_never_prints() -> None:
    wrong = [
        where(path, node)
        for path in LIBRARY
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "pprint")
    ]
    assert wrong == []


def test_randomness_comes_from_the_noise_of_the_loop() -> None:
    drawn = re.compile(r"torch\.(randn|rand|randn_like|rand_like|normal|randint)\(")
    wrong = []
    for path in LIBRARY:
        name = path.relative_to(ROOT)
        if name == Path("samplers/noise.py") or name.parts[0] == "train":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if drawn.search(line) and not line.lstrip().startswith(("#", ">>>")):
                wrong.append(f"{name}:{number} {line.strip()}")
    assert wrong == []


def test_no_assert_checks_input() -> None:
    wrong = [where(path, node) for path in FILES for node in ast.walk(tree(path)) if isinstance(node, ast.Assert)]
    assert wrong == []


def test_modules_and_functions_stay_short() -> None:
    wrong = []
    for path in FILES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST_MODULE:
            wrong.append(f"{where(path)} has {lines} lines; {LONGEST_MODULE} at most")
        for node in functions(path):
            if code_lines(node) > LONGEST_FUNCTION:
                wrong.append(
                    f"{where(path, node)} {node.name} has {code_lines(node)} lines; {LONGEST_FUNCTION} at most"
                )
    assert wrong == []


def test_everything_public_has_a_docstring() -> None:
    wrong = []
    for path in FILES:
        module = tree(path)
        if path.name not in ("__init__.py", "__main__.py") and ast.get_docstring(module) is None:
            wrong.append(where(path))
        for node in module.body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and ast.get_docstring(node) is None:  # type: ignore[arg-type]
                wrong.append(f"{where(path, node)} {node.name}")  # type: ignore[attr-defined]
    assert wrong == []


def test_every_folder_says_what_it_exports() -> None:
    wrong = []
    for part in ORDER[:-1]:
        module = tree(ROOT / part / "__init__.py")
        names = [t.id for n in module.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
        imports = any(isinstance(node, ast.ImportFrom) and node.level for node in module.body)
        if imports and "__all__" not in names:
            wrong.append(f"{part}/__init__.py imports names and has no __all__")
    assert wrong == []


def test_test_names_are_sentences() -> None:
    names = [node.name for path in TESTS for node in functions(path) if node.name.startswith("test_")]
    wrong = [name for name in names if len(name.split("_")) < 3]
    assert wrong == []


def test_no_file_outside_the_data_folders_is_large() -> None:
    def skipped(name: Path) -> bool:
        made = name.parts[0] in ("out", "runs", "assets", "build", "dist") or "golden" in name.parts
        return made or any(part.startswith(".") for part in name.parts)

    wrong = [
        str(path.relative_to(ROOT))
        for top in ROOT.iterdir()
        if not skipped(top.relative_to(ROOT))
        for path in ([top] if top.is_file() else top.rglob("*"))
        if path.is_file() and not skipped(path.relative_to(ROOT)) and path.stat().st_size > 1_000_000
    ]
    assert wrong == []
