"""camera_v4l2 on the kernel's own vivid: both ways to share memory, rows with padding, and each fault that vivid can play."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.box.vm.cache import HERE
from tests.box.vm.line import PYTHON
from tests.box.vm.machine import Machine

pytestmark = [pytest.mark.machine, pytest.mark.timeout(600)]
FRAMES = 2000
SHARED = {"userptr": "USERPTR: the camera writes where the network reads; no copy",
          "mmap": "MMAP: the network reads where the camera writes; no copy"}  # fmt: skip


@pytest.fixture(scope="module")
def machine(box_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The package, its units not started, so that the camera is nobody's."""
    with Machine(box_image, tmp_path_factory.mktemp("vivid") / "vm", arguments=["systemd.mask=appliance.target"]) as made:
        made.run("systemctl is-system-running --wait", 120)
        yield made


def _said(machine: Machine, *arguments: str) -> dict[str, dict[str, Any]]:
    """What guest/vivid.py told, by its name."""
    ran = machine.script(HERE / "guest" / "vivid.py", *arguments, python=PYTHON, deadline_s=400).wait()
    assert ran.rc == 0, ran.out
    told = [json.loads(line) for line in ran.out.splitlines() if line.startswith("{")]
    return {one["what"]: one for one in told}


@pytest.mark.parametrize("kind", ["userptr", "mmap"])
def test_two_thousand_frames_each_in_one_pot(machine: Machine, kind: str) -> None:
    seen = _said(machine, "stream", kind, str(FRAMES))["stream"]
    told = seen["told"]
    assert seen["got"] == FRAMES and told["frame_copies"] == 0 and told["memory"].startswith(SHARED[kind])
    assert seen["rising"] and len(seen["addresses"]) == told["buffers"] == 6, "each buffer is used, and has a device's address"
    numbers = seen["last"] - seen["first"] + 1
    assert numbers == FRAMES + told["gaps"] + told["error_flagged"] + told["short"] + told["no_buffer"], seen
    assert seen["registered"] == 0 and seen["mapped"] == 0, "after close nothing is registered and nothing mapped"
    print(f"\n{kind}: {FRAMES} frames, {told['gaps']} numbers that vivid skipped, {told['fps']} fps at the end, 0 copies")


@pytest.mark.parametrize("kind", ["userptr", "mmap"])
def test_rows_with_padding_show_the_same_picture(machine: Machine, kind: str) -> None:
    seen = _said(machine, "padded", kind)["padded"]
    assert seen["pitches"] == [640, 704] and seen["same"] and seen["ramp"] > 100, seen


@pytest.mark.parametrize("kind", ["userptr", "mmap"])
def test_each_injected_fault_is_counted_as_what_it_is(machine: Machine, kind: str) -> None:
    seen = _said(machine, "injected", kind)
    assert seen["flag_error"]["counted"] == seen["flag_error"]["driver"] == 3
    assert seen["dropped"]["frames"] == 100 and seen["dropped"]["gaps"] >= 10, seen["dropped"]
    assert seen["held"]["no_buffer"] >= 5, seen["held"]
    assert seen["dequeue_gap"]["gaps"] >= 10 and seen["dequeue_gap"]["gaps"] - seen["dequeue_gap"]["missing"] in range(40)
    wrap = seen["wrap"]
    assert wrap["highest"] > 0xFFFFFF00 and wrap["lowest"] < 1000, "the driver's number went over its 32 bits"
    assert wrap["rising"] and wrap["gaps"] == wrap["missing"], wrap
    for name in ("inject_vidioc_reqbufs_error", "inject_vidioc_qbuf_error", "inject_vidioc_streamon_error"):
        told = seen[name]
        # once refused, USERPTR is given up for this opening, in words; MMAP that is refused is a lost camera, in words
        assert "Invalid argument" in told["words"] and told["then"] == 5 and told["copies"] == 0, told
        assert told["memory"].startswith(SHARED[kind]), "the next opening is as it was before"
    assert "takes no buffer back" in seen["qbuf_streaming"]["words"] and seen["qbuf_streaming"]["seconds"] < 1
    for name in ("fatal", "disconnect"):
        assert "gone or its stream failed" in seen[name]["words"] and seen[name]["seconds"] < 1, seen[name]
        assert seen[name]["then"] == 5, "it runs again"
    assert seen["registered"]["left"] == 0


@pytest.mark.parametrize("kind", ["userptr", "mmap"])
def test_a_driver_taken_away_is_a_loss_and_comes_back(machine: Machine, kind: str) -> None:
    seen = _said(machine, "unbound", kind)["unbound"]
    assert "gone" in seen["words"] and seen["seconds"] < 1 and seen["then"] == 10 and seen["opened"] == 2, seen
    assert seen["held"] == 320 * 180 * 2, "a frame that was held stays readable"
