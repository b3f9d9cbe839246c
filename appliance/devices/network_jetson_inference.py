"""ports.Network by jetson-inference, for its own FP16 networks: imageNet, detectNet and segNet, nothing drawn.

It preprocesses in its own way and takes no other; ``limits_of`` says in words what that rules out. jetson_inference and
jetson_utils, on whose images it runs, are imported when the first network is made."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from appliance.clock import now_ns
from appliance.ports import EngineError, Findings, Frame, Statistics

Box = tuple[int, int, int, int]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_PIXEL, _CHANNELS = "rgb8", 3
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# mean, std on v/255 that each network subtracts and divides by from an ONNX file, whatever the model was trained on
_NORMALISED = {"classify": _IMAGENET, "segment": _IMAGENET, "detect": _HALF}
_SAME = 1e-3
_LOWEST = -3.0e38  # its threshold drops classes without a word; float32's lowest drops none but NaN


class Measure(Protocol):
    """memory (bytes, 1-D), size (width, height), pitch in bytes, pixel format, ROI or None; read by the CPU."""

    def __call__(self, memory: U8, size: tuple[int, int], pitch: int, pixel: str, roi: Box | None, /) -> Statistics: ...


@dataclass(frozen=True)
class BundleFacts:
    """What of a bundle and a box decides whether jetson-inference can run it.

    ``size``: width, height of the network's input; ``classes`` in the order of the labels file; ``outputs``: tensor
    names, for detect scores before boxes; ``tensorrt``: full version; ``patched``: jetson-inference was built with the
    fix of #1913; ``folder_writable``: the model's folder, by this user."""

    task: str
    model: Path
    labels: Path | None
    classes: tuple[str, ...]
    input_name: str
    outputs: tuple[str, ...]
    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str
    quantized: bool
    folder_writable: bool
    tensorrt: str
    patched: bool = False
    lowest_score: float = 0.05


def refusals_of(facts: BundleFacts) -> list[str]:
    """Why jetson-inference cannot run this bundle; empty: it can. Pure."""
    found: list[str] = []
    if facts.task not in _NORMALISED:
        return [f"jetson-inference has no network for {facts.task}; take engine: cuda for this bundle"]
    if facts.quantized:
        found.append("the graph holds Q/DQ pairs (INT8), which jetson-inference cannot run; give it the float model")
    if facts.model.suffix != ".onnx":
        found.append(f"{facts.model.name} does not end in .onnx; it would be fed BGR less a mean, as Caffe's models were")
    if facts.labels is None:
        found.append("a labels file is needed, one class a line; without one it takes its own names")
    if facts.channels != _CHANNELS:
        found.append(f"the model takes {facts.channels} channel; jetson-inference feeds RGB, three")
    elif not _same(facts.mean, _NORMALISED[facts.task][0]) or not _same(facts.std, _NORMALISED[facts.task][1]):
        mean, std = _NORMALISED[facts.task]
        found.append(f"jetson-inference always takes mean {list(mean)} and std {list(std)} for {facts.task}; train the model so")
    if facts.fit != "stretch":
        found.append(f"fit: {facts.fit} is not to be had, jetson-inference stretches; train the model so")
    if len(facts.outputs) != (2 if facts.task == "detect" else 1):
        found.append(f"{facts.task} has {len(facts.outputs)} outputs; it takes scores and boxes for detect, else one")
    if not facts.folder_writable:
        found.append(f"{facts.model.parent} is not writable; the engine is written beside the model")
    if _major(facts.tensorrt) >= 11:
        found.append("jetson-inference cannot be built for TensorRT 11; take engine: cuda")
    return found


def limits_of(facts: BundleFacts) -> list[str]:
    """Everything ``check`` tells: what rules the bundle out, and what holds of any that runs. Pure."""
    found = refusals_of(facts)
    if _major(facts.tensorrt) == 10 and not facts.patched:
        found.append(
            f"jetson-inference as published ends the process when it loads an engine of TensorRT {facts.tensorrt}"
            " (dusty-nv/jetson-inference #1913); build it with the fix of pull request #1925, or take engine: cuda"
        )
    if facts.task == "detect":
        found.append(f"class 0 ({facts.classes[0] if facts.classes else '?'}) is taken for background and never found")
        found.append(f"boxes under {facts.lowest_score:g} are not told, and overlapping ones are merged by jetson-inference")
    if facts.task == "segment":
        found.append("segNet tells each cell's class and no score")
    found.append("brightness and sharpness are worked out by the CPU from the frame: jetson-inference gives none")
    found.append("the first load builds an FP16 engine beside the model and takes minutes; its key knows no power mode")
    return found


class JetsonInferenceNetwork:
    """One of its networks on one model file. ``submit`` remembers, ``wait`` runs: its calls cannot be parted."""

    def __init__(
        self, facts: BundleFacts, identity: dict[str, str], measure: Measure, scores_of: Callable[[F32], F32],
    ) -> None:  # fmt: skip
        """``scores_of``: raw outputs, one a class -> scores 0..1 (the bundle's activation; jetson-inference applies none).

        Raises EngineError: refused, or not loaded. A first load takes minutes."""
        refusals = refusals_of(facts)
        if not facts.model.is_file() or (facts.labels is not None and not facts.labels.is_file()):
            # A name it does not find as a file may be one of its own networks, which it then downloads.
            refusals.append(f"{facts.model} and its labels have to lie on the disk")
        if refusals:
            raise EngineError("; ".join(refusals))
        self._facts, self._measure, self._scores_of = facts, measure, scores_of
        self._inference, self._utils = _libraries()
        self._net = self._load()
        self.identity = {**identity, "precision": "float16", "engine": f"jetson-inference/tensorrt-{facts.tensorrt}"}
        self.frame_copies = 0
        self.last_input: F32 | None = None  # it shows neither its tensor nor its raw outputs: golden vectors hold the score
        self.last_outputs: dict[str, F32] = {}
        self._own: dict[tuple[str, int, int], Any] = {}
        self._ticket = 0
        self._waiting: tuple[int, Frame, Box | None] | None = None

    def submit(self, frame: Frame, roi: Box | None) -> int:
        """Remember the frame. Raises EngineError for pixels it would pass over without a word."""
        if frame.pixel != _PIXEL:
            raise EngineError(f"jetson-inference takes {_PIXEL} and the frame is {frame.pixel}; write cameras.*.pixel: {_PIXEL}")
        self._ticket += 1
        self._waiting = (self._ticket, frame, roi)
        return self._ticket

    def wait(self, ticket: int, deadline_ns: int) -> Findings | None:
        """Findings of the frame submitted last. A run once begun is ended: the caller looks at the deadline before."""
        if self._waiting is None or self._waiting[0] != ticket:
            raise EngineError(f"ticket {ticket} is not the one that waits")
        _, frame, roi = self._waiting
        self._waiting = None
        begun = now_ns()
        try:
            measured = self._measure(np.frombuffer(frame.memory, np.uint8), frame.size, frame.pitch_bytes, frame.pixel, roi)
            image = self._image(frame, roi)
            middle = now_ns()
            scores, score_map, candidates = self._run(image)
        except EngineError:
            raise
        except Exception as why:  # jetson-inference and jetson-utils raise nothing but bare Exception
            raise EngineError(f"jetson-inference failed on {self._facts.model.name}: {why}") from why
        return Findings(
            task=self._facts.task, scores=scores, score_map=score_map, candidates=candidates,
            statistics=measured,
            preprocess_ms=(middle - begun) / 1e6, infer_ms=(now_ns() - middle) / 1e6,
        )  # fmt: skip

    def warm(self, frame: Frame, roi: Box | None) -> None:
        """Run once: its own buffers are made."""
        self.wait(self.submit(frame, roi), 0)

    def statistics(self) -> dict[str, Any]:
        """Figures for health: frames that were copied."""
        return {"frame_copies": self.frame_copies}

    def close(self) -> None:
        """The engine is freed with the object."""
        self._net = None
        self._own.clear()

    # --- loading ------------------------------------------------------------------------------------

    def _load(self) -> Any:
        """By keywords alone: a list of arguments, were there one, would silently win over them. Raises EngineError."""
        facts = self._facts
        files = {"model": str(facts.model), "labels": str(facts.labels), "input_blob": facts.input_name}
        try:
            if facts.task == "classify":
                net = self._inference.imageNet(**files, output_blob=facts.outputs[0])
                net.SetThreshold(_LOWEST)
                net.SetSmoothing(0.0)
            elif facts.task == "detect":
                net = self._inference.detectNet(
                    **files, threshold=facts.lowest_score, output_cvg=facts.outputs[0], output_bbox=facts.outputs[1]
                )
            else:
                net = self._inference.segNet(**files, output_blob=facts.outputs[0])
            classes = net.GetNumClasses()
        except Exception as why:  # bare Exception; what was wrong stands in its own log
            raise EngineError(f"jetson-inference cannot load {facts.model} ({why}); its reason stands in the journal") from why
        if classes != len(facts.classes):
            raise EngineError(
                f"{facts.model.name} has {classes} classes, model.yaml names {len(facts.classes)}; make the bundle anew"
            )
        return net

    # --- one frame ----------------------------------------------------------------------------------

    def _image(self, frame: Frame, roi: Box | None) -> Any:
        """A cudaImage of what is judged: around the frame's own memory, or cut into one of ours."""
        (width, height), row = frame.size, frame.size[0] * _CHANNELS
        if frame.address and frame.pitch_bytes == row:
            image = self._utils.cudaImage(width, height, format=_PIXEL, ptr=frame.address)
        else:
            image = self._kept(_PIXEL, width, height)  # it knows no pitch, and reaches no memory of the CPU alone
            rows = np.frombuffer(frame.memory, np.uint8)[: frame.pitch_bytes * height].reshape(height, -1)
            _bytes_of(image)[:] = rows[:, :row].reshape(-1)
            self.frame_copies += frame.arrived_ns != 0  # a golden vector came from no camera
        if roi is None or roi == (0, 0, width, height):
            return image
        x, y, wide, high = roi
        cut = self._kept("roi", wide, high)
        self._utils.cudaCrop(input=image, output=cut, roi=(x, y, x + wide, y + high))
        return cut

    def _kept(self, role: str, width: int, height: int) -> Any:
        """An image of ours, made once for each size."""
        key = (role, width, height)
        if key not in self._own:
            pixel = "gray8" if role == "classes" else _PIXEL
            self._own[key] = self._utils.cudaImage(width, height, format=pixel, mapped=1)
        return self._own[key]

    def _run(self, image: Any) -> tuple[F32, U8 | None, F32 | None]:
        """scores, score map, candidates. Raises EngineError, and what the libraries raise."""
        nothing = np.empty(0, np.float32)
        if self._facts.task == "classify":
            return self._classified(image), None, None
        if self._facts.task == "detect":
            return nothing, None, self._detected(image)
        self._net.Process(image)
        mask = self._kept("classes", self._net.GetGridWidth(), self._net.GetGridHeight())
        self._net.Mask(mask)
        cells = _bytes_of(mask).reshape(mask.height, mask.width).copy()  # close() frees the mask under a view
        return nothing, cells, None

    def _classified(self, image: Any) -> F32:
        """Float32 (classes,), 0..1. The list comes sorted by score, without what is not a number."""
        found = self._net.Classify(image, topK=0)
        raw = np.full(len(self._facts.classes), np.nan, np.float32)
        for number, score in found:
            raw[number] = score
        scores = self._scores_of(raw)
        if not np.all((scores >= 0) & (scores <= 1)):  # NaN is neither
            raise EngineError(f"{self._facts.model.name} gave scores outside 0..1; its last layer is not what model.yaml says")
        return scores.astype(np.float32, copy=False)

    def _detected(self, image: Any) -> F32:
        """Float32 (K, 6): x, y, width, height in network pixels, score, class. Its boxes are in the image's pixels."""
        across, down = self._facts.size[0] / image.width, self._facts.size[1] / image.height
        found = self._net.Detect(image, overlay="none")  # else it draws what it found into the frame
        rows = [
            (one.Left * across, one.Top * down, (one.Right - one.Left) * across, (one.Bottom - one.Top) * down,
             one.Confidence, one.ClassID)
            for one in found
        ]  # fmt: skip
        return np.array(rows, np.float32).reshape(-1, 6)


def _libraries() -> tuple[Any, Any]:
    """jetson_inference and jetson_utils. Raises EngineError: not there, or another package of that name."""
    try:
        import jetson_utils  # type: ignore[import-not-found]  # not on a laptop

        if not getattr(jetson_utils, "HAS_JETSON_UTILS_EXT", False):
            raise EngineError(
                "the jetson_utils found here is not dusty-nv/jetson-utils with its C extension (the package of that name on"
                " the Python package index is a stranger's); remove it and build the real one on the box"
            )
        import jetson_inference  # type: ignore[import-not-found]
    except ImportError as why:
        raise EngineError(
            f"jetson-inference is not there ({why}); it is github.com/dusty-nv/jetson-inference, built on a box with"
            " JetPack 6 and seen only by a Python that looks into the system's packages; else take engine: cuda"
        ) from why
    return jetson_inference, jetson_utils


def _bytes_of(image: Any) -> U8:
    """A mapped image's bytes, by address: its interface dicts leak."""
    return np.frombuffer(memoryview((ctypes.c_ubyte * image.size).from_address(image.ptr)), np.uint8)


def _same(found: tuple[float, ...], wanted: tuple[float, ...]) -> bool:
    return len(found) == len(wanted) and all(abs(a - b) < _SAME for a, b in zip(found, wanted))


def _major(version: str) -> int:
    head = version.split(".")[0]
    return int(head) if head.isdecimal() else 0
