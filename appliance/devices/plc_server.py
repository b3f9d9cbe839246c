"""The PLC's Modbus TCP server, by pymodbus, in a thread of its own; the registers themselves are a map's."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from pymodbus.constants import ExcCodes
from pymodbus.pdu import ExceptionResponse, ModbusPDU
from pymodbus.server import ModbusTcpServer
from pymodbus.server.requesthandler import ServerRequestHandler
from pymodbus.simulator import DataType, SimData, SimDevice

from appliance.ports import Clock

log = logging.getLogger("appliance.plc")

MIRROR = 1000  # the input registers again, for PLCs that read only holding registers
RETRY_S = 2.0
MOST_CONNECTIONS = 16
_GOODBYE_S = 2.0
_IDLE_S, _PROBE_S, _PROBES = 5, 2, 3  # a PLC whose cable was pulled frees its place after 11 s
_WRITES = (5, 6, 15, 16, 22, 23)
_COILS, _DISCRETES, _INPUTS = (1, 5, 15), (2,), (4,)


class Registers(Protocol):
    """What the server asks of a map (report/plc.py); each call is one step. Writes return 0 or a Modbus exception."""

    def inputs(self, now_ns: int) -> list[int]: ...
    def holding(self) -> list[int]: ...
    def discretes(self, now_ns: int) -> tuple[int, int]: ...
    def coils(self) -> int: ...
    def write_holding(self, address: int, values: Sequence[int], now_ns: int) -> int: ...
    def write_coils(self, address: int, bits: Sequence[bool], now_ns: int) -> int: ...


class PlcServer:
    """Listens on ``host``:``port`` (0 = any free one, see ``wait_listening``); only ``clients`` may write, empty = all.

    An address that cannot be had is tried again every 2 s: nothing else waits for it. ``reason`` says why."""

    def __init__(self, registers: Registers, clock: Clock, host: str, port: int, clients: Sequence[str] = ()) -> None:
        self._registers, self._clock = registers, clock
        self._host, self._port = host, port
        self._clients = frozenset(clients)
        self._listening = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._bound_port = 0
        self.reason = "starting"
        self._thread = threading.Thread(target=self._run, name="modbus", daemon=True)
        self._thread.start()

    def wait_listening(self, timeout_s: float) -> int | None:
        """The port once the server listens, or None when it does not within ``timeout_s``."""
        return self._bound_port if self._listening.wait(timeout_s) else None

    def close(self) -> None:
        """Connections are cut and the thread ends."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(_GOODBYE_S)

    # --- the server's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server: _Server | None = None
        while server is None and not self._end.is_set():
            server = await self._listen()
            if server is None:
                await self._pause()
        await self._end.wait()
        if server is not None:
            await server.shutdown()  # type: ignore[no-untyped-call]

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._end.wait(), RETRY_S)
        except asyncio.TimeoutError:
            pass  # time for the next try

    async def _listen(self) -> _Server | None:
        try:
            socket.create_server((self._host, self._port)).close()  # pymodbus keeps the reason to itself
            server = _Server(self._device(), self._clients, (self._host, self._port))
            await server.serve_forever(background=True)
        except (OSError, RuntimeError) as why:
            reason = f"cannot listen on {self._host}:{self._port} ({why}); change modbus.listen or free the port"
            if reason != self.reason:
                log.error("%s", reason)
            self.reason = reason
            return None
        self._bound_port = server.port
        self.reason = ""
        log.info("the PLC is served on %s:%d", self._host, self._bound_port)
        self._listening.set()
        return server

    # --- requests ------------------------------------------------------------------------------------------------

    def _device(self) -> SimDevice:
        """The shape of the map: pymodbus answers exception 2 for whatever lies outside. Id 0 = any unit."""
        now_ns = self._clock.now_ns()
        holding, inputs = len(self._registers.holding()), len(self._registers.inputs(now_ns))
        words = DataType.REGISTERS
        return SimDevice(
            0,
            simdata=(
                [SimData(0, values=[False] * 16, datatype=DataType.BITS)],
                [SimData(0, values=[False] * 32, datatype=DataType.BITS)],
                [
                    SimData(0, count=holding, datatype=words),
                    SimData(MIRROR, count=inputs, datatype=words, readonly=True),
                ],
                [SimData(0, count=inputs, datatype=words)],
            ),
            action=self._action,
        )

    async def _action(
        self, function: int, _start: int, address: int, _count: int, current: list[int], values: list[Any] | None
    ) -> ExcCodes | None:
        """pymodbus asks before each access: a write goes to the map, a read gets the block as it stands now."""
        now_ns = self._clock.now_ns()
        if values is None:
            self._fill(function, current, now_ns)
            return None
        if function in _COILS:
            refused = self._registers.write_coils(address, values, now_ns)
        else:
            refused = self._registers.write_holding(address, values, now_ns)
        return ExcCodes(refused) if refused else None

    def _fill(self, function: int, block: list[int], now_ns: int) -> None:
        if function in _COILS:
            block[0] = self._registers.coils()
        elif function in _DISCRETES:
            block[0:2] = self._registers.discretes(now_ns)
        else:
            inputs = self._registers.inputs(now_ns)
            if function in _INPUTS:
                block[: len(inputs)] = inputs
                return
            holding = self._registers.holding()
            block[: len(holding)] = holding
            block[MIRROR : MIRROR + len(inputs)] = inputs


class _Server(ModbusTcpServer):
    """pymodbus' server, which tells its connections who may write."""

    def __init__(self, device: SimDevice, clients: frozenset[str], address: tuple[str, int]) -> None:
        super().__init__(device, address=address)
        self.clients = clients

    @property
    def port(self) -> int:
        listener: Any = self.transport
        return int(listener.sockets[0].getsockname()[1])

    def callback_new_connection(self) -> ServerRequestHandler:
        connection = _Connection(self, self.trace_packet, self.trace_pdu, self.trace_connect)
        connection.surplus = len(self.active_connections) >= MOST_CONNECTIONS
        return connection


class _Connection(ServerRequestHandler):
    """One PLC, panel or script. ``surplus``: one too many, closed at once."""

    surplus = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)  # type: ignore[no-untyped-call]
        self._requests: deque[ModbusPDU] = deque()

    def callback_connected(self) -> None:
        super().callback_connected()
        if self.surplus:
            log.warning("a connection of %s was closed: %d are open already", self._peer(), MOST_CONNECTIONS)
            self.close()
            return
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)

    def callback_data(self, data: bytes, addr: tuple[Any, ...] | None = None) -> int:
        """pymodbus takes one request of a segment and forgets the others; a PLC may send several at once."""
        used = 0
        while used < len(data):
            taken = super().callback_data(data[used:], addr)
            if taken <= 0:
                break
            used += taken
            if self.last_pdu is not None:
                self._requests.append(self.last_pdu)
        return used

    def send(self, data: bytes, addr: tuple[Any, ...] | None = None) -> None:
        """pymodbus forgets what has come of the next request when it answers this one; a segment may end anywhere."""
        begun = self.recv_buffer
        super().send(data, addr)
        self.recv_buffer = begun

    async def handle_request(self) -> None:
        """Called once for each request; nothing in it waits, so they are answered in order."""
        self.last_pdu = request = self._requests.popleft() if self._requests else None
        if request is None or request.function_code not in _WRITES or self._may_write():
            await super().handle_request()  # type: ignore[no-untyped-call]
            return
        refusal = ExceptionResponse(request.function_code, ExcCodes.ILLEGAL_FUNCTION)  # for this client there are none
        refusal.transaction_id, refusal.dev_id = request.transaction_id, request.dev_id
        self.server_send(refusal, self.last_addr)  # type: ignore[no-untyped-call]

    def _may_write(self) -> bool:
        return not self.server.clients or self._peer() in self.server.clients

    def _peer(self) -> str:
        name = self.transport.get_extra_info("peername")
        return str(name[0]) if name else ""
