"""The house's walls: who may import whom, read from the sources; each rule is shown to catch what it forbids."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOPS = ("appliance", "calibration", "models", "tests")

BASE = {"ports", "clock", "faults", "config", "link", "paths", "identity", "notify"}
# room → the other rooms of ours it may know, beside itself
MAY_KNOW: dict[str, set[str]] = {
    "messages": set(),
    **{one: {"messages"} | BASE for one in BASE},
    **{one: {"messages"} | BASE for one in ("reject", "report", "model", "box")},
    "inspect": {"messages", "model"} | BASE,
    "devices": {"messages", "ports", "clock", "link"},
}
# These put the rooms together. `status` and `selftest` are the bodies of verbs, as `__main__` is.
FREE = {"__main__", "supervisor", "status", "selftest", "wiring", "twin"}
VENDORS = {
    "amqtt",
    "cv2",
    "gi",
    "gpiod",
    "gpiozero",
    "jetson_inference",
    "jetson_utils",
    "onnxruntime",
    "openvino",
    "paho",
    "pycuda",
    "pymodbus",
    "tensorrt",
}
# A factory between two libraries has to know both; a network of jetson-inference takes images of jetson-utils.
BETWEEN = {"gpio.py": {"gpiod", "gpiozero"}, "network_jetson_inference.py": {"jetson_inference", "jetson_utils"}}
# One device in two files: what it knows of its vendor, and what it is to us.
SPLIT = {"appliance.devices.camera_v4l2": {"appliance.devices.v4l2_driver"}}


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    for top in TOPS:
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Each module named by an import, at any depth of the file, `if TYPE_CHECKING` and functions too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for one in node.names:
                yield node.lineno, one.name
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            if source == "appliance":  # from appliance import clock
                for one in node.names:
                    yield node.lineno, f"appliance.{one.name}"
            else:
                yield node.lineno, source


def room_of(name: str) -> str:
    """`appliance.reject.belt` lives in `reject`; a module outside appliance lives in its top folder."""
    parts = name.split(".")
    if parts[0] != "appliance":
        return parts[0]
    room = parts[1] if len(parts) > 1 else ""
    return room


def forbidden(root: Path) -> list[str]:
    """Every import that goes through a wall, and every module without a room or a docstring."""
    found: list[str] = []
    for name, path in modules(root):
        where, room = path.relative_to(root), room_of(name)
        if not ast.get_docstring(ast.parse(path.read_text())):
            found.append(f"{where}: no docstring")
        if name.startswith("appliance.") and room not in MAY_KNOW and room not in FREE:
            found.append(f"{where}: lives in no room of the house")
        vendors: set[str] = set()
        for line, target in imported(path, name):
            top = target.split(".")[0]
            if top in VENDORS:
                vendors.add(top)
            if top not in TOPS:
                continue
            fault = _through_a_wall(name, room, target)
            if fault:
                found.append(f"{where}:{line}: {fault}")
        if room == "devices" and len(vendors) > 1 and vendors != BETWEEN.get(path.name):
            found.append(f"{where}: more than one vendor library: {', '.join(sorted(vendors))}")
    return found


def _through_a_wall(name: str, room: str, target: str) -> str:
    other = room_of(target)
    if other == "tests" and room != "tests":
        return f"the product imports {target}"
    if not target.startswith("appliance."):
        return ""
    if other == "twin" and room not in {"twin", "__main__", "models", "tests"}:
        return f"{room} may not know the twin, and imports {target}"
    if room not in MAY_KNOW or other in MAY_KNOW[room]:
        return ""
    if other == room and (room != "devices" or target == name or target in SPLIT.get(name, ())):
        return ""
    return f"{room} may not know {other}, and imports {target}"


def test_nobody_imports_through_a_wall() -> None:
    assert forbidden(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("appliance/messages.py", "from appliance.clock import now_ns", "messages may not know clock"),
        ("appliance/clock.py", "import appliance.reject.belt", "clock may not know reject"),
        ("appliance/reject/belt.py", "from appliance.inspect import judge", "reject may not know inspect"),
        ("appliance/reject/belt.py", "from ..report import ledger", "reject may not know report"),
        ("appliance/model/bundle.py", "def f():\n    import appliance.inspect.judge", "model may not know inspect"),
        ("appliance/report/ledger.py", "from appliance.wiring import station as wiring", "report may not know wiring"),
        ("appliance/inspect/daemon.py", "from appliance.devices.camera_twin import X", "inspect may not know devices"),
        ("appliance/devices/camera_x.py", "from appliance import config", "devices may not know config"),
        ("appliance/devices/camera_x.py", "from appliance.devices import camera_y", "devices may not know devices"),
        ("appliance/devices/camera_x.py", "import appliance.devices.v4l2_driver as v4l2", "devices may not know devices"),
        ("appliance/devices/v4l2_driver.py", "import appliance.devices.camera_v4l2", "devices may not know devices"),
        ("appliance/devices/camera_v4l2.py", "from appliance.devices import v4l2_driver, cuda", "devices may not know devices"),
        ("appliance/devices/camera_x.py", "import cv2\nimport onnxruntime as ort", "more than one vendor library"),
        ("appliance/wiring/station.py", "from appliance.twin import line", "wiring may not know the twin"),
        ("appliance/supervisor.py", "from tests.model import tiny", "the product imports tests.model"),
        ("calibration/quantize.py", "import appliance.twin.scene", "calibration may not know the twin"),
        ("appliance/helpers.py", "import os", "lives in no room of the house"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    _write(tmp_path / file, f'"""One."""\n{line}\n')
    (fault,) = forbidden(tmp_path)
    assert fault.startswith(file) and complaint in fault


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("appliance/inspect/judge.py", "from appliance.model.bundle import Bundle"),
        ("appliance/reject/belt.py", "from appliance.reject.plan import MS\nfrom appliance import clock, messages"),
        ("appliance/devices/camera_x.py", "import cv2\nimport numpy\nfrom appliance.ports import Frame"),
        ("appliance/devices/camera_v4l2.py", "import appliance.devices.v4l2_driver as v4l2"),
        ("appliance/wiring/models.py", "from appliance.devices.camera_x import X"),
        ("models/train/data.py", "from appliance.twin.parts import draw_part"),
        ("appliance/__main__.py", "from appliance.twin import rehearse"),
    ],
)
def test_what_the_house_allows_is_not_complained_of(tmp_path: Path, file: str, line: str) -> None:
    _write(tmp_path / file, f'"""One."""\n{line}\n')
    assert forbidden(tmp_path) == []


def test_a_module_without_a_docstring_is_found(tmp_path: Path) -> None:
    _write(tmp_path / "appliance/reject/belt.py", "import os\n")
    assert forbidden(tmp_path) == ["appliance/reject/belt.py: no docstring"]


def test_rejectd_starts_without_numpy_or_any_vendor_library() -> None:
    script = "import sys, appliance.reject.daemon; print(*sorted({one.split('.')[0] for one in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "appliance" in loaded
    assert not loaded & (VENDORS | {"numpy"})


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(text)
