"""What the product asks of libraries that nobody here can run, held against what was read of the real ones.

Both JetPacks have the names: TensorRT differs between them, and is recorded for each. jetson-utils and jetson-inference
are on JetPack 6.2 only; the others are the same package on both.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.vendor.calls import complaints, record_of

HERE = Path(__file__).parent
DEVICES = HERE.parents[1] / "appliance" / "devices"
SIX, SEVEN = HERE / "jetpack-6.2", HERE / "jetpack-7.2"

# product file, top modules of the library, its records
USES = {
    "tensorrt on JetPack 6.2": ("engine_tensorrt.py", {"tensorrt"}, [SIX / "tensorrt.pyi"]),
    "tensorrt on JetPack 7.2": ("engine_tensorrt.py", {"tensorrt"}, [SEVEN / "tensorrt.pyi"]),
    "pycuda": ("cuda.py", {"pycuda"}, [HERE / "pycuda.pyi", HERE / "libcuda.pyi"]),
    "jetson_utils": ("camera_jetson.py", {"jetson_utils"}, [HERE / "jetson_utils.json"]),
    "jetson_inference": (
        "network_jetson_inference.py", {"jetson_inference", "jetson_utils"},
        [HERE / "jetson_inference.json", HERE / "jetson_utils.json"],
    ),
    "gpiod": ("gpio.py", {"gpiod"}, [HERE / "gpiod.pyi"]),
    "gi": ("camera_gige.py", {"gi"}, [HERE / "aravis.json"]),
}  # fmt: skip
# one line a library that names what is not there, and what is said of it
PLANTED = {
    "tensorrt on JetPack 6.2": ("    config.max_workspace_size = 1\n", "max_workspace_size"),
    "tensorrt on JetPack 7.2": ("    config.max_workspace_size = 1\n", "max_workspace_size"),
    "pycuda": ("    vendor.graph_instantiate(1)\n", "graph_instantiate"),
    "jetson_utils": ("    source.SetExposure(250)\n", "SetExposure"),
    "jetson_inference": ("    network.DetectInt8(1)\n", "DetectInt8"),
    "gpiod": ("    request.set_all_lines(1)\n", "set_all_lines"),
    "gi": ("    camera.set_exposure_mode_manual()\n", "set_exposure_mode_manual"),
}
# a call that no version of the library takes
MISCALLED = {
    "tensorrt on JetPack 6.2": ("    context.execute_async_v3()\n", "execute_async_v3"),
    "tensorrt on JetPack 7.2": ("    context.execute_async_v3(stream=1)\n", "execute_async_v3"),
    "pycuda": ("    vendor.memset_d8_async(1)\n", "memset_d8_async"),
    "jetson_utils": ("    source.GetWidth(1, 2)\n", "GetWidth"),
    "jetson_inference": ("    network.Classify()\n", "Classify"),
    "gpiod": ("    chip.get_line_info()\n", "get_line_info"),
    "gi": ("    camera.set_exposure_time()\n", "set_exposure_time"),
}
EVERY = pytest.mark.parametrize("library", USES)


def told(library: str, file: Path | None = None) -> list[str]:
    name, modules, records = USES[library]
    return complaints(file or DEVICES / name, record_of(*records), modules)


@EVERY
def test_every_name_and_call_is_the_real_librarys(library: str) -> None:
    assert told(library) == []


@EVERY
@pytest.mark.parametrize("planted", [PLANTED, MISCALLED], ids=["a name that is not there", "a call that is not taken"])
def test_a_planted_mistake_is_found(library: str, planted: dict[str, tuple[str, str]], tmp_path: Path) -> None:
    name = USES[library][0]
    line, word = planted[library]
    wrong = tmp_path / name
    arguments = "config, vendor, source, network, request, camera, context, chip"
    wrong.write_text((DEVICES / name).read_text() + f"\n\ndef _planted({arguments}):\n{line}")
    (only,) = told(library, wrong)
    assert word in only and name in only


@pytest.mark.parametrize("record", sorted(HERE.rglob("*.pyi")), ids=lambda path: path.name)
def test_each_record_says_where_it_was_read(record: Path) -> None:
    head = record.read_text()[:900]
    assert "Read from:" in head and ("commit" in head or "cuda.h" in head), record


@pytest.mark.parametrize("record", sorted(HERE.glob("*.json")), ids=lambda path: path.name)
def test_each_row_says_where_it_was_read(record: Path) -> None:
    rows = json.loads(record.read_text())
    assert rows and all(row["repository"] and row["commit"] and row["file"] for row in rows)
