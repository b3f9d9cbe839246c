"""A remote I/O coupler: pymodbus's server in a process of its own, with a watchdog and with every bad habit.

Runs as ``python coupler.py WATCHDOG_MS PORT``; orders come in and answers go out as lines of JSON. ``Coupler`` is the
test's end. Coils and discretes 0 to 15; times are CLOCK_MONOTONIC in nanoseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SLOW_S = 0.05
ROOT = Path(__file__).resolve().parents[2]


# --- the test's end -----------------------------------------------------------------------------------------------


class Coupler:
    """One coupler. ``order`` waits for the answer, at most ``within_s`` and a little."""

    def __init__(self, watchdog_ms: int = 500, port: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(watchdog_ms), str(port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.port = int(self._answer(20.0)["port"])

    def mode(self, mode: str) -> None:
        """normal, slow, silent, refuse, stuck (acknowledges; no coil moves any more), half (closes in mid-message)."""
        self.order(verb="mode", mode=mode)

    def contact(self, number: int, level: bool) -> int:
        """Set a discrete; the instant at which it changed."""
        return int(self.order(verb="contact", number=number, level=level)["at_ns"])

    def wait_coil(self, number: int, level: bool, within_s: float = 10.0) -> int:
        """The instant at which the coil took ``level``."""
        answer = self.order(verb="wait", number=number, level=level, within_s=within_s)
        assert answer["at_ns"] is not None, f"coil {number} did not become {level} in {within_s} s"
        return int(answer["at_ns"])

    def wait_writes(self, number: int, more: int, within_s: float = 10.0) -> list[int]:
        """When the next ``more`` writes of a coil came."""
        answer = self.order(verb="writes", number=number, more=more, within_s=within_s)
        assert answer["writes"] is not None, f"coil {number} was not written {more} times in {within_s} s"
        return list(answer["writes"])

    def order(self, **what: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        return self._answer(what.get("within_s", 0.0) + 10.0)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _answer(self, within_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], within_s)
        assert ready, "the coupler does not answer the test"
        return json.loads(self._process.stdout.readline())  # type: ignore[no-any-return]


# --- the process ----------------------------------------------------------------------------------------------------


class Pins:
    """Coils, contacts, and the watchdog that drops the coils when nobody writes them."""

    def __init__(self, watchdog_s: float) -> None:
        self.coils, self.contacts = [False] * 16, [False] * 16
        self.since_ns = [time.monotonic_ns()] * 16
        self.writes: list[list[int]] = [[] for _ in range(16)]
        self.changed = asyncio.Event()
        self.stuck = False
        self._watchdog_s = watchdog_s
        self._watch: asyncio.TimerHandle | None = None

    def write(self, first: int, levels: list[bool]) -> None:
        now_ns = time.monotonic_ns()
        for number, level in enumerate(levels, start=first):
            self._put(number, bool(level), now_ns)
            self.writes[number].append(now_ns)
        self._tell()
        if self._watch:
            self._watch.cancel()
        self._watch = asyncio.get_running_loop().call_later(self._watchdog_s, self._drop)

    def _drop(self) -> None:
        for number in range(16):
            self._put(number, False, time.monotonic_ns())
        self._tell()

    def _put(self, number: int, level: bool, now_ns: int) -> None:
        if self.coils[number] != level and not self.stuck:
            self.coils[number], self.since_ns[number] = level, now_ns

    def _tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


async def wait_for(pins: Pins, condition: Any, within_s: float) -> bool:
    end = time.monotonic() + within_s
    while not condition():
        try:
            await asyncio.wait_for(pins.changed.wait(), end - time.monotonic())
        except asyncio.TimeoutError:
            return False
    return True


async def obey(order: dict[str, Any], pins: Pins, server: Any) -> dict[str, Any]:
    number = order.get("number", 0)
    if order["verb"] == "mode":
        server.mode = order["mode"]
        pins.stuck = server.mode == "stuck"
    elif order["verb"] == "contact":
        pins.contacts[number] = order["level"]
        return {"at_ns": time.monotonic_ns()}
    elif order["verb"] == "wait":
        done = await wait_for(pins, lambda: pins.coils[number] == order["level"], order["within_s"])
        return {"at_ns": pins.since_ns[number] if done else None}
    elif order["verb"] == "writes":
        writes, seen = pins.writes[number], len(pins.writes[number])
        done = await wait_for(pins, lambda: len(writes) >= seen + order["more"], order["within_s"])
        return {"writes": writes[seen:] if done else None}
    return {}


def make_server(pins: Pins, port: int) -> Any:
    """Imported only here: the test's end needs none of it."""
    from pymodbus.constants import ExcCodes
    from pymodbus.pdu import ExceptionResponse
    from pymodbus.server import ModbusTcpServer
    from pymodbus.server.requesthandler import ServerRequestHandler
    from pymodbus.simulator import DataType, SimData, SimDevice

    class Server(ModbusTcpServer):
        mode = "normal"

        def callback_new_connection(self) -> ServerRequestHandler:
            return Connection(self, self.trace_packet, self.trace_pdu, self.trace_connect)

    class Connection(ServerRequestHandler):
        async def handle_request(self) -> None:
            mode, request = self.server.mode, self.last_pdu
            if mode == "silent" or request is None:
                return
            if mode == "slow":  # half of it on the way there, half on the way back
                await asyncio.sleep(SLOW_S / 2)
            if mode == "refuse":
                refusal = ExceptionResponse(request.function_code, ExcCodes.ILLEGAL_ADDRESS)
                refusal.transaction_id, refusal.dev_id = request.transaction_id, request.dev_id
                self.server_send(refusal, self.last_addr)
                return
            await super().handle_request()

        def server_send(self, pdu: Any, addr: Any) -> None:
            if self.server.mode == "half":
                self.send(self.framer.buildFrame(pdu)[:9], addr=addr)
                self.close()
            elif self.server.mode == "slow":
                asyncio.get_running_loop().call_later(SLOW_S / 2, super().server_send, pdu, addr)
            else:
                super().server_send(pdu, addr)

    async def action(function: int, _start: int, address: int, count: int, current: list[int], values: Any) -> Any:
        if values is not None:
            pins.write(address, values)
            return None
        levels = pins.coils if function in (1, 5, 15) else pins.contacts
        current[0] = sum(level << number for number, level in enumerate(levels))
        return None

    bits = [SimData(0, values=[False] * 16, datatype=DataType.BITS)]
    words = [SimData(0, count=1, datatype=DataType.REGISTERS)]
    device = SimDevice(1, simdata=(bits, list(bits), words, list(words)), action=action)
    server = Server(device, address=("127.0.0.1", port))
    return server


async def serve(watchdog_ms: int, port: int) -> None:
    pins = Pins(watchdog_ms / 1000)
    server = make_server(pins, port)
    await server.serve_forever(background=True)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    print(json.dumps({"port": server.transport.sockets[0].getsockname()[1]}), flush=True)
    while line := await orders.readline():
        print(json.dumps(await obey(json.loads(line), pins, server)), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(PermissionError):
        os.nice(-15)  # a real coupler does not slow down when this machine is busy
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
