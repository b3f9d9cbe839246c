"""The PLC's registers: the map with time passed in, and the real server with a real client over loopback."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from pymodbus.client import ModbusTcpClient

from appliance.clock import SystemClock
from appliance.devices.plc_server import MOST_CONNECTIONS, PlcServer
from appliance.faults import FAULTS
from appliance.messages import VERDICTS, Alarm, Command, InspectState, PartClosed, Reply, Status
from appliance.report.plc import ALIVE_NS, BEAT_NS, REJECT_AWAY, RING, PlcMap
from appliance.twin.plc import Plc

MS = 1_000_000
ENABLE, RESULT_ACK, CLEAR, STOP, START = 1, 1 << 2, 1 << 4, 1 << 5, 1 << 6


def part(number: int, verdict: str = "pass", **changes: object) -> PartClosed:
    fields: dict[str, object] = {
        "n": number, "part": number, "run": "r", "trigger_ns": 0, "wall_us": 0, "clock": "synced", "verdict": verdict,
        "cause": None, "score": 0.97, "threshold": 0.6, "class_id": 2, "disposition": "accept",
        "disposed_by": "verdict", "fired": False, "confirmed": "unwatched", "answered": True, "frame_ms": 1.0,
        "preprocess_ms": 1.0, "infer_ms": 1.0, "decide_ms": 1.0, "verdict_ms": 5.6, "deadline_ms": 808.0,
        "margin_ms": 802.4, "due_ms": 828.0, "error_us": 1, "recipe": "r", "recipe_number": 1, **changes,
    }  # fmt: skip
    return PartClosed(**fields)  # type: ignore[arg-type]


def status(at_ns: int, state: str = "running", reason: str = "", **changes: object) -> Status:
    fields: dict[str, object] = {
        "state": state, "reason": reason, "since_us": 0, "progress": 0.0, "run": "r", "alive_ns": at_ns,
        "in_flight": 0, "next_part": 1, "last_closed": 0, "alarms": (), "counts": {}, "line_stop": False, **changes,
    }  # fmt: skip
    return Status(**fields)  # type: ignore[arg-type]


def alarm(code: str, since_us: int = 0) -> Alarm:
    return Alarm(code, True, False, "", since_us)


@pytest.fixture
def plc() -> PlcMap:
    """A map whose rejectd runs and whose PLC has written its first command bits."""
    made = PlcMap(simulated=True, config_crc32=0xAABBCCDD)
    made.on_status(status(0))
    made.write_holding(0, [ENABLE], 0)
    return made


def u32(registers: list[int], at: int) -> int:
    return registers[at] << 16 | registers[at + 1]


def book(plc: PlcMap, *verdicts: str) -> None:
    for number, verdict in enumerate(verdicts, start=1):
        plc.on_record(100 + number, part(number, verdict))


# --- what the station tells ------------------------------------------------------------


def test_a_result_stands_in_its_registers(plc: PlcMap) -> None:
    plc.on_record(0x12345, part(0x54321, "fail"))
    told = plc.inputs(0)
    assert (u32(told, 10), u32(told, 12), told[14], told[15]) == (0x12345, 0x54321, 2, 2)
    assert told[16:20] == [9700, 6000, 56, 8024]
    assert told[2] >> 3 & 0b1111111 == 0b0000101, "result_valid and fail, no other verdict"


@pytest.mark.parametrize("verdict", VERDICTS)
def test_each_verdict_has_its_number_and_its_bit(plc: PlcMap, verdict: str) -> None:
    book(plc, verdict)
    told = plc.inputs(0)
    assert told[14] == VERDICTS.index(verdict) + 1
    assert told[2] >> 4 & 0b111111 == 1 << VERDICTS.index(verdict)


def test_times_saturate_and_what_is_not_known_says_so(plc: PlcMap) -> None:
    plc.on_record(1, part(1, verdict_ms=1e6, margin_ms=-1e6, class_id=-1, score=None, threshold=None))
    assert plc.inputs(0)[15:20] == [0xFFFF, 0, 0, 0xFFFF, 0x8001]
    plc.write_holding(8, [1], 0)
    plc.on_record(2, part(2, "late", verdict_ms=None, margin_ms=None))
    assert plc.inputs(0)[18:20] == [0xFFFF, 0x8000]


def test_counters_and_fixed_registers(plc: PlcMap) -> None:
    verdicts = {"pass": 70_000, "fail": 6, "review": 5, "blind": 4, "late": 3, "missed": 3}
    plc.on_counts({"triggers": 70_021, **verdicts, "unconfirmed": 9})
    plc.on_status(status(0, in_flight=3, counts={"consecutive_fails": 2}))
    plc.step(0, "holdover")
    told = plc.inputs(0)
    assert [u32(told, at) for at in range(20, 38, 2)] == [70_021, 70_000, 6, 5, 4, 3, 3, 9, 2]
    assert told[0] == 0x0100 and u32(told, 6) == 0xAABBCCDD and u32(told, 44) == 3
    assert told[40] == 1 and told[43] == 1
    assert told[60] == 0x1234 and u32(told, 61) == 0x12345678
    assert struct.unpack(">f", struct.pack(">HH", *told[63:65])) == (1.5,)


def test_the_heartbeat_lives_only_while_rejectd_was_seen(plc: PlcMap) -> None:
    now_ns = 0
    for _ in range(10):
        now_ns += 200 * MS
        plc.on_status(status(now_ns))
    assert plc.inputs(now_ns)[1] == 20
    dead_ns = now_ns + 60_000 * MS
    assert plc.inputs(dead_ns)[1] == 23, "three more beats until 300 ms are over, then none"
    assert not plc.inputs(dead_ns)[2] & 1 and plc.inputs(now_ns + ALIVE_NS)[2] & 1
    assert plc.inputs(dead_ns)[8] == REJECT_AWAY and plc.inputs(dead_ns)[2] & 1 << 12
    plc.on_status(status(dead_ns))
    assert plc.inputs(dead_ns)[1] == 23 and plc.inputs(dead_ns + BEAT_NS)[1] == 24


def test_the_heartbeat_passes_over_zero(plc: PlcMap) -> None:
    seen = set()
    for beat in range(1, 0xFFFF + 3):
        plc.on_status(status(beat * BEAT_NS))
        seen.add(plc.inputs(beat * BEAT_NS)[1])
    assert 0 not in seen and len(seen) == 0xFFFF


def test_nothing_is_ready_without_rejectd(plc: PlcMap) -> None:
    plc.on_rejectd_gone()
    told = plc.inputs(0)
    assert not told[2] & 1 and told[2] & 1 << 15 and told[2] & 1 << 12 and told[4] == 0


def test_alarms_become_codes_faults_before_holds_and_the_oldest_first(plc: PlcMap) -> None:
    standing = (alarm("camera_lost", 1), alarm("longest_on", 3), alarm("late", 9), alarm("blind", 8))
    plc.on_status(status(0, "fault", alarms=standing))
    told = plc.inputs(0)
    assert told[8:10] == [FAULTS["longest_on"].number, FAULTS["blind"].number]
    assert told[2] & 1 << 14 and told[2] & 1 << 15 and not told[2] & 1 and told[4] == 6
    assert REJECT_AWAY not in {one.number for one in FAULTS.values()}


def test_the_recipe_is_told_when_inspectd_is_ready(plc: PlcMap) -> None:
    assert not plc.inputs(0)[2] & 1 << 11
    plc.on_inspect(InspectState("ready", "", 1.0, "cap", 7, "sha256:1", {}))
    assert plc.inputs(0)[5] == 7 and plc.inputs(0)[2] & 1 << 11


# --- results and their acknowledgement ------------------------------------------------------------


def test_results_are_shown_one_by_one_in_order(plc: PlcMap) -> None:
    book(plc, "pass", "fail", "late")
    seen = []
    while plc.inputs(0)[2] & 1 << 3:
        seen.append((plc.inputs(0)[14], u32(plc.inputs(0), 38)))
        assert plc.write_holding(8, [plc.inputs(0)[11]], 0) == 0
    assert seen == [(1, 3), (2, 2), (5, 1)]
    assert plc.inputs(0)[10:20] == [0] * 10


def test_an_acknowledgement_of_another_sequence_releases_nothing(plc: PlcMap) -> None:
    book(plc, "pass", "fail")
    plc.write_holding(8, [102], 0)
    assert u32(plc.inputs(0), 10) == 101


def test_with_result_ack_the_next_is_shown_after_the_bit_fell(plc: PlcMap) -> None:
    book(plc, "pass", "fail")
    plc.write_holding(0, [ENABLE | RESULT_ACK], 0)
    told = plc.inputs(0)
    assert not told[2] & 1 << 3 and told[14] == 0 and told[3] & RESULT_ACK
    plc.write_holding(0, [ENABLE], 0)
    told = plc.inputs(0)
    assert u32(told, 10) == 102 and not told[3] & RESULT_ACK


def test_a_full_ring_drops_the_oldest_that_waits_and_latches_overrun(plc: PlcMap) -> None:
    assert RING >= 16
    book(plc, *["pass"] * (RING + 1))
    assert not plc.inputs(0)[2] & 1 << 10
    plc.on_record(500, part(500))
    assert plc.inputs(0)[2] & 1 << 10 and u32(plc.inputs(0), 10) == 101, "the shown one does not change"
    plc.write_holding(8, [101], 0)
    assert u32(plc.inputs(0), 10) == 103 and plc.inputs(0)[2] & 1 << 10
    plc.write_holding(0, [ENABLE | CLEAR], 0)
    assert not plc.inputs(0)[2] & 1 << 10


def test_a_restart_of_reportd_latches_overrun() -> None:
    plc = PlcMap(simulated=False, config_crc32=0)
    assert not plc.inputs(0)[2] & 1 << 10
    plc.on_results_lost()
    assert plc.inputs(0)[2] & 1 << 10


# --- command bits ------------------------------------------------------------


def answer(plc: PlcMap, now_ns: int, ok: bool = True) -> list[Command]:
    """What rejectd is told, and its answers."""
    told = plc.commands(now_ns)
    for command in told:
        plc.on_reply(Reply(command.id, ok, ""))
    return told


def verbs(told: list[Command]) -> list[tuple[str, str]]:
    return [(one.verb, one.source) for one in told]


def test_the_first_write_sets_levels_without_an_edge() -> None:
    plc = PlcMap(simulated=True, config_crc32=0)
    plc.on_status(status(0))
    assert plc.write_holding(0, [ENABLE | CLEAR | STOP | START], 0) == 0
    assert answer(plc, 0) == [] and plc.coils() == ENABLE | CLEAR | STOP | START


def test_coils_have_first_writes_of_their_own() -> None:
    plc = PlcMap(simulated=True, config_crc32=0)
    plc.on_status(status(0))
    plc.write_coils(0, [True], 0)
    plc.write_coils(5, [True], 0)
    assert answer(plc, 0) == [], "coil 5 was never seen low"
    plc.write_coils(5, [False], 0)
    plc.write_coils(5, [True], 0)
    assert verbs(answer(plc, 0)) == [("hold", "plc stop")]


def test_clear_latched_goes_to_rejectd_once_and_is_done_when_answered(plc: PlcMap) -> None:
    plc.write_holding(0, [ENABLE | CLEAR], 0)
    (command,) = plc.commands(0)
    assert (command.verb, command.source) == ("clear", "plc") and not plc.inputs(0)[3] & CLEAR
    plc.on_reply(Reply(command.id, False, "still standing: longest_on"))
    assert plc.inputs(0)[3] & CLEAR and plc.commands(10**9) == []
    plc.write_holding(0, [ENABLE], 0)
    assert not plc.inputs(0)[3] & CLEAR


def test_a_clear_that_could_not_be_sent_is_not_done_and_may_come_again(plc: PlcMap) -> None:
    plc.write_holding(0, [ENABLE | CLEAR], 0)
    plc.not_sent(plc.commands(0)[0].id)
    assert not plc.inputs(0)[3] & CLEAR
    plc.write_holding(0, [ENABLE], 0)
    assert plc.write_holding(0, [ENABLE | CLEAR], 0) == 0 and len(plc.commands(0)) == 1


def test_stop_holds_and_start_releases(plc: PlcMap) -> None:
    plc.write_holding(0, [ENABLE | STOP], 0)
    assert verbs(answer(plc, 0)) == [("hold", "plc stop")] and plc.inputs(0)[3] & STOP
    plc.write_holding(0, [ENABLE], 0)
    assert answer(plc, 10**9) == [], "a stop stays when its bit falls"
    plc.write_holding(0, [ENABLE | START], 0)
    assert verbs(answer(plc, 2 * 10**9)) == [("release", "plc")] and plc.inputs(0)[3] == ENABLE | START


def test_without_a_plc_the_station_runs_and_enable_counts_from_its_first_write() -> None:
    plc = PlcMap(simulated=True, config_crc32=0)
    plc.on_status(status(0))
    assert plc.commands(0) == []
    plc.write_holding(0, [0], 0)
    assert verbs(answer(plc, 0)) == [("hold", "plc enable")]
    plc.write_holding(0, [ENABLE], 0)
    assert verbs(answer(plc, 10**9)) == [("release", "plc")] and plc.inputs(0)[3] & ENABLE


def test_stop_beats_start(plc: PlcMap) -> None:
    assert plc.write_holding(0, [ENABLE | STOP | START], 0) == 0
    assert verbs(answer(plc, 0)) == [("hold", "plc stop")]
    assert plc.write_holding(0, [ENABLE | STOP], 0) == 0
    assert plc.write_holding(0, [ENABLE | STOP | START], 0) == 6, "start while stop is still up"


def test_one_command_at_a_time_but_a_stop_never_waits(plc: PlcMap) -> None:
    assert plc.write_holding(0, [ENABLE | CLEAR | START], 0) == 6
    assert plc.coils() == ENABLE, "a refused write changes nothing"
    plc.write_holding(0, [ENABLE | CLEAR], 0)
    assert plc.write_holding(0, [ENABLE | START], 0) == 6, "the clear is not answered yet"
    assert plc.write_holding(0, [ENABLE | CLEAR | STOP], 0) == 0


@pytest.mark.parametrize("bit", [1, 3, 7, 8])
def test_commands_of_later_issues_are_not_now(plc: PlcMap, bit: int) -> None:
    assert plc.write_holding(0, [ENABLE | 1 << bit], 0) == 6
    assert plc.write_coils(bit, [False], 0) == 0
    assert plc.write_coils(bit, [True], 0) == 6


def test_clear_is_not_now_while_rejectd_is_not_seen(plc: PlcMap) -> None:
    assert plc.write_holding(0, [ENABLE | CLEAR], ALIVE_NS + 1) == 6


def test_a_hold_is_told_again_until_rejectd_has_it(plc: PlcMap) -> None:
    plc.write_holding(0, [ENABLE | STOP], 0)
    plc.not_sent(plc.commands(0)[0].id)
    assert plc.commands(1) == [], "not at every turn"
    assert verbs(plc.commands(200 * MS)) == [("hold", "plc stop")]
    assert plc.commands(400 * MS) == [] and verbs(answer(plc, 2_000 * MS)) == [("hold", "plc stop")]
    plc.on_rejectd_gone()
    assert plc.commands(3_000 * MS) == []
    plc.on_status(status(4_000 * MS))
    assert verbs(answer(plc, 4_000 * MS)) == [("hold", "plc stop")], "the new rejectd knows of no hold"


def test_a_stop_outlives_a_restart_of_reportd() -> None:
    plc = PlcMap(simulated=True, config_crc32=0)
    plc.write_holding(0, [ENABLE], 0)
    plc.on_status(status(0, "held", "held by plc stop"))
    assert plc.commands(0) == []
    plc.write_holding(0, [ENABLE | START], 0)
    assert verbs(answer(plc, 10**9)) == [("release", "plc")]


def test_a_hold_of_a_disabled_plc_ends_with_enable_after_a_restart_of_reportd() -> None:
    plc = PlcMap(simulated=True, config_crc32=0)
    plc.on_status(status(0, "held", "held by plc enable"))
    plc.write_holding(0, [ENABLE], 0)
    assert verbs(answer(plc, 0)) == [("release", "plc")]


# --- writes that are refused ------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "values", "exception"),
    [
        (100, [0], 2), (98, [0, 0, 0], 2), (1000, [0], 2),
        (0, [1 << 9], 3), (10, [1], 3), (9, [50], 3),
        (4, [1], 6), (6, [7], 6),
        (0, [ENABLE, 5, 0, 1, 0, 0, 0, 0, 0, 1000], 0), (10, [0] * 90, 0), (2, [0, 12], 0),
    ],
)  # fmt: skip
def test_holding_registers_are_taken_or_refused(plc: PlcMap, address: int, values: list[int], exception: int) -> None:
    before = plc.holding()
    assert plc.write_holding(address, values, 0) == exception
    after = plc.holding()
    assert after[address : address + len(values)] == values if exception == 0 else after == before


def test_the_plcs_heartbeat_is_watched_when_it_asks_for_it(plc: PlcMap) -> None:
    plc.step(10**12, "synced")
    assert not plc.plc_lost
    plc.write_holding(9, [500], 10**12)
    plc.step(10**12 + 499 * MS, "synced")
    assert not plc.plc_lost
    plc.write_holding(1, [1], 10**12 + 400 * MS)
    plc.write_holding(1, [1], 10**12 + 800 * MS)
    plc.step(10**12 + 901 * MS, "synced")
    assert plc.plc_lost, "the same number again is no beat"
    plc.on_status(status(10**12 + 901 * MS))
    told = plc.inputs(10**12 + 901 * MS)
    assert told[9] == FAULTS["plc_lost"].number and told[2] & 1 << 14 and told[2] & 1, "the inspection goes on"


# --- over the wire ------------------------------------------------------------


@pytest.fixture
def live() -> PlcMap:
    made = PlcMap(simulated=True, config_crc32=1)
    made.on_status(status(SystemClock().now_ns() + 3600 * 10**9))  # rejectd stays alive for the test
    return made


@pytest.fixture
def port(live: PlcMap) -> Iterator[int]:
    server = PlcServer(live, SystemClock(), "127.0.0.1", 0)
    found = server.wait_listening(10)
    assert found is not None
    yield found
    server.close()


@pytest.fixture
def client(port: int) -> Iterator[ModbusTcpClient]:
    made = ModbusTcpClient("127.0.0.1", port=port, timeout=2, retries=0)
    assert made.connect()
    yield made
    made.close()  # type: ignore[no-untyped-call]


def test_input_registers_are_mirrored_in_holding(client: ModbusTcpClient, live: PlcMap) -> None:
    book(live, "fail")
    plain = client.read_input_registers(0, count=100).registers
    mirror = client.read_holding_registers(1000, count=100).registers
    assert plain[2:] == mirror[2:] and plain[14] == 2 and plain[60] == 0x1234
    assert client.read_input_registers(100, count=100).registers == [0] * 100
    assert client.read_input_registers(0, count=10, device_id=255).registers[0] == 0x0100, "any unit"


def test_float_and_words_read_back_as_the_test_pattern_promises(client: ModbusTcpClient) -> None:
    told = client.read_input_registers(61, count=4).registers
    assert client.convert_from_registers(told[:2], client.DATATYPE.UINT32) == 0x12345678
    assert client.convert_from_registers(told[2:], client.DATATYPE.FLOAT32) == 1.5


@pytest.mark.parametrize(
    ("address", "values", "exception"),
    [(100, [1], 2), (999, [1], 2), (1000, [1], 2), (1200, [1], 2), (9, [1], 3), (0, [1 << 8], 0)],
)
def test_exceptions_reach_the_client(client: ModbusTcpClient, address: int, values: list[int], exception: int) -> None:
    assert client.write_registers(address, values).exception_code == exception
    assert client.write_register(address, values[0]).exception_code == exception


def test_not_now_reaches_the_client(client: ModbusTcpClient) -> None:
    client.write_register(0, ENABLE)
    assert client.write_register(0, ENABLE | 1 << 3).exception_code == 6
    assert client.read_holding_registers(0, count=1).registers == [ENABLE]


@pytest.mark.parametrize(
    ("kind", "address", "count"), [("input", 200, 1), ("input", 190, 11), ("holding", 100, 1), ("holding", 1190, 11)]
)
def test_reading_outside_the_map_is_exception_2(client: ModbusTcpClient, kind: str, address: int, count: int) -> None:
    read = client.read_input_registers if kind == "input" else client.read_holding_registers
    assert read(address, count=count).exception_code == 2


def test_coils_and_discretes_are_the_same_bits(client: ModbusTcpClient, live: PlcMap) -> None:
    book(live, "late")
    assert not client.write_coil(0, True).isError()
    assert client.read_holding_registers(0, count=1).registers == [ENABLE]
    assert client.read_coils(0, count=16).bits == [True] + [False] * 15
    bits = client.read_discrete_inputs(0, count=32).bits
    word, done = (sum(on << place for place, on in enumerate(bits[at : at + 16])) for at in (0, 16))
    assert [word, done] == client.read_input_registers(2, count=2).registers and word & 1 << 8 and done == ENABLE
    assert client.read_coils(16, count=1).exception_code == 2 and client.write_coil(9, True).exception_code == 3


def test_a_masked_and_a_combined_write_act_like_plain_ones(client: ModbusTcpClient, live: PlcMap) -> None:
    book(live, "pass")
    client.write_register(0, ENABLE)
    client.mask_write_register(address=0, and_mask=0xFFFF & ~STOP, or_mask=STOP)
    assert live.coils() == ENABLE | STOP
    told = client.readwrite_registers(read_address=1010, read_count=5, write_address=8, values=[101])
    assert told.registers == [0] * 5, "the same request acknowledged it"


def test_only_named_clients_may_write(live: PlcMap) -> None:
    server = PlcServer(live, SystemClock(), "127.0.0.1", 0, clients=["127.0.0.2"])
    port = server.wait_listening(10)
    assert port is not None
    stranger, known = (
        ModbusTcpClient("127.0.0.1", port=port, timeout=2, retries=0, source_address=(own, 0))
        for own in ("127.0.0.1", "127.0.0.2")
    )
    for one, refused in ((stranger, 1), (known, 0)):
        answers = (one.write_register(8, 1), one.write_coil(0, True), one.write_registers(8, [1]))
        assert [answer.exception_code for answer in answers] == [refused] * 3
    assert stranger.read_input_registers(0, count=1).registers == [0x0100]
    for one in (stranger, known):
        one.close()  # type: ignore[no-untyped-call]
    server.close()


def test_a_taken_port_is_told_in_words_and_taken_when_free(live: PlcMap) -> None:
    holder = socket.create_server(("127.0.0.1", 0))
    port = holder.getsockname()[1]
    server = PlcServer(live, SystemClock(), "127.0.0.1", port)
    assert server.wait_listening(0.3) is None
    assert f"cannot listen on 127.0.0.1:{port}" in server.reason and "modbus.listen" in server.reason
    holder.close()
    assert server.wait_listening(10) == port and server.reason == ""
    server.close()


def test_connections_are_bounded(client: ModbusTcpClient, port: int) -> None:
    client.read_input_registers(0, count=1)
    others = [socket.create_connection(("127.0.0.1", port), 2) for _ in range(MOST_CONNECTIONS)]
    others[-1].settimeout(5)
    assert others[-1].recv(1) == b"", "one too many is closed"
    assert client.read_input_registers(0, count=1).registers == [0x0100]
    for one in others:
        one.close()


def test_requests_sent_together_are_all_answered_in_order(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 5) as eager:
        requests = [struct.pack(">HHHBBHH", number, 0, 6, 1, 4, 60, 2) for number in range(1, 6)]
        eager.sendall(b"".join(requests) + requests[0][:5])
        with eager.makefile("rb") as answers:
            told = [struct.unpack(">HHHBBB4s", answers.read(13)) for _ in requests]
            eager.sendall(requests[0][5:])
            told.append(struct.unpack(">HHHBBB4s", answers.read(13)))
    assert [one[0] for one in told] == [1, 2, 3, 4, 5, 1]
    assert {one[6] for one in told} == {bytes.fromhex("12341234")}


def test_rubbish_on_the_wire_disturbs_nobody(client: ModbusTcpClient, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 2) as rude:
        rude.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        assert client.read_input_registers(0, count=1).registers == [0x0100]


# --- the rehearsal's PLC ------------------------------------------------------------


def test_the_rehearsals_plc_takes_every_result_while_counts_move(live: PlcMap, port: int) -> None:
    plc = Plc(port, SystemClock())
    counts = dict.fromkeys(("triggers", *VERDICTS), 0)
    ended = threading.Event()

    def produce() -> None:
        for number in range(1, 41):
            verdict = VERDICTS[number % 6]
            counts["triggers"] += 1
            counts[verdict] += 1
            live.on_counts(counts)
            live.on_record(number, part(number, verdict))
        ended.set()

    producer = threading.Thread(target=produce)
    producer.start()
    for _ in range(100):
        plc.poll()
        if ended.is_set() and len(plc.figures.results) == 40:
            break
    producer.join(5)
    assert plc.figures.errors == 0, plc.figures.problems
    assert plc.figures.results == {number: (number, VERDICTS[number % 6]) for number in range(1, 41)}
    plc.poll()
    assert plc.figures.counts["triggers"] == 40
    plc._client.close()  # type: ignore[no-untyped-call]


def test_the_rehearsals_plc_sees_open_books_and_a_dead_server(live: PlcMap) -> None:
    server = PlcServer(live, SystemClock(), "127.0.0.1", 0)
    plc = Plc(server.wait_listening(10) or 0, SystemClock())
    live.on_counts({"triggers": 2, "pass": 1})
    plc.start()
    with plc.changed:
        assert plc.changed.wait_for(lambda: plc.figures.errors >= 1, 10)
    assert "the sums do not hold" in plc.figures.problems[0]
    server.close()
    with plc.changed:
        assert plc.changed.wait_for(lambda: any("no answer" in one for one in plc.figures.problems), 10)
    figures = plc.close()
    assert figures.as_json()["errors"] == figures.errors <= figures.polls
