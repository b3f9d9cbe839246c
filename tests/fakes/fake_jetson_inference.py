"""Stand-in of jetson-inference that behaves: its own preprocess, what it silently drops, what it draws into the frame.

``Zoo`` says what each model file answers: a function of the tensor (C, H, W) it was fed. ``Zoo.inference()`` is the module
to put in the place of ``jetson_inference``; it runs on the images of a ``fake_jetson_utils.World``."""

from __future__ import annotations

import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.fakes.fake_jetson_utils import Crashed, World

Answer = Callable[[np.ndarray], Any]
_RGB = ("rgb8", "rgba8")  # what imageFormatIsRGB says yes to, of the formats here
_IMAGENET = (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))
_HALF = (np.full(3, 0.5), np.full(3, 0.5))


class Zoo:
    """Models by path; ``answers``: classify (classes,), segment (classes, h, w), detect (boxes (n, 4) of 0..1, scores
    (n, classes)). ``tensorrt`` and ``patched`` as on the box."""

    def __init__(self, world: World, size: tuple[int, int] = (4, 4), tensorrt: str = "8.6.2", patched: bool = False) -> None:
        self.world, self.size, self.tensorrt, self.patched = world, size, tensorrt, patched
        self.answers: dict[str, Answer] = {}
        self.downloaded: list[str] = []
        self.fed: np.ndarray | None = None
        self.made: list[dict[str, Any]] = []

    def inference(self) -> types.ModuleType:
        return _module(self)

    def load(
        self, network: str, argv: Any, model: str | None, labels: str | None, names: dict[str, str]
    ) -> tuple[str, list[str]]:
        """The file that is run in the end, and its class names. Raises bare Exception."""
        if isinstance(argv, list) and argv:  # the keywords are passed over
            model, labels = None, None
        if model is None or not Path(model).is_file():
            self.downloaded.append(model or network)
            raise Exception("[jetson-inference] failed to load network")
        if not os.access(Path(model).parent, os.W_OK):
            raise Exception("[jetson-inference] failed to load network")
        if self.tensorrt.startswith("10.") and not self.patched:
            raise Crashed("setTensorAddress of a context that is not there yet (dusty-nv/jetson-inference #1913)")
        Path(f"{model}.1.1.{self.tensorrt}.GPU.FP16.engine").write_bytes(b"engine")
        self.made.append({"model": model, "labels": labels, **names})
        return model, Path(labels).read_text().split() if labels else []

    def feed(self, model: str, image: Any, normal: tuple[np.ndarray, np.ndarray]) -> Any:
        """What the model answers to an image, preprocessed as jetson-inference does: stretched, nearest pixel."""
        self.world.finish(0)  # the same stream
        pixels = self.world.pixels(image).astype(np.float64)[..., :3]
        rows = np.arange(self.size[1]) * image.height // self.size[1]
        columns = np.arange(self.size[0]) * image.width // self.size[0]
        small = pixels[rows][:, columns]
        if model.endswith(".onnx"):
            tensor = (small / 255 - normal[0]) / normal[1]
        else:
            tensor = small[..., ::-1] - np.array([104.0069879317889, 116.66876761696767, 122.6789143406786])
        self.fed = np.ascontiguousarray(tensor.transpose(2, 0, 1)).astype(np.float32)
        return self.answers[model](self.fed)


def _module(zoo: Zoo) -> types.ModuleType:
    class imageNet:
        def __init__(
            self, network: str = "googlenet", argv: Any = None, model: Any = None, labels: Any = None,
            input_blob: str = "data", output_blob: str = "prob",
        ) -> None:  # fmt: skip
            self._model, self._labels = zoo.load(network, argv, model, labels, {"input": input_blob, "output": output_blob})
            self._threshold, self._smoothing, self._smooth = 0.01, 0.0, None

        def Classify(self, image: Any, width: int = 0, height: int = 0, format: str = "rgba32f", topK: int = -1) -> Any:
            if image.format not in _RGB:
                raise Exception("[jetson-inference] imageNet.Classify() encountered an error classifying the image")
            raw = np.asarray(zoo.feed(self._model, image, _IMAGENET), np.float32)
            kept = [(number, float(score)) for number, score in enumerate(raw) if score >= self._threshold]
            kept.sort(key=lambda one: -one[1])
            if topK < 0:
                return kept[0] if kept else (-1, 0.0)
            return kept[:topK] if topK else kept

        def GetNumClasses(self) -> int:
            return len(self._labels)

        def GetClassDesc(self, index: int, /) -> str:
            return self._labels[index]

        def GetThreshold(self) -> float:
            return self._threshold

        def SetThreshold(self, threshold: float, /) -> None:
            self._threshold = threshold

        def GetSmoothing(self) -> float:
            return self._smoothing

        def SetSmoothing(self, factor: float, /) -> None:
            self._smoothing = factor

    class Detection:
        def __init__(
            self, classID: int = 0, confidence: float = 0.0, left: float = 0.0, top: float = 0.0, right: float = 0.0,
            bottom: float = 0.0,
        ) -> None:  # fmt: skip
            self.ClassID, self.Confidence = classID, confidence
            self.Left, self.Top, self.Right, self.Bottom = left, top, right, bottom

    class detectNet:
        def __init__(
            self, network: str = "ssd-mobilenet-v2", argv: Any = None, threshold: float = 0.5, model: Any = None,
            labels: Any = None, colors: Any = None, input_blob: str = "data", output_cvg: str = "coverage",
            output_bbox: str = "bboxes",
        ) -> None:  # fmt: skip
            names = {"input": input_blob, "scores": output_cvg, "boxes": output_bbox}
            self._model, self._labels = zoo.load(network, argv, model, labels, names)
            self._threshold = threshold

        def Detect(
            self, image: Any, width: int = 0, height: int = 0, overlay: str = "box,labels,conf", format: str = "rgba32f"
        ) -> list[Detection]:
            if image.format not in _RGB:
                return []  # its `return false` of an int: nothing found, no error
            boxes, scores = zoo.feed(self._model, image, _HALF)
            found = []
            for box, row in zip(boxes, scores):
                best = max(range(1, len(row)), key=lambda number: row[number])  # 0 is background
                if row[best] >= self._threshold:
                    left, top, right, bottom = np.asarray(box) * (image.width, image.height, image.width, image.height)
                    found.append(Detection(best, float(row[best]), float(left), float(top), float(right), float(bottom)))
            if overlay != "none":
                for one in found:
                    zoo.world.pixels(image)[int(one.Top) : int(one.Bottom), int(one.Left) : int(one.Right)] = 255
            return found

        def GetNumClasses(self) -> int:
            return len(self._labels)

        def GetClassDesc(self, index: int, /) -> str:
            return self._labels[index]

    detectNet.Detection = Detection  # type: ignore[attr-defined]
    Detection.__qualname__ = "detectNet.Detection"

    class segNet:
        def __init__(
            self, network: str = "fcn-resnet18-voc", argv: Any = None, model: Any = None, labels: Any = None,
            colors: Any = None, input_blob: str = "input_0", output_blob: str = "output_0",
        ) -> None:  # fmt: skip
            self._model, self._labels = zoo.load(network, argv, model, labels, {"input": input_blob, "output": output_blob})
            self._map = np.zeros((zoo.size[1], zoo.size[0]), np.uint8)

        def Process(
            self, image: Any, width: int = 0, height: int = 0, ignore_class: str = "void", format: str = "rgba32f"
        ) -> None:
            if image.format not in _RGB:
                return  # an error code taken for true: the map of the frame before stays
            scores = np.array(zoo.feed(self._model, image, _IMAGENET), np.float32)
            if ignore_class in self._labels:
                scores[self._labels.index(ignore_class)] = -np.inf
            self._map = scores.argmax(0).astype(np.uint8)

        def Mask(self, image: Any, width: int = 0, height: int = 0, filter_mode: str = "linear", format: str = "rgba32f") -> None:
            rows = np.arange(image.height) * self._map.shape[0] // image.height
            columns = np.arange(image.width) * self._map.shape[1] // image.width
            cells = self._map[rows][:, columns]
            zoo.world.pixels(image)[:] = cells[..., None] if image.format == "gray8" else 255

        def Overlay(
            self, image: Any, width: int = 0, height: int = 0, filter_mode: str = "linear", format: str = "rgba32f"
        ) -> None:
            zoo.world.pixels(image)[:] = 255

        def GetNumClasses(self) -> int:
            return len(self._labels)

        def GetClassDesc(self, index: int, /) -> str:
            return self._labels[index]

        def GetGridWidth(self) -> int:
            return int(self._map.shape[1])

        def GetGridHeight(self) -> int:
            return int(self._map.shape[0])

    module = types.ModuleType("jetson_inference")
    module.VERSION = "1.0.0"  # type: ignore[attr-defined]
    for one in (imageNet, detectNet, segNet):
        setattr(module, one.__name__, one)
    return module
