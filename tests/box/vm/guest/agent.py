"""Runs inside the guest: takes commands from the host over a serial line, one JSON object a line, and answers in kind.

Host to guest: {"id", "run": shell text, "deadline_s"} | {"id", "until": shell text, "deadline_s", "every_s"} |
{"id", "stop": id of a command}. Guest to host: {"hello": boot id} once, then {"id", "rc", "out"} for each; 124 = it ran past
its deadline and was killed. Needs nothing but Debian's Python.
"""

import json
import os
import signal
import subprocess
import sys
import termios
import threading
import time
import tty

_MOST = 4_000_000  # characters of an answer; more goes through the shared folder


class Agent:
    """Commands at the same time, each in its own thread and process group."""

    def __init__(self, line):
        self.line, self.lock = line, threading.Lock()
        self.running, self.stopped = {}, set()

    def say(self, **words):
        data = (json.dumps(words) + "\n").encode()
        with self.lock:
            while data:
                data = data[os.write(self.line, data) :]

    def run(self, command, deadline_s, number):
        process = subprocess.Popen(
            ["/bin/bash", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, cwd="/root",
        )  # fmt: skip
        self.running[number] = process
        killer = threading.Timer(deadline_s, os.killpg, (process.pid, signal.SIGKILL))
        killer.start()
        out = process.communicate()[0].decode(errors="replace")
        late = not killer.is_alive() or killer.finished.is_set()
        killer.cancel()
        del self.running[number]
        rc = process.returncode
        return (124 if late and rc == -signal.SIGKILL else rc if rc >= 0 else 128 - rc), out[:_MOST]

    def until(self, command, deadline_s, every_s, number):
        """The command again and again, until it ends with 0."""
        end = time.monotonic() + deadline_s
        while True:
            rc, out = self.run(command, max(0.1, end - time.monotonic()), number)
            if rc == 0 or number in self.stopped or time.monotonic() + every_s > end:
                return rc if rc == 0 else 124, out
            time.sleep(every_s)

    def answer(self, one):
        try:
            if "until" in one:
                rc, out = self.until(one["until"], one["deadline_s"], one["every_s"], one["id"])
            else:
                rc, out = self.run(one["run"], one["deadline_s"], one["id"])
        except Exception as why:
            rc, out = 125, f"agent: {why!r}"
        self.say(id=one["id"], rc=rc, out=out)

    def stop(self, number):
        self.stopped.add(number)
        process = self.running.get(number)
        if process:
            os.killpg(process.pid, signal.SIGTERM)

    def serve(self):
        with open("/proc/sys/kernel/random/boot_id") as stream:
            self.say(hello=stream.read().strip())
        rest = b""
        while True:
            block = os.read(self.line, 65536)
            if not block:
                return
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                one = json.loads(line)
                if "stop" in one:
                    self.stop(one["stop"])
                else:
                    threading.Thread(target=self.answer, args=(one,), daemon=True).start()


if __name__ == "__main__":
    serial = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)
    tty.setraw(serial, termios.TCSANOW)
    Agent(serial).serve()
