"""A model bundle on disk: model.yaml, model.onnx, golden.npz; read under checks, refused in words."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

_MAX_YAML_BYTES = 1024 * 1024
Share = Annotated[float, Field(ge=0, le=1)]


class BundleError(Exception):
    """A bundle that is not used, and why."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputSpec(_Part):
    """The network's input: ``size`` width, height; ``mean`` and ``std`` on v/255."""

    tensor: str
    size: tuple[int, int]
    channels: Literal[1, 3]
    fit: Literal["stretch", "letterbox"] = "stretch"
    mean: tuple[float, ...]
    std: tuple[float, ...]


class OutputSpec(_Part):
    """classify: ``tensor`` and ``activation``. anomaly: ``score`` and/or ``map``, ``low``/``high`` = raw at 0 and 1."""

    tensor: Optional[str] = None
    activation: Literal["softmax", "sigmoid", "none"] = "none"
    score: Optional[str] = None
    map: Optional[str] = None
    low: float = 0.0
    high: float = 1.0


class ClassThreshold(_Part):
    """One class's own."""

    fail_at: Share


class Thresholds(_Part):
    """The bundle's own operating point."""

    review_at: Share
    fail_at: Share
    classes: dict[str, ClassThreshold] = {}


class Bundle(_Part):
    """model.yaml, validated."""

    schema_: Literal[1] = Field(alias="schema")
    name: str
    revision: int
    task: Literal["classify", "anomaly"]
    taught_on: Literal["twin", "photographs"]
    precision: Literal["int8", "float32"]
    input: InputSpec
    output: OutputSpec
    classes: tuple[str, ...]
    good: tuple[str, ...]
    thresholds: Thresholds
    promise: dict[str, Any] = {}
    data: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    files: dict[str, str]

    _folder: Path = PrivateAttr(default=Path())
    _digest: str = PrivateAttr(default="")

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def digest(self) -> str:
        """``sha256:`` of model.yaml, which names the digests of all other files."""
        return self._digest

    @property
    def onnx(self) -> Path:
        return self._folder / "model.onnx"

    @property
    def golden(self) -> Path:
        return self._folder / "golden.npz"


def load_bundle(folder: Path) -> Bundle:
    """The bundle in ``folder``, every file's digest checked. Raises BundleError."""
    path = folder / "model.yaml"
    try:
        raw = path.read_bytes()
    except OSError as why:
        raise BundleError(f"{folder}: no bundle there ({why.strerror}: {path.name}); name a folder with model.yaml") from why
    if len(raw) > _MAX_YAML_BYTES:
        raise BundleError(f"{path}: {len(raw)} bytes; a model.yaml has at most {_MAX_YAML_BYTES}")
    try:
        bundle = Bundle.model_validate(yaml.safe_load(raw))
    except yaml.YAMLError as why:
        raise BundleError(f"{path}: not YAML: {str(why).splitlines()[0]}") from why
    except ValidationError as why:
        told = "; ".join(f"{'.'.join(map(str, error['loc'])) or 'file'}: {error['msg']}" for error in why.errors()[:8])
        raise BundleError(f"{path}: {told}") from why
    bundle._folder, bundle._digest = folder, "sha256:" + hashlib.sha256(raw).hexdigest()
    _check(bundle, path)
    return bundle


def _check(bundle: Bundle, path: Path) -> None:
    missing = {"model.onnx", "golden.npz"} - set(bundle.files)
    if missing:
        raise BundleError(f"{path}: files does not name {', '.join(sorted(missing))}; make the bundle anew")
    unknown = set(bundle.good) - set(bundle.classes)
    if unknown or not bundle.good:
        raise BundleError(f"{path}: good names {', '.join(unknown) or 'no class'}; write classes of {list(bundle.classes)}")
    for name, digest in bundle.files.items():
        if "/" in name or name.startswith("."):
            raise BundleError(f"{path}: files names {name}; only files beside model.yaml are allowed")
        found = file_digest(path.parent / name)
        if found != digest:
            raise BundleError(f"{path.parent / name}: its digest is {found}, model.yaml says {digest}; copy the bundle anew")


def file_digest(path: Path) -> str:
    """``sha256:`` of a file. Raises BundleError when it cannot be read."""
    try:
        return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as why:
        raise BundleError(f"{path}: cannot be read ({why.strerror}); copy the bundle anew") from why
