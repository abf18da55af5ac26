"""Which edits of the source change a hash: on a small invented package, and on copies of the library's own text."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from steerdiff.guidance.loading import load_model
from steerdiff.methods import ILVR, DDIMInversion, RePaint, SDEdit
from steerdiff.samplers import DPMSolver2MSDE
from steerdiff.scripts.evaluation.cells import Cell, compute
from steerdiff.scripts.evaluation.contestants import RUNNERS, TextToImage
from steerdiff.scripts.evaluation.dependencies import Read, hashes, reached, read_source
from steerdiff.scripts.evaluation.provenance import code_roots
from steerdiff.train.benchmark import draw_cases

TREE = {
    "lib": ("", True),
    "lib.method": (
        '''"""A method."""
from __future__ import annotations
from typing import TYPE_CHECKING
import torch
from lib.parts import First, TABLE as KNOWN
if TYPE_CHECKING:
    from lib.unused import Judge

LIMIT = 3
OTHER = 4


class Method:
    """Its documentation."""

    part: First = First()

    def __call__(self, image: Judge) -> Judge:
        """Do it."""
        from lib.late import helper

        image: Judge = helper(image)  # a comment
        return KNOWN["a"](torch.clamp(image, LIMIT))


class Unrelated:
    x = OTHER
''',
        False,
    ),
    "lib.parts": ("from .first import First\nfrom .second import Second\nfrom .table import TABLE\n", True),
    "lib.parts.first": ("from .base import Base\nclass First(Base):\n    x: int = 1\n", False),
    "lib.parts.base": ("class Base:\n    y = 2\n", False),
    "lib.parts.second": ("class Second:\n    z = 3\n", False),
    "lib.parts.table": ("def f(x): return x\ndef g(x): return -x\nTABLE = {'a': f}\nTABLE['b'] = g\n", False),
    "lib.late": ("def helper(x):\n    return x + 1\n\ndef alone(x):\n    return x\n", False),
    "lib.unused": ("class Judge:\n    pass\n", False),
}
ROOT = [("lib.method", "Method")]


def edited(**changes: tuple[str, str]) -> dict[str, str]:
    """Return the hashes from ``lib.method.Method`` after texts were replaced: module="old" -> "new"."""
    tree = dict(TREE)
    for name, (old, new) in changes.items():
        module = f"lib.{name.replace('__', '.')}"
        text, is_package = tree[module]
        assert old in text
        tree[module] = (text.replace(old, new), is_package)
    return hashes(ROOT, read=tree.get)


def test_only_what_a_name_reaches_is_hashed() -> None:
    assert list(edited()) == [
        "lib.late",
        "lib.method",
        "lib.parts",
        "lib.parts.base",
        "lib.parts.first",
        "lib.parts.table",
    ]


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("method", 'KNOWN["a"]', 'KNOWN["b"]'),
        ("method", "LIMIT = 3", "LIMIT = 5"),
        ("method", "import torch\n", "import numpy as torch\n"),
        ("parts__base", "y = 2", "y = 2.0"),
        ("parts__first", "x: int = 1", "x: int = 7"),
        ("parts__first", "x: int = 1", "x: float = 1"),  # a dataclass's field is read at run time
        ("parts__table", "return x\n", "return 2 * x\n"),
        ("parts__table", "return -x", "return -2 * x"),  # reached through a statement that binds nothing
        ("late", "x + 1", "x + 2"),  # imported inside a function
    ],
)
def test_an_edit_of_what_is_reached_changes_the_hash_of_its_module(module: str, old: str, new: str) -> None:
    before, after = edited(), edited(**{module: (old, new)})
    assert [name for name in before if before[name] != after[name]] == [f"lib.{module.replace('__', '.')}"]


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("method", '"""A method."""', '"""Another."""'),
        ("method", '"""Do it."""', '"""Do\n\n        that.\n        """'),
        ("method", "  # a comment", ""),
        ("method", "helper(image)", "helper(\n            image,\n        )"),
        ("method", "image: Judge) -> Judge", "image: object) -> object"),  # annotations of functions
        ("method", "image: Judge =", "image: object ="),
        ("method", "OTHER = 4", "OTHER = 5"),
        ("method", "class Unrelated:", "class Another:"),
        ("parts__second", "z = 3", "z = 4"),
        ("parts", "import Second", "import Second as Third"),
        ("late", "def alone(x):\n    return x", "def alone(x):\n    return 0"),
        ("unused", "pass", "x = 1"),
    ],
)
def test_an_edit_of_anything_else_changes_nothing(module: str, old: str, new: str) -> None:
    assert edited(**{module: (old, new)}) == edited()


def test_a_name_that_moves_to_another_module_changes_the_hash() -> None:
    after = edited(parts=("from .table import TABLE", "from .late_table import TABLE"))
    assert after["lib.parts"] != edited()["lib.parts"]


def test_an_import_of_a_whole_module_reaches_all_of_it() -> None:
    tree = {**TREE, "lib.user": ("import lib.late\n\ndef use(x):\n    return lib.late.alone(x)\n", False)}
    tree["lib.other"] = ("from lib import late\n\ndef use(x):\n    return late.alone(x)\n", False)
    tree["lib.star"] = ("from lib.late import *\n\ndef use(x):\n    return alone(x)\n", False)
    for module in ("lib.user", "lib.other", "lib.star"):
        before = hashes([(module, "use")], read=tree.get)
        changed = {**tree, "lib.late": (TREE["lib.late"][0].replace("return x\n", "return 0\n"), False)}
        after = hashes([(module, "use")], read=changed.get)
        assert before["lib.late"] != after["lib.late"], module


def test_both_branches_of_a_condition_at_the_top_count() -> None:
    text = "try:\n    from lib.late import helper\nexcept ImportError:\n    def helper(x):\n        return 0\n"
    tree = {**TREE, "lib.user": (text + "def use(x):\n    return helper(x)\n", False)}
    before = hashes([("lib.user", "use")], read=tree.get)
    tree["lib.user"] = (tree["lib.user"][0].replace("return 0", "return 1"), False)
    after = hashes([("lib.user", "use")], read=tree.get)
    assert "lib.late" in before and before["lib.user"] != after["lib.user"]


def test_packages_that_are_left_out_are_not_entered() -> None:
    found = hashes(ROOT, read=TREE.get, without=["lib.parts"])
    assert list(found) == ["lib.late", "lib.method"]
    assert "lib.parts.first" in hashes(ROOT, read=TREE.get, without=["lib.part"])  # whole names, not beginnings


def test_two_definitions_that_follow_each_other_in_a_circle_end() -> None:
    tree = {
        "lib.a": ("from lib.b import g\ndef f(): return g()\n", False),
        "lib.b": ("from lib.a import f\ndef g(): return f()\n", False),
    }
    assert list(hashes([("lib.a", "f")], read=tree.get)) == ["lib.a", "lib.b"]


def reading(module: str, edit: Callable[[str], str]) -> Read:
    """Return a reader of the installed source with one module edited."""

    def read(name: str) -> tuple[str, bool] | None:
        found = read_source(name)
        if name != module or found is None:
            return found
        assert edit(found[0]) != found[0]
        return edit(found[0]), found[1]

    return read


def test_a_method_of_the_library_depends_on_itself_and_not_on_the_others() -> None:
    def add(text: str) -> str:
        return text.replace("self.t0 == 0", "self.t0 == 0.0")

    edit = reading("steerdiff.methods.sdedit", add)
    for name, cls, stale in (("sdedit", "SDEdit", True), ("ilvr", "ILVR", False), ("repaint", "RePaint", False)):
        root = [(f"steerdiff.methods.{name}", cls)]
        assert (hashes(root, read=edit) != hashes(root)) is stale, name


def definitions(path: str, line: int) -> set[str]:
    """Return the names that the statement at the top of a file binds in which ``line`` is."""
    for node in ast.parse(Path(path).read_text(encoding="utf-8")).body:
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        if first <= line <= (node.end_lineno or 0):
            inner = [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
            return {getattr(node, "name", ""), *inner} if isinstance(node, ast.Assign | ast.AnnAssign) else {node.name}  # type: ignore[attr-defined]
    return set()


def executed(run: Callable[[], object]) -> set[tuple[str, str, int]]:
    """Return module, file and first line of all functions of the library that ``run`` calls."""
    seen: set[tuple[str, str, int]] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        module = str(frame.f_globals.get("__name__"))
        if event == "call" and module.startswith("steerdiff.") and frame.f_code.co_name != "<module>":
            seen.add((module, frame.f_code.co_filename, frame.f_code.co_firstlineno))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return {item for item in seen if not item[1].startswith("<")}  # dataclasses write some from text


@pytest.mark.parametrize(
    ("settings", "task"),
    [
        (TextToImage(steps=2), "object"),
        (TextToImage(steps=2, solver=DPMSolver2MSDE(), spacing="karras"), "object"),
        (SDEdit(steps=4, repeats=1), "object"),
        (ILVR(steps=2), "style"),
        (RePaint(steps=4, jump_length=2, jump_n_sample=2), "hole"),
        (DDIMInversion(steps=2), "reconstruct"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_every_function_that_a_cell_runs_is_among_its_dependencies(settings: object, task: str) -> None:
    name = next(name for name, cls in RUNNERS.items() if type(settings) is cls)
    cell = Cell(method=name, settings=settings, task=task, cases=1, seeds=(0,))
    draw_cases(task, 1, 0)
    called = executed(lambda: compute(cell, load_model("emoji64")))
    found = reached(code_roots(settings))
    elsewhere = ("steerdiff.train.", "steerdiff.assets")  # the cases are hashed by value
    missed = [
        f"{module}:{line}"
        for module, path, line in called
        if not module.startswith(elsewhere) and not definitions(path, line) & set(found.get(module, ()))
    ]
    assert missed == [] and len(called) > 50


def test_a_solver_of_the_library_is_reached_without_the_others() -> None:
    found = hashes([("steerdiff.samplers", "DDIM")])
    assert "steerdiff.samplers.ddim" in found and "steerdiff.samplers.unipc" not in found


def test_no_module_of_the_library_changes_by_its_comments_and_docstrings() -> None:
    def plain(text: str) -> str:
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                node.value.value = "another docstring"
        return ast.unparse(tree) + "\n# a comment\n"

    def read(name: str) -> tuple[str, bool] | None:
        found = read_source(name)
        return None if found is None else (plain(found[0]), found[1])

    root = [("steerdiff.methods.repaint", "RePaint")]
    assert hashes(root, read=read) == hashes(root)
