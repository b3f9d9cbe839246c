"""What a copied configuration is worth: read, checked with its bundles, and held against the one that runs.

Runs in a child process under limits of time and memory; what it returns is plain JSON."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from appliance.box import manifest, words
from appliance.config import ConfigError, Station, find_bundle, load, reader
from appliance.config.crosscheck import remarks
from appliance.config.load import PROJECT, load_bytes
from appliance.model.bundle import Bundle, BundleError, load_bundle

FILE, BUNDLES = "appliance.yaml", "bundles"
_MOST_PROBLEMS = 1000  # told; a file of 1 MiB can hold 80,000 mistakes


@dataclass
class Judgement:
    """``problems``: as RESULT.txt has them, with line and column; empty = it is valid. ``changed``: against what runs, in
    words; ``notes``: what a person should know."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    station: str = ""
    revision: int = 0
    author: str = ""
    reason: str = ""
    signature: str = ""
    bundles: dict[str, str] = field(default_factory=dict)
    """By name, what it is: revision and digest."""


def judge(staging: Path, running: Path | None, data_dir: Path, signed: bool) -> dict[str, Any]:
    """``staging`` holds the copy; ``running``: the folder of the generation that runs, its bundles go on where the stick
    brings no other of that name; ``signed``: every bundle file has to be named in ``integrity``. Raises OSError."""
    told = Judgement()
    raw = (staging / FILE).read_bytes()
    document = _document(raw)
    if document is not None:
        _carry_over(_bundles_named(document.data), staging, running)
    try:
        station = load_bytes(raw, staging / FILE, data_dir=data_dir)
    except ConfigError as why:
        told.problems = [str(problem).replace(f"{staging}/", "") for problem in why.problems[:_MOST_PROBLEMS]]
        if len(why.problems) > _MOST_PROBLEMS:
            told.problems.append(f"{len(why.problems) - _MOST_PROBLEMS} more are not shown")
        return asdict(told)
    assert document is not None  # it was read
    _check_bundles(station, document, staging, data_dir, signed or station.signature == "require", told)
    told.station, told.revision, told.signature = station.station, station.revision, station.signature
    told.author, told.reason = station.author, station.reason
    told.notes += remarks(station)
    told.changed = _changes(station, document, running, data_dir)
    return asdict(told)


def _document(raw: bytes) -> reader.Document | None:
    try:
        return reader.read(raw)
    except reader.ReadError:  # load tells it better
        return None


def _bundles_named(data: Any) -> set[str]:
    """Of a file that may yet be wrong in every other way."""
    recipes = data.get("recipes") if isinstance(data, dict) else None
    looks = [
        look
        for recipe in (recipes.values() if isinstance(recipes, dict) else ())
        if isinstance(recipe, dict) and isinstance(recipe.get("inspect"), list)
        for look in recipe["inspect"]
    ]
    return {look["bundle"] for look in looks if isinstance(look, dict) and isinstance(look.get("bundle"), str)}


def _carry_over(names: set[str], staging: Path, running: Path | None) -> None:
    """Bundles of the running generation that the new file names and the stick does not bring. Raises OSError."""
    have = {entry.name: entry for entry in (running / BUNDLES).iterdir()} if running and (running / BUNDLES).is_dir() else {}
    for name in names & have.keys():
        if not (staging / BUNDLES / name).exists():
            (staging / BUNDLES).mkdir(exist_ok=True)
            shutil.copytree(have[name], staging / BUNDLES / name, copy_function=_linked)


def _linked(source: str, target: str) -> None:
    """Without room on the disk where that goes."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _check_bundles(
    station: Station, document: reader.Document, staging: Path, data_dir: Path, signed: bool, told: Judgement
) -> None:
    """Each bundle that is used is whole, and its files are those that the configuration names. What is on the stick and not
    used is taken out of ``staging``. Raises OSError."""
    used: dict[str, Path] = {}
    for name, recipe in station.recipes.items():
        for index, look in enumerate(recipe.inspect):
            folder = find_bundle(look.bundle, staging / FILE, data_dir)
            if folder is None or look.bundle in used:
                continue
            used[look.bundle] = folder
            try:
                told.bundles[look.bundle] = _told(load_bundle(folder))
            except BundleError as why:
                place = _place(document, ("recipes", name, "inspect", index, "bundle"))
                told.problems.append(f"{FILE}:{place}: bundle {look.bundle}: {why}".replace(f"{staging}/", ""))
    brought = {entry.name: entry for entry in (staging / BUNDLES).iterdir()} if (staging / BUNDLES).is_dir() else {}
    if not told.problems:
        told.problems += _not_as_named(station, document, {**used, **brought}, signed)
    for name in brought.keys() - used.keys():
        told.notes.append(f"bundles/{name} was left out: no recipe names it")
        shutil.rmtree(brought[name])


def _told(bundle: Bundle) -> str:
    return f"revision {bundle.revision}, {bundle.digest}"


def _not_as_named(station: Station, document: reader.Document, folders: Mapping[str, Path], signed: bool) -> list[str]:
    """Files that came with the program are signed with it: they are held against what names them, and need no naming."""
    of_program = {name: folder for name, folder in folders.items() if folder.is_relative_to(PROJECT / "models")}
    others = {name: folder for name, folder in folders.items() if name not in of_program}
    theirs = {path: digest for path, digest in station.integrity.items() if path.split("/")[1] in of_program}
    rest = {path: digest for path, digest in station.integrity.items() if path not in theirs}
    found = manifest.broken(rest, others, whole=signed) + manifest.broken(theirs, of_program, whole=False)
    return [f"{FILE}:{_place(document, ('integrity', path))}: {path}: {what}; {instead}" for path, what, instead in found]


def _place(document: reader.Document, path: tuple[Any, ...]) -> str:
    """LINE:COLUMN of the deepest part of ``path`` that stands in the file."""
    while path and path not in document.keys and path not in document.values:
        path = path[:-1]
    mark = document.keys.get(path) or document.values.get(path) or reader.Mark(1, 1)
    return f"{mark.line}:{mark.column}"


def _changes(new: Station, document: reader.Document, running: Path | None, data_dir: Path) -> list[str]:
    if running is None:
        return [f"this is the first configuration of the box: {new.station}, revision {new.revision}"]
    try:
        old = load(running / FILE, data_dir=data_dir)
    except ConfigError:
        return ["what ran before cannot be read any more, so nothing can be held against it"]
    lines = {path: mark.line for path, mark in document.keys.items()} | {
        path: mark.line for path, mark in document.values.items() if path and isinstance(path[-1], int)
    }
    told = words.differences(_plain(old), _plain(new), lines)
    return told + _bundle_changes(old, new, data_dir)


def _plain(station: Station) -> dict[str, Any]:
    """As JSON. Defaults are not validated, so one may be an int where its type says float: pydantic warns of that."""
    return station.model_dump(mode="json", warnings="none")


def _bundle_changes(old: Station, new: Station, data_dir: Path) -> list[str]:
    before, after = _bundles_of(old, data_dir), _bundles_of(new, data_dir)
    told = []
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            told.append(f"bundle {name}: {before[name]} -> {after[name]}")
    return told


def _bundles_of(station: Station, data_dir: Path) -> dict[str, str]:
    """By name, what each is; one that cannot be read any more is told as that."""
    found: dict[str, str] = {}
    for name in {look.bundle for recipe in station.recipes.values() for look in recipe.inspect}:
        folder = find_bundle(name, Path(station.file), data_dir)
        try:
            found[name] = _told(load_bundle(folder)) if folder else "not there"
        except BundleError:
            found[name] = "not whole"
    return found
