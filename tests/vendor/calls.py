"""Every name and call of a vendor's library in the product, held against what was recorded of the real library.

The records are the ``.pyi`` and ``.json`` files beside this one: names and signatures only, each with where it was read.
A product file names one vendor library (tests/test_house.py sees to that), so an attribute in it is the library's, ours,
or Python's: what none of the three knows is a name that is not there. Calls must fit a recorded signature.
"""

from __future__ import annotations

import ast
import ctypes
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

HERE = Path(__file__).parent
# Of the objects that our code takes apart without importing their class.
_PYTHON = (
    str, bytes, bytearray, memoryview, int, float, list, dict, set, tuple, slice, type, BaseException, OSError, ImportError,
    StopIteration, ctypes.Array, type(ctypes.Array), numpy.ndarray, numpy.dtype, numpy, object,
)  # fmt: skip


@dataclass
class Signature:
    """What a call may look like. ``most`` None: any number."""

    least: int
    most: int | None
    names: set[str]
    any_name: bool

    def fits(self, call: ast.Call) -> bool:
        """Whether ``call``'s arguments can be passed; what is behind a star is believed."""
        if any(isinstance(one, ast.Starred) for one in call.args) or any(one.arg is None for one in call.keywords):
            return True
        given = len(call.args) + len(call.keywords)
        known = self.any_name or all(one.arg in self.names for one in call.keywords)
        return known and given >= self.least and (self.most is None or given <= self.most)


@dataclass
class Record:
    """One library: ``names`` of anything in it, ``calls`` by the last name, ``tree`` of classes by their members."""

    names: set[str] = field(default_factory=set)
    calls: dict[str, list[Signature]] = field(default_factory=dict)
    top: set[str] = field(default_factory=set)
    members: dict[str, set[str]] = field(default_factory=dict)


def record_of(*files: Path) -> Record:
    """What these files say: ``.pyi``, or ``.json`` with a row a name, where each name was read in a place of its own."""
    record = Record()
    for file in files:
        if file.suffix == ".json":
            _rows(json.loads(file.read_text(encoding="utf-8")), record)
            continue
        body = ast.parse(file.read_text(encoding="utf-8"), str(file)).body
        record.top |= {name for node in body for name in _named(node)}
        _walk(body, record, None)
    record.names |= record.top
    return record


def _rows(rows: list[dict[str, Any]], record: Record) -> None:
    for row in rows:
        owner, _, name = str(row["name"]).rpartition(".")
        owner = owner.rpartition(".")[2]
        record.names.add(name)
        if owner:
            record.members.setdefault(owner, set()).add(name)
        else:
            record.top.add(name)
        if row.get("signature"):
            taken = ast.parse(f"def {name}{row['signature']}: ...").body[0]
            assert isinstance(taken, ast.FunctionDef)
            record.calls.setdefault(name, []).append(_signature(taken, method=False))


def _named(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        yield node.name
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        yield node.targets[0].id
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from (alias.asname or alias.name for alias in node.names)


def _walk(body: list[ast.stmt], record: Record, inside: str | None) -> None:
    for node in body:
        record.names |= set(_named(node))
        if inside is not None:
            record.members.setdefault(inside, set()).update(_named(node))
        if isinstance(node, ast.FunctionDef):
            name = inside if node.name == "__init__" and inside else node.name
            record.calls.setdefault(name, []).append(_signature(node, method=inside is not None))
        elif isinstance(node, ast.ClassDef):
            record.members.setdefault(node.name, set())
            for base in node.bases:
                record.members[node.name] |= record.members.get(ast.unparse(base), set())
            if not any(isinstance(one, ast.FunctionDef) and one.name == "__init__" for one in node.body):
                record.calls.setdefault(node.name, []).append(Signature(0, None, set(), True))
            _walk(node.body, record, node.name)


def _signature(node: ast.FunctionDef, method: bool) -> Signature:
    bound = method and not any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in node.decorator_list)
    places = [*node.args.posonlyargs, *node.args.args][1 if bound else 0 :]
    required = len(places) - len(node.args.defaults)
    required += sum(default is None for default in node.args.kw_defaults)
    names = {one.arg for one in (*places, *node.args.kwonlyargs)}
    most = None if node.args.vararg or node.args.kwarg else len(places) + len(node.args.kwonlyargs)
    return Signature(max(0, required), most, names, node.args.kwarg is not None)


class _Reader:
    """One product file."""

    def __init__(self, file: Path, record: Record, modules: set[str]) -> None:
        self.file, self.record, self.modules = file, record, modules
        self.tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
        self.roots = self._roots()
        self.ours = self._ours() | self._pythons()

    def _roots(self) -> set[str]:
        """What names the library's module: import aliases, and ``self.x`` they were put into."""
        found = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for one in node.names:
                    if one.name.split(".")[0] in self.modules:
                        found.add(one.asname or one.name)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in self.modules:
                found |= {one.asname or one.name for one in node.names if one.name in self.modules or one.name[:1].isupper()}
        for node in ast.walk(self.tree):
            for target, value in _assigned(node):
                if isinstance(target, ast.Attribute) and ast.unparse(value) in found:
                    found.add(ast.unparse(target))
        return found

    def _ours(self) -> set[str]:
        found = set()
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                found.add(node.name)
                if isinstance(node, ast.ClassDef):
                    found |= {name for one in node.body for name in _named(one)}
            for target, _ in _assigned(node):
                if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
                    found.add(target.attr)
        return found

    def _pythons(self) -> set[str]:
        found = {name for one in _PYTHON for name in dir(one)}
        for node in ast.walk(self.tree):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                if name.split(".")[0] not in self.modules and name != "__future__":
                    found |= _everything_in(importlib.import_module(name))
        return found

    def complaints(self) -> Iterator[str]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute):
                yield from self._name(node)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield from self._call(node, node.func)

    def _name(self, node: ast.Attribute) -> Iterator[str]:
        owner, where = ast.unparse(node.value), f"{self.file.name}:{node.lineno}"
        if owner in self.roots and node.attr not in self.record.top:
            yield f"{where}: {owner}.{node.attr} is not in the library"
        elif isinstance(node.value, ast.Attribute) and ast.unparse(node.value.value) in self.roots:
            members = self.record.members.get(node.value.attr)
            if members is not None and node.attr not in members:
                yield f"{where}: {node.value.attr} has no {node.attr}"
        elif node.attr not in self.record.names | self.ours and not node.attr.startswith("__"):
            yield f"{where}: nobody knows .{node.attr}"

    def _call(self, node: ast.Call, called: ast.Attribute) -> Iterator[str]:
        rooted = ast.unparse(called.value) in self.roots
        signatures = self.record.calls.get(called.attr)
        if signatures is None or (called.attr in self.ours and not rooted):
            return
        if not any(one.fits(node) for one in signatures):
            yield f"{self.file.name}:{node.lineno}: {ast.unparse(node)[:80]} fits no signature of {called.attr}"


def _assigned(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        yield node.target, node.value
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple) and len(target.elts) == len(node.value.elts):
                yield from zip(target.elts, node.value.elts)
            elif isinstance(target, ast.Tuple):
                yield from ((one, node.value) for one in target.elts)
            else:
                yield target, node.value
    elif isinstance(node, ast.AnnAssign):
        yield node.target, node.target


def _everything_in(module: Any) -> set[str]:
    """Names of a module, and of the classes it defines or passes on."""
    found = set(dir(module))
    for name in dir(module):
        one = getattr(module, name)
        if isinstance(one, type):
            found |= set(dir(one)) | set(getattr(one, "__annotations__", {})) | set(getattr(one, "_fields_", ()) and ())
            found |= {field_name for field_name, *_ in getattr(one, "_fields_", ()) if isinstance(field_name, str)}
    return found


def complaints(file: Path, record: Record, modules: set[str]) -> list[str]:
    """What ``file`` asks of the library (its top modules) that the record does not have."""
    return sorted(set(_Reader(file, record, modules).complaints()))


