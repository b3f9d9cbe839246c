"""Engines kept on the disk of the box that built them: never used for another machine, release, model or after a cut.

One place for each model and precision: a plan under a name of its own digest, and a JSON beside it that names plan, key
and figures. The JSON is put there last and in one step, so a power cut leaves the old engine or the new one, whole.
A plan is vendor code's input: only what such a JSON of ours vouches for is ever read back."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

_SCHEMA = 1
_MOST_JSON_BYTES = 64 * 1024
_MOST_PLAN_BYTES = 1024 * 1024 * 1024
_MOST_MODELS = 64  # of as many models engines are kept: the disk stays bounded even where nobody names those in use
_PARTIAL = ".partial-"
_SLOWER = 1.25  # clocks move the median by some percent; another power mode moves it by more than this
_SLOWER_MS = 0.2  # of an engine of a fraction of a millisecond a quarter is noise


class EngineCacheError(Exception):
    """A stored engine that is not used, and why; or one that could not be stored."""


@dataclass(frozen=True)
class EngineKey:
    """What an engine is tied to; any difference makes it another engine.

    ``model_digest``: ``sha256:`` of the bundle's ONNX file; ``tensorrt``: the full version; ``module`` "p3767-0005" or a
    GPU's name; ``capability`` "8.7"; ``l4t`` "36.4.3" or "" where there is none; ``flags``: builder flags and all else
    that goes into the build, sorted."""

    model_digest: str
    tensorrt: str
    module: str
    multiprocessors: int
    capability: str
    l4t: str
    precision: str
    flags: tuple[str, ...]
    workspace_bytes: int


@dataclass(frozen=True)
class BuildFigures:
    """Measured when the engine was built: the engine alone, one inference after another, and what that cost."""

    p50_ms: float
    p99_ms: float
    build_s: float
    power_mode: str | None = None


@dataclass(frozen=True)
class StoredEngine:
    """A plan that was read back and is what was written. ``digest``: ``sha256:`` of ``plan``."""

    key: EngineKey
    plan: bytes
    digest: str
    figures: BuildFigures
    folder: Path


def digest_of(raw: bytes) -> str:
    """``sha256:`` of bytes."""
    return "sha256:" + hashlib.sha256(raw).hexdigest()


class EngineCache:
    """The engines below ``folder``. Any process may look; stores wait for each other."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)

    def folder_of(self, model_digest: str) -> Path:
        """Where a model's engines lie (and their licence)."""
        return self._folder / model_digest.removeprefix("sha256:")[:32]

    def find(self, key: EngineKey, other_workspaces: Collection[int] = ()) -> StoredEngine | None:
        """The engine for exactly this key; None when none was stored. One built with a workspace of ``other_workspaces``
        serves too: how much memory was free at its build says nothing of whether it runs. Raises EngineCacheError in words
        when the one that is there was built for something else, was cut, or was altered: say so, and build anew."""
        folder = self.folder_of(key.model_digest)
        described = folder / f"{key.precision}.json"
        content = _read_json(described)
        if content is None:
            return None
        stored, figures, plan_file, plan_digest = _described(content, described)
        if stored.workspace_bytes in other_workspaces:
            key = replace(key, workspace_bytes=stored.workspace_bytes)
        difference = key_difference(stored, key)
        if difference:
            raise EngineCacheError(f"{described}: the stored engine was built for another {difference}; it is built anew")
        return StoredEngine(stored, _read_plan(folder / plan_file, plan_digest), plan_digest, figures, folder)

    def store(self, key: EngineKey, plan: bytes, timing_cache: bytes, figures: BuildFigures) -> StoredEngine:
        """Keep an engine in place of the one of this model and precision. Raises EngineCacheError when the disk refuses."""
        if not plan:
            raise EngineCacheError("an empty plan is no engine; build it anew")
        folder = self.folder_of(key.model_digest)
        digest = digest_of(plan)
        plan_file = f"{key.precision}-{digest.removeprefix('sha256:')[:32]}.plan"
        content = {
            "schema": _SCHEMA, "key": asdict(key), "plan": {"file": plan_file, "sha256": digest, "bytes": len(plan)},
            "figures": asdict(figures),
        }  # fmt: skip
        try:
            with self._alone():
                folder.mkdir(mode=0o700, exist_ok=True)
                if timing_cache:
                    self._store_timing(key, timing_cache)
                write_whole(folder / plan_file, plan)
                write_whole(folder / f"{key.precision}.json", json_bytes(content))
                _remove_others(folder, key.precision, plan_file)
                self._forget_oldest(folder)
        except OSError as why:
            raise EngineCacheError(f"{folder}: the engine cannot be stored ({why.strerror}); free some of that disk") from why
        return StoredEngine(key, plan, digest, figures, folder)

    def timing_cache(self, key: EngineKey) -> bytes:
        """What earlier builds measured on this machine; empty when there is nothing that can be believed."""
        path = self._timing_file(key)
        try:
            raw = path.read_bytes()
        except OSError:
            return b""  # it only saves time
        head, _, body = raw.partition(b"\n")
        return body if head == digest_of(body).encode() else b""

    def forget_models_but(self, model_digests: Collection[str]) -> int:
        """Remove the engines of all other models; how many models were forgotten. Raises EngineCacheError."""
        kept = {self.folder_of(one).name for one in model_digests}
        try:
            with self._alone():
                gone = [one for one in self._models() if one.name not in kept]
                for one in gone:
                    shutil.rmtree(one)
        except OSError as why:
            raise EngineCacheError(f"{self._folder}: old engines cannot be removed ({why.strerror})") from why
        return len(gone)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One store at a time; the lock goes with the process that held it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _models(self) -> list[Path]:
        return [one for one in self._folder.iterdir() if one.is_dir()]

    def _forget_oldest(self, kept: Path) -> None:
        models = sorted((one for one in self._models() if one != kept), key=lambda one: one.stat().st_mtime_ns)
        for one in models[: max(0, len(models) + 1 - _MOST_MODELS)]:
            shutil.rmtree(one)

    def _timing_file(self, key: EngineKey) -> Path:
        tied = json.dumps([key.tensorrt, key.module, key.l4t]).encode()
        return self._folder / f"{hashlib.sha256(tied).hexdigest()[:32]}.timing"

    def _store_timing(self, key: EngineKey, timing_cache: bytes) -> None:
        path = self._timing_file(key)
        write_whole(path, digest_of(timing_cache).encode() + b"\n" + timing_cache)
        for other in (*self._folder.glob("*.timing"), *self._folder.glob(f"{_PARTIAL}*")):
            if other != path:  # of another release and of no use to this one, or half-written by a process that was killed
                other.unlink()


def key_difference(stored: EngineKey, wanted: EngineKey) -> str | None:
    """In words, each field that differs: ``tensorrt (10.3.0 there, 10.16.2 here)``; None when none does."""
    told = [
        f"{one.name} ({_said(getattr(stored, one.name))} there, {_said(getattr(wanted, one.name))} here)"
        for one in fields(EngineKey)
        if getattr(stored, one.name) != getattr(wanted, one.name)
    ]
    return ", ".join(told) or None


def power_mode_warning(stored: StoredEngine, now: str | None) -> str | None:
    """An engine built in another power mode runs, with tactics chosen for other clocks: a warning, no refusal."""
    built = stored.figures.power_mode
    if built == now:
        return None
    return (
        f"the {stored.key.precision} engine was built in power mode {built or 'unknown'} and runs in {now or 'unknown'}; "
        "it may be slower than one built in this mode: set that mode, or run engine build again"
    )


def slower_than_built(built_ms: float, now_ms: float) -> str | None:
    """The engine's median now against that of its build; a sentence when it is slower than noise explains."""
    if now_ms <= max(built_ms * _SLOWER, built_ms + _SLOWER_MS):
        return None
    return (
        f"the engine takes {now_ms:.2f} ms and took {built_ms:.2f} ms when it was built; look at power mode, "
        "temperatures and what else uses the GPU"
    )


def json_bytes(content: Any) -> bytes:
    """JSON in one order: the same content gives the same bytes."""
    return (json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_whole(path: Path, content: bytes) -> None:
    """Under another name first, on the disk, then in its place: a power cut leaves the old file or the new. Raises OSError."""
    handle, name = tempfile.mkstemp(prefix=f"{_PARTIAL}{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_others(folder: Path, precision: str, kept: str) -> None:
    """Older plans of this precision, and what a killed build left half-written."""
    for one in folder.iterdir():
        of_this = one.name.startswith(f"{precision}-") and one.suffix == ".plan" and one.name != kept
        if of_this or one.name.startswith(f"{_PARTIAL}{precision}"):
            one.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MOST_JSON_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as why:
        raise EngineCacheError(f"{path}: cannot be read ({why.strerror}); the engine is built anew") from why
    try:
        content = json.loads(raw) if len(raw) <= _MOST_JSON_BYTES else None
    except (ValueError, RecursionError):  # cut, or no JSON
        content = None
    if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
        raise EngineCacheError(f"{path}: is not what was written there, or of another release; the engine is built anew")
    return content


def _described(content: dict[str, Any], path: Path) -> tuple[EngineKey, BuildFigures, str, str]:
    """(key, figures, plan file, plan digest) out of the JSON; nothing in it is believed unseen."""
    try:
        raw, plan = content["key"], content["plan"]
        key = EngineKey(**{**raw, "flags": tuple(raw["flags"])})
        figures = _figures(content["figures"])
        plan_file, plan_digest = str(plan["file"]), str(plan["sha256"])
    except (KeyError, TypeError, ValueError) as why:
        raise EngineCacheError(f"{path}: says too little ({why}); the engine is built anew") from why
    if Path(plan_file).name != plan_file:
        raise EngineCacheError(f"{path}: names a plan outside its folder ({plan_file!r}); the engine is built anew")
    return key, figures, plan_file, plan_digest


def _figures(raw: dict[str, Any]) -> BuildFigures:
    power_mode = raw["power_mode"]
    told = None if power_mode is None else str(power_mode)
    return BuildFigures(float(raw["p50_ms"]), float(raw["p99_ms"]), float(raw["build_s"]), told)


def _read_plan(path: Path, digest: str) -> bytes:
    try:
        if path.stat().st_size > _MOST_PLAN_BYTES:
            raise EngineCacheError(f"{path}: {path.stat().st_size} bytes are no engine; it is built anew")
        plan = path.read_bytes()
    except OSError as why:
        raise EngineCacheError(f"{path}: cannot be read ({why.strerror}); the engine is built anew") from why
    if digest_of(plan) != digest:
        raise EngineCacheError(f"{path}: is cut or altered, its digest is not the one written at its build; it is built anew")
    return plan


def _said(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)
