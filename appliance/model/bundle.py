"""A model bundle on disk: model.yaml, model.onnx, golden.npz; read under checks, refused in words."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from appliance.config import reader

MODEL_FILE, ONNX_FILE, GOLDEN_FILE, LABELS_FILE = "model.yaml", "model.onnx", "golden.npz", "labels.txt"
_MOST_FILE_BYTES = 512 * 1024 * 1024  # a bundle comes on a stick: what is larger is no model for this box
_MOST_FILES = 4096
_CHUNK_BYTES = 1024 * 1024
Share = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=8, le=4096)]
Word = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f/]+$")]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class BundleError(Exception):
    """A bundle that is not used, and why."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InputSpec(_Part):
    """The network's input: ``size`` width, height; ``mean`` and ``std`` on v/255, one for each channel."""

    tensor: Word
    size: tuple[Side, Side]
    channels: Literal[1, 3]
    fit: Literal["stretch", "letterbox"] = "stretch"
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> InputSpec:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need {self.channels} number(s) each, one for each channel")
        return self


class OutputSpec(_Part):
    """classify: ``tensor`` and ``activation``. anomaly: ``score`` and/or ``map``, ``low``/``high`` = raw at 0 and 1."""

    tensor: Word | None = None
    activation: Literal["softmax", "sigmoid", "none"] = "none"
    score: Word | None = None
    map: Word | None = None
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

    @model_validator(mode="after")
    def _review_comes_first(self) -> Thresholds:
        for name, fail_at in {"": self.fail_at, **{key: one.fail_at for key, one in self.classes.items()}}.items():
            if self.review_at > fail_at:
                raise ValueError(f"review_at {self.review_at} lies above {name or 'fail_at'} {fail_at}; write at most that")
        return self


class Bundle(_Part):
    """model.yaml, validated."""

    schema_: Literal[1] = Field(alias="schema")
    name: Word
    revision: Annotated[int, Field(ge=0)]
    task: Literal["classify", "anomaly"]
    taught_on: Literal["twin", "photographs"]
    precision: Literal["int8", "float32"]
    runtime: Literal["onnx", "jetson-inference"] = "onnx"
    """What runs the graph: our engines, or jetson-inference (FP16, its own preprocess, ``labels.txt`` beside it)."""
    input: InputSpec
    output: OutputSpec
    classes: Annotated[tuple[Word, ...], Field(min_length=2, max_length=1000)]
    good: Annotated[tuple[str, ...], Field(min_length=1)]
    thresholds: Thresholds
    promise: dict[str, Any] = {}
    data: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    files: Annotated[dict[str, Digest], Field(max_length=_MOST_FILES)]

    _folder: Path = PrivateAttr(default=Path())
    _digest: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _belongs_together(self) -> Bundle:
        for problem in (_class_problem(self), _output_problem(self)):
            if problem:
                raise ValueError(problem)
        return self

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def digest(self) -> str:
        """``sha256:`` of model.yaml, which names the digests of all other files."""
        return self._digest

    @property
    def onnx(self) -> Path:
        return self._folder / ONNX_FILE

    @property
    def golden(self) -> Path:
        return self._folder / GOLDEN_FILE

    @property
    def labels(self) -> Path | None:
        """Class names, one a line, where the bundle has them in a file."""
        return self._folder / LABELS_FILE if LABELS_FILE in self.files else None

    @cached_property
    def defects(self) -> tuple[int, ...]:
        """Numbers of the classes that can fail a part."""
        return tuple(index for index, name in enumerate(self.classes) if name not in self.good)

    @property
    def has_regions(self) -> bool:
        """Whether findings say where (``min_area_px`` needs it)."""
        return self.task == "anomaly" and self.output.map is not None


def load_bundle(folder: Path) -> Bundle:
    """The bundle in ``folder``, every file's digest checked. Raises BundleError."""
    folder = Path(folder)
    path = folder / MODEL_FILE
    try:
        with path.open("rb") as stream:
            raw = stream.read(reader.MAX_BYTES + 1)
    except OSError as why:
        raise BundleError(f"{folder}: no bundle there ({path.name}: {why.strerror}); name a folder with {MODEL_FILE}") from why
    bundle = parse(raw, path)
    bundle._folder, bundle._digest = folder, "sha256:" + hashlib.sha256(raw).hexdigest()
    _check_files(bundle)
    return bundle


def parse(raw: bytes, path: Path) -> Bundle:
    """model.yaml from its bytes; ``path`` stands in the errors. Raises BundleError with the line of each problem."""
    try:
        document = reader.read(raw)
    except reader.ReadError as why:
        raise BundleError(f"{path}:{why.mark.line}:{why.mark.column}: {why}") from why
    try:
        return Bundle.model_validate(document.data)
    except ValidationError as why:
        raise BundleError("; ".join(_told(error, document, path) for error in why.errors()[:8])) from why


def _told(error: Any, document: reader.Document, path: Path) -> str:
    location = tuple(error["loc"])
    known = location
    while known and known not in document.values:
        known = known[:-1]
    mark = document.values.get(known, reader.Mark(1, 1))
    what = str(error["msg"]).removeprefix("Value error, ")
    return f"{path}:{mark.line}:{mark.column}: {'.'.join(map(str, location)) or 'file'}: {what}"


def _class_problem(bundle: Bundle) -> str:
    classes, written = set(bundle.classes), ", ".join(bundle.classes)
    if len(classes) != len(bundle.classes):
        return f"classes names one twice: {written}; give each its own name"
    if not set(bundle.good) <= classes:
        return f"good names {', '.join(sorted(set(bundle.good) - classes))}; write some of {written}"
    if not bundle.defects:
        return "every class is good, so no part could fail; name a class that is not"
    unknown = set(bundle.thresholds.classes) - {bundle.classes[index] for index in bundle.defects}
    if unknown:
        return f"thresholds.classes names {', '.join(sorted(unknown))}, no class that can fail; write some of {written}"
    return ""


def _output_problem(bundle: Bundle) -> str:
    output = bundle.output
    if bundle.task == "classify":
        return "" if output.tensor else "output.tensor is missing; name the network's tensor of class scores"
    if not output.score and not output.map:
        return "output.score and output.map are both missing; name at least one of the network's tensors"
    if output.low == output.high:
        return f"output.low and output.high are both {output.low}; write the raw values that mean 0 and 1"
    return "" if len(bundle.defects) == 1 else "an anomaly bundle has one class that is not good; write classes: [good, anomaly]"


def _check_files(bundle: Bundle) -> None:
    path = bundle.folder / MODEL_FILE
    for needed in (ONNX_FILE, GOLDEN_FILE):
        if needed not in bundle.files:
            raise BundleError(f"{path}: files does not name {needed}; make the bundle anew")
    for name, digest in bundle.files.items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or "\\" in name or not place.parts:
            raise BundleError(f"{path}: files names {name!r}; only files inside the bundle's folder are allowed")
        found = file_digest(bundle.folder / place)
        if found != digest:
            raise BundleError(f"{bundle.folder / place}: its digest is {found}, model.yaml says {digest}; copy the bundle anew")


def file_digest(path: Path) -> str:
    """``sha256:`` of a file. Raises BundleError when it cannot be read or is too large."""
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        if size > _MOST_FILE_BYTES:
            raise BundleError(f"{path}: {size} bytes; a bundle's file has at most {_MOST_FILE_BYTES}")
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as why:
        raise BundleError(f"{path}: cannot be read ({why.strerror}); copy the bundle anew") from why
    return "sha256:" + digest.hexdigest()
