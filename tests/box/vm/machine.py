"""One virtual machine: boots, runs commands, has its stick plugged and its power cut.

    with Machine(box_image(deb), tmp_path / "vm") as machine:
        machine.check("systemctl is-system-running --wait")
        machine.plug(stick_image)                      # dummy_hcd: to the guest it is a USB stick
        machine.wait_until("test -e /run/x", 10)
        machine.cut_power()

All waiting has a deadline, and says what the guest had printed when it came.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.box.vm.kernel import kernel

_GRACE_S = 20.0  # on top of a command's own deadline, for the answer to come


class MachineLost(Exception):
    """The guest is gone, or does not answer; the text ends with the last of its console."""


class CommandFailed(Exception):
    """A command of ``check`` or ``wait_until`` that did not end with 0."""


@dataclass(frozen=True)
class Ran:
    """A command's end: its exit status (124: past its deadline) and what it printed, both streams together."""

    rc: int
    out: str


class Job:
    """A command under way in the guest."""

    def __init__(self, machine: Machine, number: int, command: str, deadline_s: float) -> None:
        self._machine, self._number, self._deadline_s, self.command = machine, number, deadline_s, command
        self._done = threading.Event()
        self._ran: Ran | None = None

    def wait(self, deadline_s: float | None = None) -> Ran:
        """Its end. Raises MachineLost."""
        self._done.wait((self._deadline_s if deadline_s is None else deadline_s) + _GRACE_S)
        if self._ran is None:
            raise MachineLost(f"no answer to {self.command!r}; the console ends:\n{self._machine.console()[-3000:]}")
        return self._ran

    def done(self) -> bool:
        return self._done.is_set()

    def stop(self) -> Ran:
        """SIGTERM to it and its children, then its end."""
        self._machine.say({"stop": self._number})
        return self.wait(10)

    def answer(self, ran: Ran | None) -> None:
        self._ran = ran
        self._done.set()


class Machine:
    """A guest on ``image``. ``folder`` takes its files: console, the shared folder ``shared`` (in the guest /host, both
    ways), the copy-on-write file. ``disks``: more images, in the guest /dev/ubdb and on, written in place. ``arguments``: of
    the kernel. Where ``copy_on_write`` is false ``image`` itself is written."""

    def __init__(
        self,
        image: Path,
        folder: Path,
        *,
        disks: Sequence[Path] = (),
        memory_mb: int = 1024,
        arguments: Sequence[str] = (),
        copy_on_write: bool = True,
    ) -> None:
        self._image, self._folder, self._disks = image.resolve(), folder.resolve(), [one.resolve() for one in disks]
        self._memory_mb, self._arguments, self._copy_on_write = memory_mb, arguments, copy_on_write
        self.shared = self._folder / "host"
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._listener: threading.Thread | None = None
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count(1)
        self._hello = threading.Event()
        self._lock = threading.Lock()
        self.boot_id = ""
        self.boot_s = 0.0

    def __enter__(self) -> Machine:
        self.boot()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut_power()

    # --- power --------------------------------------------------------------------------------------------------------

    def boot(self, deadline_s: float = 90) -> None:
        """Power on, and the agent answers. Raises MachineLost."""
        assert self._process is None, "it runs"
        self.shared.mkdir(parents=True, exist_ok=True)
        root = f"{self._folder / 'root.cow'},{self._image}" if self._copy_on_write else str(self._image)
        self._line, theirs = socket.socketpair()
        self._hello.clear()
        began = time.monotonic()
        command = [
            str(kernel()), f"mem={self._memory_mb}M", f"ubd0={root}", *(f"ubd{n}={one}" for n, one in enumerate(self._disks, 1)),
            "root=/dev/ubda", "rootfstype=ext4", "rw", "con0=null,fd:1", "con=null",
            f"ssl0=fd:{theirs.fileno()}", "ssl=null", "console=tty0", "panic=-1", "net.ifnames=0",
            "vivid.n_devs=1", "vivid.node_types=0x1", "vivid.num_inputs=1", "vivid.input_types=0", *self._arguments,
        ]  # fmt: skip
        with open(self._folder / "console", "ab") as console:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, pass_fds=[theirs.fileno()],
                start_new_session=True, cwd=self._folder, env={**os.environ, "HOME": str(self._folder)},
            )  # fmt: skip
        theirs.close()
        self._listener = threading.Thread(target=self._listen, args=(self._line,), daemon=True)
        self._listener.start()
        if not self._hello.wait(deadline_s):
            self.cut_power()
            raise MachineLost(f"no sign of life after {deadline_s:g} s; the console ends:\n{self.console()[-3000:]}")
        self.boot_s = time.monotonic() - began
        self.mount(self.shared, "/host")

    def stop(self, deadline_s: float = 60) -> None:
        """Shut down in order. Raises MachineLost."""
        assert self._process
        self.start("systemctl --no-block poweroff", 10)  # the agent may be gone before it can answer
        try:
            self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.cut_power()
            raise MachineLost(f"not off after {deadline_s:g} s; the console ends:\n{self.console()[-3000:]}") from None
        self.cut_power()

    def cut_power(self) -> None:
        """Off, now. What the guest had not yet written to its disks is gone; what it had written without a flush stands in
        the host's memory and so survives: for an honest cut put the data on dm-log-writes (see README)."""
        process, self._process = self._process, None
        if process:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it powered off by itself
            process.wait()
        if self._line:
            # only when its reader has ended: the number of a closed socket is the next machine's
            self._line.shutdown(socket.SHUT_RDWR)
            if self._listener:
                self._listener.join()
            self._line.close()
            self._line = None
        self._forget_jobs()

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def console(self) -> str:
        """All that the guest printed so far, of all its boots."""
        return (self._folder / "console").read_text(errors="replace")

    # --- commands -----------------------------------------------------------------------------------------------------

    def start(self, command: str, deadline_s: float = 600) -> Job:
        """A shell command as root, not waited for."""
        return self._ask({"run": command, "deadline_s": deadline_s}, command, deadline_s)

    def run(self, command: str, deadline_s: float = 60) -> Ran:
        """A shell command as root. Raises MachineLost."""
        return self.start(command, deadline_s).wait()

    def check(self, command: str, deadline_s: float = 60) -> str:
        """What it printed. Raises CommandFailed, MachineLost."""
        return self._expect(command, self.run(command, deadline_s))

    def wait_until(self, command: str, deadline_s: float = 30, every_s: float = 0.1) -> str:
        """Asked again and again in the guest until it ends with 0; what it printed. Raises CommandFailed, MachineLost."""
        return self._expect(f"until {command}", self.run_until(command, deadline_s, every_s))

    def run_until(self, command: str, deadline_s: float = 30, every_s: float = 0.1) -> Ran:
        """The same; 124 and what it printed last where it never ended with 0. Raises MachineLost."""
        asked = {"until": command, "deadline_s": deadline_s, "every_s": every_s}
        return self._ask(asked, command, deadline_s).wait()

    def script(self, path: Path, *arguments: str, python: str = "python3", deadline_s: float = 600) -> Job:
        """A program of the host's disk started in the guest."""
        (self.shared / "programs").mkdir(exist_ok=True)
        shutil.copy(path, self.shared / "programs" / path.name)
        words = [python, f"/host/programs/{path.name}", *arguments]
        return self.start(" ".join(map(shlex.quote, words)) if python == "python3" else
                          f"{python} " + " ".join(map(shlex.quote, words[1:])), deadline_s)  # fmt: skip

    def mount(self, folder: Path, place: str) -> None:
        """A folder of the host, both ways, at ``place`` in the guest."""
        self.check(f"mkdir -p {shlex.quote(place)} && mount -t hostfs none {shlex.quote(place)} -o {shlex.quote(str(folder))}")

    def say(self, words: dict[str, Any]) -> None:
        assert self._line, "it is off"
        with self._lock:
            self._line.sendall((json.dumps(words) + "\n").encode())

    def _expect(self, command: str, ran: Ran) -> str:
        if ran.rc:
            raise CommandFailed(f"{command!r} ended with {ran.rc}:\n{ran.out}")
        return ran.out

    def _ask(self, words: dict[str, Any], command: str, deadline_s: float) -> Job:
        number = next(self._numbers)
        job = self._jobs[number] = Job(self, number, command, deadline_s)
        try:
            self.say({"id": number, **words})
        except OSError as why:
            raise MachineLost(f"{command!r}: {why}; the console ends:\n{self.console()[-3000:]}") from why
        return job

    def _listen(self, line: socket.socket) -> None:
        """This machine's thread: answers come in any order."""
        rest = b""
        while block := line.recv(1 << 16):
            *lines, rest = (rest + block).split(b"\n")
            for one in lines:
                self._hear(one)
        self._forget_jobs()

    def _hear(self, line: bytes) -> None:
        try:
            words = json.loads(line)
        except ValueError:
            return  # noise of the line before the agent has made it raw
        if "hello" in words:
            self.boot_id = words["hello"]
            self._hello.set()
        elif job := self._jobs.pop(words["id"], None):
            job.answer(Ran(words["rc"], words["out"]))

    def _forget_jobs(self) -> None:
        while self._jobs:
            self._jobs.popitem()[1].answer(None)

    # --- devices ------------------------------------------------------------------------------------------------------

    def make_gpio(self, label: str, lines: Sequence[str]) -> None:
        """A chip of gpio-sim with these names; set one with ``pull``, read one with ``level``. Once a boot."""
        self.check(self.gpio_script(label, lines))

    @staticmethod
    def gpio_script(label: str, lines: Sequence[str]) -> str:
        """The same as a shell script, for a unit that runs it at each boot."""
        names = " ".join(map(shlex.quote, lines))
        return (
            "mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config;"
            f"set -e; chip=/sys/kernel/config/gpio-sim/{label}; mkdir -p $chip/bank; echo {len(lines)} > $chip/bank/num_lines;"
            f"echo {label} > $chip/bank/label; n=0; for name in {names}; do mkdir $chip/bank/line$n;"
            " echo $name > $chip/bank/line$n/name; n=$((n+1)); done; echo 1 > $chip/live;"
            f"device=$(cat $chip/dev_name); chip=$(cat $chip/bank/chip_name); mkdir -p /run/vm/gpio; n=0; for name in {names};"
            " do ln -sfn /sys/devices/platform/$device/$chip/sim_gpio$n /run/vm/gpio/$name; n=$((n+1)); done"
        )

    def pull(self, line: str, high: bool) -> None:
        """What the outside does to an input of gpio-sim."""
        self.check(f"echo pull-{'up' if high else 'down'} > /run/vm/gpio/{shlex.quote(line)}/pull")

    def level(self, line: str) -> bool:
        """What the line carries, whoever drives it."""
        return self.check(f"cat /run/vm/gpio/{shlex.quote(line)}/value").strip() == "1"

    def plug(self, image: Path, *, read_only: bool = False) -> None:
        """A USB stick with this image (of whole 512-byte sectors; written in place) on the guest's bus, as /dev/sda or on."""
        inside = self.shared / "sticks"
        inside.mkdir(exist_ok=True)
        target = inside / image.name
        if image.resolve() != target.resolve():
            shutil.copy(image, target)
        self.check(
            "mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config; set -e;"
            "g=/sys/kernel/config/usb_gadget/stick; mkdir -p $g; echo 0x1d6b > $g/idVendor; echo 0x0104 > $g/idProduct;"
            "mkdir -p $g/strings/0x409 $g/configs/c.1 $g/functions/mass_storage.0; echo 0001 > $g/strings/0x409/serialnumber;"
            "echo maker > $g/strings/0x409/manufacturer; echo stick > $g/strings/0x409/product;"
            f"l=$g/functions/mass_storage.0/lun.0; echo 1 > $l/removable; echo {int(read_only)} > $l/ro;"
            f"echo {shlex.quote('/host/sticks/' + image.name)} > $l/file;"
            "ln -sfn $g/functions/mass_storage.0 $g/configs/c.1/; ls /sys/class/udc | head -1 > $g/UDC"
        )

    def unplug(self) -> None:
        """Pulled, whatever was under way."""
        self.check(
            "g=/sys/kernel/config/usb_gadget/stick; echo > $g/UDC; rm $g/configs/c.1/mass_storage.0;"
            "rmdir $g/functions/mass_storage.0 $g/configs/c.1 $g/strings/0x409 $g"
        )

    def stick(self, name: str) -> Path:
        """The image of a plugged stick on the host: what the guest wrote is in it once it is unplugged."""
        return self.shared / "sticks" / name
