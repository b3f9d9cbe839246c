"""Reads the names, members and enum numbers of one TensorRT from its real bindings into ``trt_names.json``.

    LD_LIBRARY_PATH=STUBS PYTHONPATH=WHEEL python tests/fakes/fake_tensorrt_names.py 10.3.0

WHEEL: an unpacked wheel from the Python index, `tensorrt-cu12-bindings` 10.3.0, `tensorrt-cu13-bindings` 10.16.1.11 and
11.4.0.106 (no GPU, no TensorRT needed). STUBS: three empty libraries libnvinfer.so.N, libnvonnxparser.so.N and
libnvinfer_plugin.so.N that export the functions which `nm -D --undefined-only` of the wheel's tensorrt.so names. Only names
and numbers are written down."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

NAMES = Path(__file__).with_name("trt_names.json")
CLASSES = (
    "Builder", "Dims", "EngineInspector", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "IHostMemory", "ILayer",
    "ILogger", "INetworkDefinition", "IProgressMonitor", "ITensor", "ITimingCache", "OnnxParser", "ParserError", "Runtime",
)  # fmt: skip
ENUMS = (
    "BuilderFlag", "DataType", "ErrorCode", "LayerInformationFormat", "LayerType", "MemoryPoolType",
    "NetworkDefinitionCreationFlag", "ProfilingVerbosity", "TensorIOMode", "TensorLocation",
)  # fmt: skip


def names_of(module: Any) -> dict[str, Any]:
    """What is kept of one version."""
    return {
        "full": module.__version__,
        "names": sorted(name for name in dir(module) if not name.startswith("__")),
        "members": {name: _public(getattr(module, name)) for name in CLASSES},
        "numbers": {
            **{name: _numbers(getattr(module, name)) for name in ENUMS},
            "Severity": _numbers(module.ILogger.Severity),
        },
    }


def _public(kind: Any) -> list[str]:
    return sorted(name for name in dir(kind) if not name.startswith("_"))


def _numbers(kind: Any) -> dict[str, int]:
    return {name: int(value) for name, value in kind.__members__.items()}


def written(known: dict[str, Any]) -> str:
    """JSON with one line for each class, so that a change can be read."""
    versions = []
    for version, kept in sorted(known.items()):
        parts = [f'"full": {json.dumps(kept["full"])}', f'"names": {json.dumps(kept["names"])}']
        for part in ("members", "numbers"):
            lines = [f"   {json.dumps(name)}: {json.dumps(value)}" for name, value in sorted(kept[part].items())]
            parts.append(f'"{part}": {{\n' + ",\n".join(lines) + "\n  }")
        versions.append(f" {json.dumps(version)}: {{\n  " + ",\n  ".join(parts) + "\n }")
    return "{\n" + ",\n".join(versions) + "\n}\n"


if __name__ == "__main__":
    known = json.loads(NAMES.read_text()) if NAMES.exists() else {}
    known[sys.argv[1]] = names_of(importlib.import_module("tensorrt_bindings"))
    NAMES.write_text(written(known))
