"""`appliance selftest` on stand-ins: what it finds, what it says of what is not there, and what it must not pass."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.__main__ import main
from appliance.clock import SystemClock
from appliance.config import load
from appliance.devices.camera_v4l2 import V4l2Camera
from appliance.messages import Edge
from appliance.ports import EngineError, OutputLost
from appliance.selftest import Bench, selftest, stamp_mark
from appliance.wiring.machine import CpuMachine, GpuMachine
from tests.fakes import fake_v4l2
from tests.fakes.fake_v4l2 import FakeKernel
from tests.kernels.host_library import host_library
from tests.model.tiny import tiny_bundle
from tests.wiring.test_engines import OLD, Box

CLOCK = SystemClock()
MS, FPS, PATH = 1_000_000, 100.0, "/dev/v4l/by-path/port"
SHIPPED = Path(__file__).resolve().parents[1] / "appliance/twin/station.yaml"


class Wire:
    """An output joined to an input, or not."""

    def __init__(self, whole: bool = True) -> None:
        self.whole, self.closed, self.edges = whole, 0, list[Edge]()
        self.signal = os.eventfd(0, os.EFD_NONBLOCK)

    def set(self, level: bool, now_ns: int) -> int:
        at_ns = CLOCK.now_ns()
        if self.whole:
            self.edges.append(Edge("back", level, at_ns + 40_000, len(self.edges)))
            os.eventfd_write(self.signal, 1)
        return at_ns

    def fileno(self) -> int:
        return self.signal

    def read(self) -> list[Edge]:
        told, self.edges = self.edges, []
        try:
            os.eventfd_read(self.signal)
        except BlockingIOError:
            assert not told
        return told

    def close(self) -> None:
        self.closed += 1


def bench(tmp_path: Path, **changes: Any) -> Bench:
    usual: dict[str, Any] = {
        "clock": CLOCK, "root": tmp_path, "machine": CpuMachine, "camera": None,
        "line_pair": lambda one, two: (_ for _ in ()).throw(OutputLost("no such line")), "licence": None,
    }  # fmt: skip
    return Bench(**{**usual, **changes})


def run(made: Bench, tmp_path: Path, **changes: Any) -> tuple[int, str, dict[str, Any]]:
    usual: dict[str, Any] = {"station": None, "bundles": [], "loopback": None}
    out, file = io.StringIO(), tmp_path / "told.json"
    code = selftest(**{**usual, **changes}, bench=made, out=out, json_file=file)
    return code, out.getvalue(), {step["name"]: step for step in json.loads(file.read_text())}


def test_a_laptop_passes_and_each_skipped_step_says_what_it_wants(tmp_path: Path) -> None:
    code, text, told = run(bench(tmp_path), tmp_path, bundles=[tiny_bundle(tmp_path / "tiny").folder])
    assert code == 0 and ("9 golden vectors" in text or "8 golden vectors" in text)
    skipped = [step for step in told.values() if step["state"] == "skipped"]
    assert {step["name"] for step in skipped} == {"GPIO loop-back", "INT8 licence tiny", "cameras", "throttling"}
    assert all(step["lines"] and len(step["lines"][0].split()) >= 4 for step in skipped)
    assert told["libraries"]["figures"]["numpy"] == np.__version__ and str(tmp_path / "told.json") in text


@pytest.mark.parametrize(("whole", "state"), [(True, "ok"), (False, "failed")])
def test_only_a_wire_shows_that_a_pin_moves(tmp_path: Path, whole: bool, state: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("appliance.selftest._EDGE_S", 0.001)
    wire = Wire(whole)
    code, text, told = run(bench(tmp_path, line_pair=lambda one, two: (wire, wire)), tmp_path, loopback=("gpio://A", "gpio://B"))
    assert told["GPIO loop-back"]["state"] == state and code == (state == "failed") and wire.closed == 2
    assert ("pinmux" in text) is not whole
    if whole:
        assert told["GPIO loop-back"]["figures"]["edge_us"]["p50"] == pytest.approx(40, abs=1)


def test_a_line_that_cannot_be_had_is_a_failure_in_its_own_words(tmp_path: Path) -> None:
    code, text, _ = run(bench(tmp_path), tmp_path, loopback=("gpio://A", "gpio://B"))
    assert code == 1 and "no such line" in text


def station_with_camera(tmp_path: Path) -> Any:
    file = tmp_path / "station.yaml"
    text = SHIPPED.read_text().replace("source: twin://top", f"source: v4l2://{PATH}").replace("fps: 60", f"fps: {FPS:g}")
    file.write_text(text.replace("    pixel: mono8\n", "    pixel: mono8\n    trigger: free-run\n    exposure_us: 500\n"))
    return load(file, built_only=False)


def cameras(**changes: Any) -> Callable[[str, float | None], Any]:
    """A camera on a driver of its own, with another exposure if asked."""
    kernel = FakeKernel(CLOCK)
    kernel.plug(PATH, fake_v4l2.usb(modes={"GREY": {(640, 480): [FPS]}}, readout_ns=3 * MS, **changes))

    def make(name: str, exposure_us: float | None) -> Any:
        return V4l2Camera(
            name, PATH, (640, 480), FPS, "mono8", exposure_us or 500, 20.0, False, {}, CLOCK, system=kernel
        )  # fmt: skip

    return make


@pytest.fixture(autouse=True)
def fewer_frames(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("appliance.selftest.FRAMES", 60)
    monkeypatch.setattr("appliance.selftest.LOOPS", 20)
    monkeypatch.setattr("appliance.selftest.RUNS", 40)
    yield


def test_a_camera_tells_its_rate_its_copies_and_whether_its_stamps_are_proved(tmp_path: Path) -> None:
    _, text, told = run(bench(tmp_path, camera=cameras()), tmp_path, station=station_with_camera(tmp_path))
    step = told["camera top"]
    assert step["figures"]["frame_copies"] == 0 and "copies after the kernel: 0" in text
    assert step["figures"]["fps"] > 20 and "stamps:" in text


@pytest.mark.parametrize(("share", "mark"), [(0.5, "as taken"), (-0.45, "end"), (1.62, "start"), (0.0, None), (1.0, None)])
def test_what_a_stamp_marks_shows_in_how_the_exposure_moves_the_arrival(share: float, mark: str | None) -> None:
    assert stamp_mark(share) == mark


def test_a_driver_whose_stamp_marks_the_end_and_says_the_start_is_found(tmp_path: Path) -> None:
    lying = {"stamp": lambda middle_ns, exposure_ns: middle_ns + exposure_ns // 2}  # flagged as start, as usb() does
    code, text, told = run(bench(tmp_path, camera=cameras(**lying)), tmp_path, station=station_with_camera(tmp_path))
    share = told["camera top"]["figures"]["stamp_share"]
    assert stamp_mark(share) in ("end", None), share  # a busy machine may blur it, and must never turn it round
    assert stamp_mark(share) is None or (code == 1 and "write ?stamp=end" in text)


def test_on_a_module_the_engine_is_built_and_the_graph_gives_what_the_plain_launch_gives(tmp_path: Path) -> None:
    bundle, box = tiny_bundle(tmp_path / "tiny"), Box(tmp_path, OLD)
    with box.site(host_library()) as site:
        machine = GpuMachine(box.data, site, box.build)
        made = bench(tmp_path, root=box.root(), machine=lambda: _without_closing(machine))
        code, text, told = run(made, tmp_path, bundles=[bundle.folder])
        machine.memory.close()
    assert code == 0, text
    assert told["machine"]["figures"]["l4t"] == "36.4.3" and "L4T 36.4.3" in text
    step = told["model tiny"]
    assert any("runs as float16 on tensorrt-10.3" in line for line in step["lines"]), step
    assert step["figures"]["frame_copies"] == 0 and any("as of its first launch" in line for line in step["lines"])


def test_a_graph_that_gives_something_else_than_the_first_launch_fails(tmp_path: Path) -> None:
    class Drifts(CpuMachine):
        def network(self, *given: Any) -> Any:
            network, waits = super().network(*given), []
            whole = network.wait

            def wait(*ticket: Any) -> Any:
                found = whole(*ticket)
                waits.append(found)
                return replace(found, scores=found.scores + 0.001) if len(waits) == 1 else found

            network.wait = wait
            return network

    code, text, told = run(bench(tmp_path, machine=Drifts), tmp_path, bundles=[tiny_bundle(tmp_path / "tiny").folder])
    assert code == 1 and told["model tiny"]["state"] == "failed"
    assert "frame 1 in a camera's buffer scores 0.001 apart from the same frame's first launch" in text


def _without_closing(machine: GpuMachine) -> Any:
    """The fixture closes the site; its networks and memory are closed before."""
    machine.close = lambda: None  # type: ignore[method-assign]
    return machine


def test_a_machine_that_cannot_be_had_fails_and_the_rest_is_still_told(tmp_path: Path) -> None:
    def none() -> Any:
        raise EngineError("no CUDA driver answers on this machine")

    code, text, told = run(bench(tmp_path, machine=none), tmp_path, bundles=[tiny_bundle(tmp_path / "tiny").folder])
    assert code == 1 and told["what judges"]["state"] == "failed" and told["models"]["state"] == "skipped"
    assert "no CUDA driver answers" in text and "to send back" in text


def test_under_voltage_while_it_runs_is_a_failure_and_current_peaks_are_not(tmp_path: Path) -> None:
    hwmon = tmp_path / "sys/class/hwmon/hwmon3"
    hwmon.mkdir(parents=True)
    (hwmon / "name").write_text("soctherm_oc\n")

    def counters(*counts: int) -> None:
        for at, count in enumerate(counts, 1):
            (hwmon / f"oc{at}_event_cnt").write_text(f"{count}\n")

    for after, state in (((0, 0, 9), "ok"), ((2, 0, 0), "failed")):
        counters(0, 0, 0)

        def machine(after: tuple[int, ...] = after) -> CpuMachine:
            counters(*after)  # it happens while this runs
            return CpuMachine()

        _, _, told = run(bench(tmp_path, machine=machine), tmp_path)
        assert told["throttling"]["state"] == state, told["throttling"]


def test_the_verb_runs_everywhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["selftest", "-m", "models/cap-28mm", "--data-dir", str(tmp_path)]) == 0
    assert "8 steps: 4 ok, 0 failed, 4 skipped" in capsys.readouterr().out


def test_the_verb_refuses_half_a_loop_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--loopback", "gpio://A"]) == 2
    assert "names two lines" in capsys.readouterr().err
