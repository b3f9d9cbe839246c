"""Runs inside the guest: camera_v4l2 on the kernel's own vivid. vivid.py WHAT [memory] -> one JSON object a line.

Whatever the driver is told to do wrong, it is told through its own controls on a second descriptor, as v4l2-ctl would.
"""

import ctypes
import json
import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import appliance.devices.v4l2_driver as v4l2
from appliance.clock import SystemClock
from appliance.devices.camera_v4l2 import V4l2Camera
from appliance.ports import CameraLost, FrameBuffer, MemoryRefused

NODE = "/dev/v4l/by-path/platform-vivid.0-video-index0"
DRIVER = Path("/sys/bus/platform/drivers/vivid")
SIZE, FPS = (320, 180), 60.0


class Pages:
    """Page-aligned memory, the kind that CUDA registers: USERPTR. Buffers of a driver can be registered too: MMAP."""

    def __init__(self, lends=True, registers=True):
        self.lends, self.registers, self.registered = lends, registers, 0

    def allocate(self, nbytes, count):
        if not self.lends:
            raise MemoryRefused("this memory lends none")
        whole = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        made = [FrameBuffer(memoryview(mmap.mmap(-1, whole)), 1 + number) for number in range(count)]
        assert all(ctypes.addressof(ctypes.c_uint8.from_buffer(one.memory)) % mmap.PAGESIZE == 0 for one in made)
        return made

    def register(self, memory):
        if not self.registers:
            raise MemoryRefused("this memory registers none")
        self.registered += 1
        return FrameBuffer(memory, 1000 + self.registered)

    def unregister(self, buffer):
        self.registered -= 1


class Watched(v4l2.Kernel):
    """The real kernel; what the driver gave and got is counted, and a format may be asked for with wider rows."""

    def __init__(self, pitch=0):
        super().__init__()
        self.pitch, self.dequeued, self.flagged, self.raw = pitch, 0, 0, []

    def ioctl(self, fd, request, argument):
        if request == v4l2.S_FMT and self.pitch:
            argument.bytesperline = self.pitch
        super().ioctl(fd, request, argument)
        if request == v4l2.DQBUF:
            self.dequeued += 1
            self.flagged += bool(argument.flags & v4l2.FLAG_ERROR)
            self.raw.append(argument.sequence)


def memory_of(kind):
    return Pages(lends=kind == "userptr", registers=kind != "copy")


def camera(system=None, size=SIZE, fps=FPS, pixel="yuyv"):
    return V4l2Camera("top", NODE, size, fps, pixel, "auto", 1.0, False, {}, SystemClock(), system or v4l2.Kernel())


def control(name, value=1):
    """One of vivid's controls, as another program sets it."""
    device = v4l2.Device(v4l2.Kernel(), NODE)
    try:
        controls = v4l2.Controls(device, "test")
        one = controls.find(name)
        controls._write(one, value)
    finally:
        os.close(device.fd)


def take(one, count, deadline_s=60.0, each=None):
    """So many frames, each given back; those that came."""
    end, got = time.monotonic() + deadline_s, 0
    while got < count and time.monotonic() < end:
        frame = one.next_frame(0.5)
        if frame is not None:
            got += 1
            if each:
                each(frame)
            frame.release()
    return got


def until_lost(one, deadline_s=15.0):
    """(seconds, words) to the loss; words are empty where none came."""
    begin = time.monotonic()
    try:
        while time.monotonic() - begin < deadline_s:
            frame = one.next_frame(0.2)
            if frame:
                frame.release()
    except CameraLost as why:
        return time.monotonic() - begin, str(why)
    return deadline_s, ""


def tell(what, **words):
    print(json.dumps({"what": what, **words}), flush=True)


def stream(kind, count):
    """Frames in a row; every number in exactly one pot."""
    system, memory = Watched(), memory_of(kind)
    one = camera(system)
    one.open(memory)
    numbers, addresses, means = [], set(), set()

    def look(frame):
        numbers.append(frame.sequence)
        addresses.add(frame.address)
        means.add(sum(frame.memory[: frame.pitch_bytes : 2]) // (frame.pitch_bytes // 2))

    got = take(one, count, 240, look)
    told = one.statistics()
    one.close()
    mapped = sum("/dev/video" in line for line in Path("/proc/self/maps").read_text().splitlines())
    tell("stream", mapped=mapped, kind=kind, got=got, told=told, dequeued=system.dequeued, flagged=system.flagged,
         first=numbers[0],
         last=numbers[-1], rising=all(a < b for a, b in zip(numbers, numbers[1:])), addresses=sorted(addresses),
         registered=memory.registered, means=sorted(means)[:5])  # fmt: skip


def padded(kind):
    """Rows wider than their pixels: the same picture as with tight ones, and nothing of the padding."""
    rows = []
    control("test_pattern", 5)  # black, then
    for pitch in (0, 704):
        control("osd_text_mode", 2)
        control("test_pattern", 20)  # a grey ramp: each column has its value
        one = camera(Watched(pitch))
        one.open(memory_of(kind))
        seen = []

        def look(frame):
            rows_of = [bytes(frame.memory[row * frame.pitch_bytes :][:640]) for row in (0, 90, 179)]
            seen.append((frame.pitch_bytes, rows_of))  # noqa: B023

        take(one, 3, 20, look)
        one.close()
        rows.append(seen[-1])
    control("test_pattern", 0)
    control("osd_text_mode", 0)
    tell("padded", kind=kind, pitches=[one[0] for one in rows], same=rows[0][1] == rows[1][1], ramp=len(set(rows[1][1][1][::2])))


def injected(kind):
    """Each of vivid's faults while it runs, and what was counted of it."""
    system, memory = Watched(), memory_of(kind)
    one = camera(system)
    one.open(memory)
    take(one, 10)
    before = one.statistics()["error_flagged"]
    for _ in range(3):
        control("inject_v4l2_buf_flag_error")
        take(one, 5)
    tell("flag_error", kind=kind, counted=one.statistics()["error_flagged"] - before, driver=system.flagged)

    control("percentage_of_dropped_buffers", 20)
    before = one.statistics()
    take(one, 100)
    after = one.statistics()
    control("percentage_of_dropped_buffers", 0)
    tell("dropped", kind=kind, gaps=after["gaps"] - before["gaps"], frames=after["frames"] - before["frames"])

    before = one.statistics()
    held = [one.next_frame(1.0) for _ in range(2)]  # both that the judge may hold, for a while
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        assert one.next_frame(0.05) is None
    for frame in held:
        frame.release()
    take(one, 5)
    after = one.statistics()
    tell("held", kind=kind, no_buffer=after["no_buffer"] - before["no_buffer"], gaps=after["gaps"] - before["gaps"])

    # a dequeue gap: nobody asks for half a second, the driver runs out of buffers and goes on counting
    take(one, 5)
    before, sleeper = one.statistics(), threading.Event()
    sleeper.wait(0.5)
    numbers = []
    take(one, 12, 20, lambda frame: numbers.append(frame.sequence))
    after = one.statistics()
    tell("dequeue_gap", kind=kind, gaps=after["gaps"] - before["gaps"], missing=numbers[-1] - numbers[0] + 1 - len(numbers))

    control("wrap_sequence_number")
    one.close()
    one.open(memory)
    numbers, system.raw, before = [], [], one.statistics()
    take(one, 300, 30, lambda frame: numbers.append(frame.sequence))
    after = one.statistics()
    control("wrap_sequence_number", 0)
    tell("wrap", kind=kind, gaps=after["gaps"] - before["gaps"], rising=all(a < b for a, b in zip(numbers, numbers[1:])),
         missing=numbers[-1] - numbers[0] + 1 - len(numbers), lowest=min(system.raw), highest=max(system.raw))  # fmt: skip

    for name in ("inject_vidioc_reqbufs_error", "inject_vidioc_qbuf_error", "inject_vidioc_streamon_error"):
        one.close()
        control(name)
        try:
            one.open(memory)
            words = "opened: " + one.statistics()["memory"]
        except CameraLost as why:
            words = str(why)
        one.close()
        one.open(memory)
        tell(name, kind=kind, words=words, then=take(one, 5), copies=one.frame_copies, memory=one.statistics()["memory"])

    control("inject_vidioc_qbuf_error")  # while it streams: a buffer is not taken back
    seconds, words = until_lost(one)
    one.open(memory)
    tell("qbuf_streaming", kind=kind, seconds=seconds, words=words, then=take(one, 5))

    control("inject_fatal_streaming_error")
    seconds, words = until_lost(one)
    one.open(memory)
    tell("fatal", kind=kind, seconds=seconds, words=words, then=take(one, 5))

    control("disconnect")
    seconds, words = until_lost(one)
    one.close()
    try:
        one.open(memory)
        again = "opened"
    except CameraLost as why:
        again = str(why)
    one.close()
    rebind()
    one.open(memory)
    tell("disconnect", kind=kind, seconds=seconds, words=words, again=again, then=take(one, 5))
    one.close()
    tell("registered", kind=kind, left=memory.registered)


def rebind():
    """The driver lets go of the device and takes it again."""
    if (DRIVER / "vivid.0").exists():
        (DRIVER / "unbind").write_text("vivid.0")
    bind()


def bind():
    """Back, and udev is through with the old node's end and the new one's beginning."""
    (DRIVER / "bind").write_text("vivid.0")
    subprocess.run(["udevadm", "settle", "-t", "20"], check=True)
    assert os.path.exists(NODE)


def unbound(kind):
    """The driver is taken from under a camera that streams, and given back."""
    memory = memory_of(kind)
    one = camera()
    one.open(memory)
    take(one, 10)
    held = one.next_frame(1.0)
    (DRIVER / "unbind").write_text("vivid.0")
    seconds, words = until_lost(one)
    one.close()
    size = len(held.memory)
    checksum = sum(held.memory[:640])  # still readable: nobody may crash by a camera that is gone
    held.release()
    bind()
    one.open(memory)
    tell("unbound", kind=kind, seconds=seconds, words=words, held=size, checksum=checksum, then=take(one, 10),
         opened=one.statistics()["opened"],
         stale=one.statistics()["stale_releases"])  # fmt: skip
    one.close()


def levels():
    """Mean of the picture's luma at each brightness: what the line's bundle is taught on."""
    for value in (0, 64, 128, 192, 255):
        control("brightness", value)
        one = camera(fps=25.0)
        one.open(memory_of("userptr"))
        found = []

        def look(frame):
            rows = [frame.memory[row * frame.pitch_bytes + 128 : row * frame.pitch_bytes + 512 : 2] for row in range(90, 170)]
            found.append(sum(map(sum, rows)) / sum(map(len, rows)))  # noqa: B023

        take(one, 4, 20, look)
        one.close()
        tell("level", brightness=value, mean=found[-1])
    control("brightness", 128)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "stream":
        stream(arguments[0], int(arguments[1]))
    else:
        {"padded": padded, "injected": injected, "unbound": unbound, "levels": levels}[what](*arguments)
