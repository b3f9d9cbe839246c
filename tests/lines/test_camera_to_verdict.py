"""The whole way on stand-ins that bite: driver's buffer → kernels → engine → reducer → judge → verdict, on each TensorRT.

Camera, memory, kernels, network, engine cache, stamps, matcher and judge are the product's; simulated are the kernel's
V4L2 driver, libcuda with PyCUDA, and TensorRT (tests/fakes). A laptop's answer for the same pictures is the truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.clock import SystemClock
from appliance.devices.camera_v4l2 import V4l2Camera
from appliance.inspect.image_health import HealthLimits
from appliance.inspect.inspector import Inspector, Look, RecipePlan
from appliance.inspect.judge import limits_of
from appliance.inspect.matching import Matcher
from appliance.inspect.stamps import StampProof
from appliance.messages import Trigger, Verdict
from appliance.model.bundle import Bundle
from appliance.model.golden import frame_of, part_score, replay_all
from appliance.wiring.machine import GpuMachine
from appliance.wiring.models import cpu_network
from tests.fakes import fake_v4l2
from tests.fakes.fake_v4l2 import FakeKernel
from tests.kernels.host_library import host_library
from tests.model.tiny import tiny_bundle
from tests.wiring.test_engines import VERSIONS, Box

CLOCK = SystemClock()
MS, FPS, PARTS, SIZE, PATH = 1_000_000, 100.0, 24, (320, 240), "/dev/v4l/by-path/port"
ROI = (33, 21, 128, 128)
LEVELS = (125, 128, 30, 130, 220)
NEVER_NS = 2**62


def shown(number: int, row: int, rows: int, pitch: int) -> bytes:
    """Good, dark and bright parts in turn, with noise that never repeats; what is behind a row is poison."""
    noise = np.random.default_rng(number).normal(LEVELS[number % len(LEVELS)], 6, (rows, row))
    image = np.full((rows, pitch), 255, np.uint8)
    image[:, :row] = np.clip(noise, 0, 250).astype(np.uint8)
    return image.tobytes()


class Line:
    """A camera in front of the network, and everything between the driver and the verdict."""

    def __init__(self, driver: str, bundle: Bundle, machine: GpuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fake_v4l2, "picture", shown)
        self.kernel = FakeKernel(CLOCK)
        make = {"usb": fake_v4l2.usb, "tegra": fake_v4l2.tegra}[driver]
        self.hardware = driver == "tegra"
        self.kernel.plug(PATH, make(modes={"GREY": {SIZE: [] if self.hardware else [FPS]}}, readout_ns=3 * MS, padding=32))
        gain = 32.0 if self.hardware else 20.0
        self.camera = V4l2Camera(
            "top", PATH, SIZE, FPS, "auto", 500, gain, self.hardware, {}, CLOCK, system=self.kernel
        )  # fmt: skip
        self.proof = StampProof(round(1e9 / FPS), self.hardware, 0)
        self.proof.listen(CLOCK.now_ns() - 1000 * MS)  # no edge since was missed
        self.network = machine.network(bundle, (1.0, 1.0, 1.0), lambda what, share: None)
        replay_all(self.network, bundle)
        look = Look("top", SIZE, False, ROI, bundle, self.network, limits_of(bundle, None, None, {}), HealthLimits())
        matcher = Matcher(0, 3 * MS, 250 * MS, wait_for_second=False)
        plan = RecipePlan("r", 1, "sha256:r", (look,), frozenset(), 0)
        self.inspector = Inspector(plan, {"top": matcher}, None, CLOCK)
        self.camera.open(machine.memory)

    def parts(self, count: int) -> Iterator[tuple[int, Verdict, bytes]]:
        """(number of the picture, its verdict, its pixels)."""
        edge_ns = CLOCK.now_ns()
        for part in range(1, count + 1):
            if self.hardware:
                edge_ns = max(CLOCK.now_ns(), edge_ns) + round(1e9 / FPS)
                self.kernel.fire(PATH, edge_ns)
                self.proof.on_trigger(edge_ns)
            frame = self.camera.next_frame(5.0)
            assert frame is not None
            number, pixels = frame.sequence, np.frombuffer(frame.memory, np.uint8).tobytes()
            placed = self.proof.place(frame)
            if placed.clock != "monotonic":
                frame.release()
                continue
            self.inspector.on_trigger(Trigger(part, placed.time_ns, NEVER_NS, "r"))
            self.inspector.on_frame("top", placed)
            self.inspector.step(CLOCK.now_ns())
            verdict = self.inspector.to_reject.popleft()
            assert isinstance(verdict, Verdict)
            yield number, verdict, pixels


@pytest.mark.parametrize("driver", ["usb", "tegra"])
@pytest.mark.parametrize("task", ["classify", "anomaly"])
@pytest.mark.parametrize("version", VERSIONS)
def test_each_part_gets_the_laptops_verdict_and_no_frame_is_copied(
    version: str, task: str, driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    bundle = tiny_bundle(tmp_path / "tiny", task)
    laptop, box = cpu_network(bundle), Box(tmp_path, version)
    seen: dict[str, int] = {}
    with box.site(host_library()) as site:
        machine = GpuMachine(box.data, site, box.build)
        line = Line(driver, bundle, machine, monkeypatch)
        for number, verdict, pixels in line.parts(PARTS):
            wanted = _laptops_score(laptop, bundle, pixels)
            assert verdict.score == pytest.approx(wanted, abs=0.01), f"picture {number}"
            seen[verdict.verdict] = seen.get(verdict.verdict, 0) + 1
        judged = sum(seen.values())  # on a busy machine a frame that came too late to be believed shows no part
        assert judged >= PARTS // 2 and seen.get("pass") and seen.get("fail"), seen
        assert line.camera.frame_copies == 0 and line.network.frame_copies == 0, line.camera.statistics()
        told = line.network.statistics()
        assert told["capture_failures"] == 0 and told["graph_launches"] >= judged, told  # golden vectors went before
        engine = line.network.identity["engine"]
        assert engine.startswith(f"tensorrt-{version}") and engine.endswith("/sm87")
        assert "no INT8 engine was licensed" in " ".join(machine.told), "without a licence float16 runs, and says so"
        line.camera.close()
        line.network.close()
        machine.memory.close()
    assert site.gpu is not None and box.gpu is not None and box.gpu.live() == 0


def _laptops_score(laptop: Any, bundle: Bundle, pixels: bytes) -> float:
    rows = np.frombuffer(pixels, np.uint8)
    pitch = SIZE[0] + 32
    x, y, w, h = ROI
    cut = np.stack([rows[(y + row) * pitch + x : (y + row) * pitch + x + w] for row in range(h)])
    found = laptop.wait(laptop.submit(frame_of(cut, "mono8"), None), NEVER_NS)
    if bundle.task == "anomaly":
        return float(found.scores[0])
    return part_score(found, bundle)
