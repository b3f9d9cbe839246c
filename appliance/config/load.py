"""From file to Station, or to all that is wrong with it at once, each with its line, column and what to write instead."""

from __future__ import annotations

import difflib
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from appliance.config import reader
from appliance.config.crosscheck import crosscheck
from appliance.config.not_built import not_built
from appliance.config.schema import Station

_SIGNS = {
    "greater_than": "more than", "greater_than_equal": "at least", "less_than": "less than", "less_than_equal": "at most",
}  # fmt: skip
PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Problem:
    """One mistake: where, in which setting, what is wrong, what to write instead."""

    file: str
    line: int
    column: int
    path: str
    what: str
    instead: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.path}: {self.what}; {self.instead}"


class ConfigError(Exception):
    """A configuration that changes nothing, and why: all of its problems."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


def load(path: Path, *, data_dir: Path | None = None, built_only: bool = True) -> Station:
    """The station in ``path``. Raises ConfigError with every problem found, in the order of their lines.

    ``built_only``: also refuse settings whose feature this release does not have. ``rehearse`` reads a file without
    it, puts the twin in place of the physical addresses, and loads the result with it."""
    try:
        raw = path.read_bytes() if path.stat().st_size <= reader.MAX_BYTES else b" " * (reader.MAX_BYTES + 1)
    except OSError as why:
        raise ConfigError([Problem(str(path), 1, 1, "file", str(why.strerror), "name a file that can be read")]) from why
    return load_bytes(raw, path, data_dir=data_dir, built_only=built_only)


def load_bytes(raw: bytes, path: Path, *, data_dir: Path | None = None, built_only: bool = True) -> Station:
    """As ``load``, from the bytes of the file that ``path`` names."""
    try:
        document = reader.read(raw)
    except reader.ReadError as why:
        what, _, instead = str(why).partition("; ")
        problem = Problem(str(path), why.mark.line, why.mark.column, "file", what, instead or "correct this place")
        raise ConfigError([problem]) from why
    try:
        station = Station.model_validate(document.data)
    except ValidationError as why:
        raise ConfigError(_sorted([_told(error, document, path) for error in why.errors()])) from why
    station._file = str(path)
    station._crc32 = zlib.crc32(raw)
    station._digest = "sha256:" + hashlib.sha256(raw).hexdigest()
    found = crosscheck(station)
    if built_only:
        found += not_built(station)
    for name, recipe in station.recipes.items():
        for index, look in enumerate(recipe.inspect):
            if find_bundle(look.bundle, path, data_dir) is None:
                where = ", ".join(str(place) for place in bundle_places(look.bundle, path, data_dir))
                place = ("recipes", name, "inspect", index, "bundle")
                found.append((place, f"no bundle {look.bundle}", f"put it at one of {where}"))
    if found:
        raise ConfigError(_sorted([_place(path, document, where, what, instead) for where, what, instead in found]))
    return station


def bundle_places(name: str, file: Path, data_dir: Path | None) -> list[Path]:
    """Where a bundle is looked for, in this order."""
    places = [file.resolve().parent / "bundles" / name]
    if data_dir is not None:
        places.append(data_dir / "bundles" / name)
    return [*places, PROJECT / "models" / name]


def find_bundle(name: str, file: Path, data_dir: Path | None = None) -> Path | None:
    """The bundle's folder, or None."""
    return next((place for place in bundle_places(name, file, data_dir) if (place / "model.yaml").is_file()), None)


def _sorted(problems: list[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: (problem.line, problem.column))


def _place(file: Path, document: reader.Document, path: tuple[Any, ...], what: str, instead: str) -> Problem:
    """A problem at the deepest part of ``path`` that stands in the file."""
    known = path
    while known and known not in document.keys and known not in document.values:
        known = known[:-1]
    mark = document.keys.get(known) or document.values.get(known) or reader.Mark(1, 1)
    return Problem(str(file), mark.line, mark.column, ".".join(str(step) for step in path) or "file", what, instead)


def _told(error: ErrorDetails, document: reader.Document, file: Path) -> Problem:
    path = _settings_path(error["loc"], document)
    what, instead = _words(error, path)
    problem = _place(file, document, path, what, instead)
    value = document.values.get(path)
    if value and error["type"] not in ("extra_forbidden", "missing"):
        return Problem(problem.file, value.line, value.column, problem.path, what, instead)
    return problem


def _settings_path(location: tuple[Any, ...], document: reader.Document) -> tuple[Any, ...]:
    """pydantic's location without the names of union branches, which are no keys of the file."""
    path: tuple[Any, ...] = ()
    for step in location:
        if step == "[key]":
            break
        branch = str(step).startswith(("constrained", "literal", "float"))
        if (*path, step) in document.values or (step == location[-1] and not branch):
            path = (*path, step)
    return path


def _words(error: ErrorDetails, path: tuple[Any, ...]) -> tuple[str, str]:
    kind, context, given = error["type"], error.get("ctx", {}), error.get("input")
    if kind == "extra_forbidden":
        known = _known_keys(path[:-1])
        near = difflib.get_close_matches(str(path[-1]), known, 1, 0.6)
        return "unknown setting", f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
    if kind == "missing":
        return "is missing", "it is required: write it"
    if kind == "literal_error":
        expected = context.get("expected", "")
        words = [word.strip("' ") for word in expected.replace(" or ", ", ").split(", ")]
        near = difflib.get_close_matches(str(given), words, 1, 0.5)
        return f"{given!r} is not one of the words allowed", (f"did you mean {near[0]}? " if near else "") + f"write {expected}"
    if kind in _SIGNS:
        return f"{given} is out of range", f"write {_SIGNS[kind]} {next(iter(context.values()))}"
    if kind == "value_error":
        what, _, instead = str(context.get("error", error["msg"])).partition("; ")
        return what, instead or "correct it"
    if kind.startswith(("float", "int", "bool", "string", "tuple", "list", "dict", "model", "too_")):
        return f"{given!r}: {error['msg'][0].lower()}{error['msg'][1:]}", "write a value of that kind, without a unit behind it"
    return error["msg"], "see `appliance schema`"


def _known_keys(path: tuple[Any, ...]) -> list[str]:
    """The settings known at ``path``, found by walking the models."""
    model: Any = Station
    for step in path:
        if isinstance(model, type) and issubclass(model, BaseModel):
            field = model.model_fields.get(str(step))
            model = field.annotation if field else None
        else:
            model = next((one for one in _models(model)), None)
            continue
    model = next(iter(_models(model)), None)
    return list(model.model_fields) if model else []


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
