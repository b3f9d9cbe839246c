"""``appliance rehearse`` in real time: the untouched firmware against the twin, a broker and a MES; then the score."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import msgspec

from appliance.clock import SystemClock
from appliance.config import Station, load
from appliance.devices.broker_embedded import start as start_broker
from appliance.link import SocketLink, connect
from appliance.messages import Hello, TwinControl
from appliance.paths import Paths
from appliance.supervisor import Supervisor
from appliance.twin.derive import derive, faster, pitch_and_speed
from appliance.twin.line import CameraPlace
from appliance.twin.mes import Mes, Network
from appliance.twin.plc import Figures, Plc
from appliance.twin.result import Result, read_ledger, read_truth, settle
from appliance.twin.scenarios import SCENARIOS, gate_times, shape_of
from appliance.twin.score import percentiles
from appliance.twin.trouble import Trouble

SHIPPED = Path(__file__).with_name("station.yaml")
_READY_S = 60.0
_PLC_S = 5.0
_AFTER_FAULT_NS = 5_000_000_000


@dataclass
class Options:
    """What the command line asks for."""

    file: Path = SHIPPED
    parts: int = 600
    ppm: float = 600.0
    seed: int = 1
    hard: bool = False
    good: Path | None = None
    bad: Path | None = None
    faults: list[Trouble] = field(default_factory=list)
    operator_s: float = 5.0
    keep: Path | None = None
    scenario: str = "steady"
    verbose: bool = False


class RehearsalFailed(Exception):
    """A rehearsal that could not be run to its end, and why."""


def rehearse(options: Options, out: TextIO) -> Result:
    """Run, and give the score. Raises ConfigError, ValueError, RehearsalFailed."""
    folder = options.keep or Path(tempfile.mkdtemp(prefix="appl-"))
    try:
        return _Rehearsal(options, folder, out).run()
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


class _Rehearsal:
    def __init__(self, options: Options, folder: Path, out: TextIO) -> None:
        self._options, self._folder, self._out = options, folder, out
        self._clock = SystemClock()
        self._paths = Paths(folder / "run", folder / "data").make()
        original = load(options.file, built_only=False)
        self._scenario = SCENARIOS[options.scenario]
        self._pitch_mm, self._speed_mm_s, raised = pitch_and_speed(original, options.ppm)
        self._pitch_mm = self._scenario.pitch_mm or self._pitch_mm
        if raised:
            out.write(faster(self._speed_mm_s, options.ppm))
        self._raised = raised
        self._excused: list[tuple[int, int]] = []
        self._clears = 0
        self._stopped_since_ns: int | None = None

    def run(self) -> Result:
        options = self._options
        broker_port, plc_port = _free_port(), _free_port()
        broker = start_broker(broker_port)
        processes: list[subprocess.Popen[bytes]] = [broker]
        supervisor: Supervisor | None = None
        network = mes = plc = None
        try:
            _wait_for_port(broker_port, broker)
            network = Network(broker_port)
            file = derive(
                options.file, self._folder, broker=f"mqtt://127.0.0.1:{network.port}",
                speed_mm_s=self._speed_mm_s if self._raised else None, photographs=options.good is not None,
                modbus=f"127.0.0.1:{plc_port}", scenario=self._scenario,
            )  # fmt: skip
            station = load(file, data_dir=self._paths.data)
            mes = Mes(broker_port, station.station)
            twin = self._start_twin(station)
            processes.append(twin)
            self._wait_for_twin(twin)
            supervisor = Supervisor(file, self._paths, verbose=options.verbose)
            supervisor.start()
            self._wait_running(mes, supervisor)
            plc = Plc(plc_port, self._clock)
            plc.start()
            control = self._control()
            steal = _steal_ticks()
            self._drive(control, mes, network, supervisor)
            self._wait_settled(mes, supervisor)
            steal = _steal_ticks() - steal
            plc_agrees = plc.wait_for(mes.retained.get("counters") or {}, _PLC_S)
            figures = plc.close()
            supervisor.stop()
            supervisor = None
            mes.wait_for(lambda m: m.retained.get("available") == "stopped", 3.0)
            twin.send_signal(signal.SIGTERM)
            twin.wait(5)
            result = self._result(station, mes, steal)
            self._add_plc(result, figures, plc_agrees)
            return result
        finally:
            if supervisor:
                supervisor.stop()
            if plc:
                plc.close()
            if mes:
                mes.close()
            if network:
                network.close()
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(5)

    # --- setting up ------------------------------------------------------------------------------------------

    def _start_twin(self, station: Station) -> subprocess.Popen[bytes]:
        options = self._options
        shape = shape_of(station, self._scenario, self._pitch_mm, self._speed_mm_s)
        cameras = tuple(
            CameraPlace(camera.source.name, camera.at_mm, round(camera.offset_ms * 1e6)) for camera in station.cameras.values()
        )
        scenario = {
            "run_dir": str(self._paths.run), "truth_file": str(self._folder / "truth.jsonl"), "seed": options.seed,
            "shape": msgspec.to_builtins(replace(shape, cameras=cameras, quarters=shape.encoder_mm > 0)),
            "covered_level": station.trigger.edge == "rising", "hard": options.hard,
            "good": str(options.good) if options.good else None, "bad": str(options.bad) if options.bad else None,
        }  # fmt: skip
        path = self._folder / "scenario.json"
        path.write_text(json.dumps(scenario), encoding="utf-8")
        return subprocess.Popen([sys.executable, "-m", "appliance.twin.process", str(path)])

    def _wait_for_twin(self, twin: subprocess.Popen[bytes]) -> None:
        """The line stands before the station starts: an output that nobody answers for is a fault that a person clears."""
        end_ns = self._clock.now_ns() + round(_READY_S * 1e9)
        while (link := connect(self._paths.twin_socket, Hello("report", "rehearse", os.getpid()))) is None:
            if self._clock.now_ns() > end_ns or twin.poll() is not None:
                raise RehearsalFailed("the twin's process does not answer")
            with contextlib.suppress(subprocess.TimeoutExpired):
                twin.wait(0.02)
        link.close()

    def _wait_running(self, mes: Mes, supervisor: Supervisor) -> None:
        end_ns = self._clock.now_ns() + round(_READY_S * 1e9)
        while not mes.wait_for(lambda m: _state(m) == "running", 0.5):
            supervisor.poll()
            if self._clock.now_ns() > end_ns:
                state = mes.retained.get("state")
                recipe = mes.retained.get("recipe") or {}
                raise RehearsalFailed(f"the station does not come to run: state {state}, inspectd: {recipe.get('reason')}")

    def _control(self) -> SocketLink:
        link = connect(self._paths.twin_socket, Hello("report", "rehearse", os.getpid()))
        if link is None:
            raise RehearsalFailed("the twin's process does not answer")
        return link

    # --- running ---------------------------------------------------------------------------------------------

    def _drive(self, control: SocketLink, mes: Mes, network: Network, supervisor: Supervisor) -> None:
        options = self._options
        control.send(TwinControl("feed", {"parts": options.parts}))
        begun_ns = self._clock.now_ns()
        due = sorted(options.faults, key=lambda one: one.at_s)
        restore: list[tuple[int, Any]] = []
        limit_ns = begun_ns + round((options.parts / options.ppm * 60 * 1.5 + 60 + 20 * len(due)) * 1e9)
        done = False
        while not done:
            now_ns = self._clock.now_ns()
            if now_ns > limit_ns:
                raise RehearsalFailed(f"the line did not end: {self._progress(mes)}")
            while due and now_ns - begun_ns >= due[0].at_s * 1e9:
                self._provoke(due.pop(0), control, network, supervisor, restore, now_ns)
            for at_ns, undo in [one for one in restore if one[0] <= now_ns]:
                restore.remove((at_ns, undo))
                undo()
            supervisor.poll()
            self._operator(mes, now_ns)
            control.send(TwinControl("status", {}))
            mes.wait_for(lambda m: False, 0.1)
            for message in control.receive():
                if isinstance(message, TwinControl):
                    done = bool(message.arguments["done"]) and not due and not restore
            self._out.write("\r" + self._progress(mes))
            self._out.flush()
        self._out.write("\n")

    def _provoke(
        self, trouble: Trouble, control: SocketLink, network: Network, supervisor: Supervisor, restore: list[Any], now_ns: int
    ) -> None:
        duration_ns = round(trouble.duration_s * 1e9)
        purge_ns = round(700 / self._speed_mm_s * 1e9)
        if trouble.name.startswith("kill-"):
            os.kill(supervisor.pid(trouble.name[5:-1]), signal.SIGKILL)
        elif trouble.name == "broker-down":
            network.cut(True)
            restore.append((now_ns + duration_ns, lambda: network.cut(False)))
            return  # costs no part anything: nothing is excused
        elif trouble.name == "slow-engine":
            pid = supervisor.pid("inspect")
            os.kill(pid, signal.SIGSTOP)
            restore.append((now_ns + duration_ns, lambda: os.kill(pid, signal.SIGCONT)))
        else:
            control.send(TwinControl("fault", {"name": trouble.name, "duration_s": trouble.duration_s}))
        self._excused.append((now_ns - 10**9, now_ns + duration_ns + _AFTER_FAULT_NS + purge_ns))

    def _operator(self, mes: Mes, now_ns: int) -> None:
        """A person who comes after a while and clears a stopped line."""
        state = mes.retained.get("state") or {}
        if "line is stopped" not in str(state.get("reason")):
            self._stopped_since_ns = None
            return
        if self._stopped_since_ns is None:
            self._stopped_since_ns = now_ns
        elif now_ns - self._stopped_since_ns >= self._options.operator_s * 1e9:
            self._clears += 1
            mes.command("clear", f"operator-{self._clears}")
            self._excused.append((self._stopped_since_ns - 10**9, now_ns + _AFTER_FAULT_NS))
            self._stopped_since_ns = None

    def _progress(self, mes: Mes) -> str:
        counters = mes.retained.get("counters") or {}
        told = "  ".join(f"{name} {counters.get(name, 0)}" for name in ("pass", "fail", "review", "blind", "late", "missed"))
        return f"  {counters.get('triggers', 0):>6} parts  {told}  in flight {counters.get('in_flight', 0):<4} {_state(mes):<9}"

    def _wait_settled(self, mes: Mes, supervisor: Supervisor) -> None:
        """Every part closed, acknowledged, and told."""
        end_ns = self._clock.now_ns() + 40 * 10**9
        quiet = False
        while not quiet and self._clock.now_ns() < end_ns:
            supervisor.poll()
            quiet = mes.wait_for(_settled, 0.5)

    # --- scoring -----------------------------------------------------------------------------------------------

    def _result(self, station: Station, mes: Mes, steal: int) -> Result:
        truths = read_truth(self._folder / "truth.jsonl")
        records, events, head, whole, told = read_ledger(self._paths.ledger_file)
        half_pitch_ns = round(self._pitch_mm / self._speed_mm_s * 5e8)
        seqs = [entry["seq"] for entry in (*records, *events)]
        lost = [seq for seq in seqs if seq not in mes.entries]
        ordered = mes.order == sorted(mes.order)
        result = settle(truths, records, half_pitch_ns, self._excused, mes.retained.get("counters"), gate_times(station))
        result.mqtt = {"published": len(seqs), "received": mes.received, "lost": len(lost), "duplicates": mes.repeats}
        if not whole:
            result.problems.append(told)
        if lost:
            result.problems.append(f"{len(lost)} entries never reached the broker's subscriber: {lost[:5]}")
        if not ordered or mes.altered:
            result.problems.append("entries came out of order or altered")
        result.ledger_head, result.seed = head, self._options.seed
        result.hard, result.photographs = self._options.hard, self._options.bad is not None
        edges = [truth.edge_ns for truth in truths if truth.bin != "belt"]
        span_s = (max(edges) - min(edges)) / 1e9 if len(edges) > 1 else 0.0
        result.throughput_ppm = round((len(edges) - 1) / span_s * 60, 1) if span_s else 0.0
        result.steal_s = steal / os.sysconf("SC_CLK_TCK")
        result.latency_ms = percentiles([r["times_ms"]["verdict"] for r in records if r["times_ms"]["verdict"] is not None])
        errors = [abs(r["actuation"]["error_us"]) for r in records if r["actuation"]["error_us"] is not None]
        result.actuation_error_us = percentiles([float(error) for error in errors])
        return result


    def _add_plc(self, result: Result, plc: Figures, agrees: bool) -> None:
        """What the PLC read must be what the books say; a poll may go unanswered only while a fault is provoked."""
        result.modbus = plc.as_json()
        records, *_ = read_ledger(self._paths.ledger_file)
        booked = {entry["seq"]: (entry["part"], entry["verdict"]) for entry in records}
        wrong = [seq for seq, told in plc.results.items() if booked.get(seq) != told]
        if wrong:
            result.problems.append(f"the PLC was told {len(wrong)} results that are not in the books: {wrong[:5]}")
        if not agrees:
            result.problems.append(f"the PLC's counters are not the ledger's: {plc.counts}")
        if plc.contradictions or (plc.errors and not self._options.faults):
            result.problems += [f"PLC: {problem}" for problem in plc.problems[:5]]


def _state(mes: Mes) -> str:
    state = mes.retained.get("state")
    return str(state.get("state")) if isinstance(state, dict) else "unknown"


def _settled(mes: Mes) -> bool:
    counters = mes.retained.get("counters") or {}
    return counters.get("in_flight") == 0 and len(mes.order) > 0 and max(mes.order) == len(mes.order)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    clock = SystemClock()
    end_ns = clock.now_ns() + 20 * 10**9
    while clock.now_ns() < end_ns:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            if process.poll() is not None:
                raise RehearsalFailed("the embedded broker did not start") from None
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
    raise RehearsalFailed(f"the embedded broker does not answer on port {port}")


def _steal_ticks() -> int:
    return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8])


