"""python -m calibration quantize FLOAT.onnx IMAGES -o OUT | validate BUNDLE IMAGES | threshold BUNDLE IMAGES."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import onnx

from appliance.model.bundle import BundleError, load_bundle
from appliance.model.preprocess_cv2 import prepare_cv2
from calibration.quantize import quantize
from calibration.validate import inspect_images, operating_point
from models.train.data import photographs, read_grey


def main(arguments: list[str] | None = None) -> int:
    """Exit 0, 2 for unusable input."""
    parser = argparse.ArgumentParser(prog="python -m calibration", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("quantize", "validate", "threshold"):
        verb = verbs.add_parser(name)
        verb.add_argument("source", type=Path, help="float ONNX" if name == "quantize" else "bundle")
        verb.add_argument("images", type=Path, help="folder; validate and threshold: good/ and other folders = classes")
    verbs.choices["quantize"].add_argument("-o", dest="out", type=Path, required=True)
    verbs.choices["quantize"].add_argument("-m", dest="bundle", type=Path, required=True, help="bundle whose input section holds")
    verbs.choices["threshold"].add_argument("--max-false-reject", type=float, default=0.01)
    verbs.add_parser("flatfield").add_argument("rest", nargs="*")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except (BundleError, ValueError, OSError) as why:
        sys.stderr.write(f"calibration: {why}\n")
        return 2


def _run(options: argparse.Namespace) -> int:
    if options.verb == "flatfield":
        raise ValueError("flatfield is not built yet")
    paths = photographs(options.images)
    if not paths:
        raise ValueError(f"{options.images}: no images there; name a folder of .jpg, .png, .bmp or .tif files")
    if options.verb == "quantize":
        bundle = load_bundle(options.bundle)
        tensors = (
            prepare_cv2(image.ravel(), image.shape[::-1], image.strides[0], "mono8", None, bundle.input).tensor
            for image in map(read_grey, paths)
        )
        onnx.save(quantize(onnx.load(str(options.source)), tensors), str(options.out))
        sys.stdout.write(f"{options.out}: INT8, calibrated on {len(paths)} images\n")
        return 0
    bundle = load_bundle(options.source)
    report = inspect_images(bundle, ((read_grey(path), path.parent.name) for path in paths), "mono8")
    good = bundle.good
    found = report.figures(good) if options.verb == "validate" else operating_point(report, good, options.max_false_reject)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
