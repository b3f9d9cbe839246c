"""python -m models.train --twin | --good DIR --bad DIR -o BUNDLE: a bundle from scratch, on the CPU, seeded.

The shipped bundle models/cap-28mm was made by
    python -m models.train --twin --count 26000 --epochs 12 --seed 9002 --name cap-28mm -o models/cap-28mm
"""

from __future__ import annotations

import argparse
import io
import logging
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import torch

from appliance.model.bundle import BundleError
from appliance.twin.parts import CRACK_WIDTH, KINDS, PROMISED, SCRATCH_WIDTH
from appliance.wiring.models import write_bundle
from calibration.quantize import quantize
from calibration.validate import inspect_images, operating_point
from models.train.data import TWIN_CLASSES, Labelled, photographs, read_grey, twin_frames, twin_set
from models.train.fit import MEAN, STD, fit, normalise
from models.train.photographs import augment_photograph, load_folders

log = logging.getLogger("models.train")
_CALIBRATE = 400
_HELD_OUT = 8000
_THRESHOLDS = {"review_at": 0.35, "fail_at": 0.5}


def main(arguments: list[str] | None = None) -> int:
    """Exit 0, 2 for unusable input."""
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    parser.add_argument("--twin", action="store_true", help="train on the simulated line's images")
    parser.add_argument("--good", type=Path, help="folder of photographs of good parts")
    parser.add_argument("--bad", type=Path, help="folder of photographs of defective parts")
    parser.add_argument("--size", default="160x160", help="network input, WIDTHxHEIGHT")
    parser.add_argument("--count", type=int, default=22000, help="twin images to train on")
    parser.add_argument("--held-out", type=int, default=_HELD_OUT, help="twin images to report on")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="bundle")
    parser.add_argument("--max-false-reject", type=float, default=0.01)
    parser.add_argument("-o", dest="out", type=Path, required=True)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    try:
        if options.twin == bool(options.good):
            raise ValueError("write either --twin, or --good DIR --bad DIR")
        return _twin(options) if options.twin else _photographs(options)
    except (ValueError, BundleError, OSError) as why:
        sys.stderr.write(f"models.train: {why}\n")
        return 2


def export(model: torch.nn.Module, size: tuple[int, int]) -> onnx.ModelProto:
    """Opset 17, static, batch 1; tensors ``image`` and ``scores``. size: width, height."""
    stream = io.BytesIO()
    example = torch.zeros(1, 1, size[1], size[0])
    torch.onnx.export(
        model, (example,), stream, opset_version=17, dynamo=False, input_names=["image"], output_names=["scores"]
    )
    return onnx.load_from_string(stream.getvalue())


def _meta(options: argparse.Namespace, classes: tuple[str, ...], size: tuple[int, int], taught_on: str) -> dict[str, Any]:
    return {
        "name": options.name, "revision": 1, "task": "classify", "taught_on": taught_on,
        "input": {
            "tensor": "image", "size": list(size), "channels": 1, "fit": "stretch", "mean": [MEAN], "std": [STD],
        },
        "output": {"tensor": "scores", "activation": "softmax"},
        "classes": list(classes), "good": ["good"], "thresholds": dict(_THRESHOLDS),
    }  # fmt: skip


def _tensors(images: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
    return [normalise(torch.from_numpy(image[None])).numpy()[0] for image in images]


def _twin(options: argparse.Namespace) -> int:
    seed = options.seed
    log.info("drawing %d twin images, seed %d", options.count, seed)
    taught = twin_set(seed, options.count, None)
    model = fit(taught.images, taught.labels, len(TWIN_CLASSES), epochs=options.epochs, seed=seed)
    float_graph = export(model, (160, 160))
    calibrate = twin_set(seed + 1, _CALIBRATE)
    int8 = quantize(float_graph, _tensors(calibrate.images))
    meta = _meta(options, TWIN_CLASSES, (160, 160), "twin")
    meta["promise"] = {
        "false_rejects": 0.01,
        "defects": {
            name: {"size": kind.smallest, "grey": kind.grey, **({"width": SCRATCH_WIDTH} if name == "scratch" else {}),
                   **({"width": CRACK_WIDTH} if name == "crack" else {})}
            for name, kind in PROMISED.items()
        },
    }  # fmt: skip
    meta["data"] = {
        "train": {"images": options.count, "good": int((taught.labels == 0).sum()), "digest": taught.digest, "seed": seed},
        "calibration": {"images": _CALIBRATE, "digest": calibrate.digest, "seed": seed + 1},
        "held_out": {"images": options.held_out, "seed": seed + 2},
    }
    golden = _golden_frames(seed + 3)
    bundle = write_bundle(options.out, int8, meta, golden, "mono8")
    log.info("held-out report")
    held_out = ((roi, TWIN_CLASSES[label]) for roi, label in twin_frames(seed + 2, options.held_out, 0.5))
    report = inspect_images(bundle, held_out, "mono8")
    meta["metrics"] = {"held_out": report.figures(bundle.good)}
    write_bundle(options.out, int8, meta, golden, "mono8")
    log.info("%s: %s", options.out, meta["metrics"])
    for name, verdict, score in report.rows:
        if (name == "good") != (verdict == "pass"):
            log.info("wrong: %s is %s, score %.3f", name, verdict, score)
    return 0


def _golden_frames(seed: int) -> list[npt.NDArray[np.uint8]]:
    """Two good ones and one of each kind."""
    wanted = [0, 0, *range(1, len(KINDS) + 1)]
    frames: list[npt.NDArray[np.uint8]] = []
    for roi, label in twin_frames(seed, 400, 0.6):
        if label in wanted:
            wanted.remove(label)
            frames.append(np.ascontiguousarray(roi))
    return frames


def _photographs(options: argparse.Namespace) -> int:
    if not options.bad:
        raise ValueError("--bad DIR is missing: a classifier needs both; good-only teaching is `appliance teach`")
    width, height = (int(part) for part in options.size.split("x"))
    everything: Labelled = load_folders(options.good, options.bad, (width, height))
    rng = np.random.default_rng(options.seed)
    order = rng.permutation(len(everything.images))
    kept, chosen = order[: len(order) * 9 // 10], order[len(order) * 9 // 10 :]
    model = fit(
        everything.images[kept], everything.labels[kept], len(everything.classes), epochs=options.epochs,
        seed=options.seed, batch=32, peak_rate=2e-3, augment=augment_photograph,
    )  # fmt: skip
    int8 = quantize(export(model, (width, height)), _tensors(everything.images[kept[:300]]))
    meta = _meta(options, everything.classes, (width, height), "photographs")
    meta["data"] = {"train": {"images": len(kept), "digest": everything.digest, "seed": options.seed}}
    some = [*photographs(options.good)[:6], *photographs(options.bad)[:6]]
    shape = read_grey(some[0]).shape
    golden = [image for image in map(read_grey, some) if image.shape == shape]
    bundle = write_bundle(options.out, int8, meta, golden, "mono8")
    rows = ((everything.images[index], everything.classes[int(everything.labels[index])]) for index in chosen)
    report = inspect_images(bundle, rows, "mono8")
    point = operating_point(report, bundle.good, options.max_false_reject)
    meta["metrics"] = {"split_off_train": report.figures(bundle.good), "operating_point": point}
    write_bundle(options.out, int8, meta, golden, "mono8")
    log.info("%s: %s", options.out, meta["metrics"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
