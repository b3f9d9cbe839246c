"""THE table of what can go wrong: code -> what the line does, what the operator reads, what to check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Effect = Literal["count", "warn", "hold", "fault"]


@dataclass(frozen=True)
class Fault:
    """One row. ``effect``: count = a counter only; warn = alarm, the line goes on; hold = gates reject until it is
    over; fault = gates reject and the line stops. ``number`` is what the PLC reads in registers 8 and 9."""

    number: int
    effect: Effect
    says: str
    check: str


FAULTS: dict[str, Fault] = {
    # --- parts -----------------------------------------------------------------------------------------
    "consecutive_rejects": Fault(
        1, "warn", "several parts in a row were judged defective", "the process before the camera; then lamp and focus"
    ),
    "reject_rate": Fault(2, "warn", "the share of defective parts is above its limit", "the process before the camera"),
    "missed": Fault(3, "warn", "parts came without a frame", "camera cable, trigger line, exposure_us, match_ms"),
    "blind": Fault(4, "warn", "frames came that cannot be judged", "lamp, lens, dirt, a frozen camera; see the causes"),
    "late": Fault(5, "warn", "verdicts did not come before the deadline", "inspectd's load, power mode, throttling"),
    "unconfirmed": Fault(6, "warn", "a reject was commanded and not seen in the bin", "valve, air, the confirm sensor"),
    "unexpected": Fault(7, "warn", "a part was seen in the bin that nobody rejected", "gate, the confirm sensor"),
    # --- the station -------------------------------------------------------------------------------------
    "trigger_lost": Fault(
        20, "hold", "the photo-eye is covered, unplugged or silent: parts may pass unseen", "the eye, its lens, its cable"
    ),
    "inspect_away": Fault(21, "hold", "inspectd does not answer: every part is rejected", "journalctl -u inspectd"),
    "report_away": Fault(22, "warn", "reportd does not answer: records wait in memory", "journalctl -u reportd"),
    "output_lost": Fault(23, "fault", "an output can no longer be moved", "the line's wiring, the remote I/O"),
    "longest_on": Fault(24, "fault", "an output stood energised longer than it may", "belt, pulse_ms, part_mm"),
    "reject_failed": Fault(
        25, "fault", "the gate was told too late for a part that had to be rejected", "the machine's load; real-time rights"
    ),
    "books_waiting": Fault(26, "warn", "more than half of the memory for unwritten records is in use", "reportd, its disk"),
    "books_full": Fault(27, "fault", "no memory is left for records: parts can no longer be booked", "reportd, its disk"),
    "purge_line_stop": Fault(
        28, "fault", "what lies between camera and gate is unknown and this gate cannot be held: clear the belt by hand",
        "remove the parts between camera and gate, then clear",
    ),
    "on_late_stop": Fault(
        29, "warn", "a part could not be judged in time and the configuration stops the line for it", "camera, inspectd"
    ),
    "encoder_lost": Fault(
        31, "hold", "the belt's encoder cannot be believed: where the parts are is unknown", "the encoder, its wheel, its cable"
    ),
    "encoder_noise": Fault(32, "warn", "pulses of the encoder are missing or too many", "the encoder's cable and shield"),
    "input_lost": Fault(33, "warn", "an input gives no more edges", "its line, the remote I/O"),
    "confirm_stuck": Fault(34, "warn", "the sensor that proves rejects was on already", "the bin, the confirm sensor"),
    "gate_eye_lost": Fault(35, "warn", "parts pass the gate without being seen by its eye", "the eye at the gate"),
    "air_ok": Fault(36, "hold", "the gate has no compressed air", "air supply and pressure switch"),
    "bin_full": Fault(37, "hold", "the reject bin is full", "empty the bin, then clear"),
    "gate_home": Fault(38, "hold", "the gate is not back at home", "the gate: stuck, or its sensor"),
    "safe_mode": Fault(
        50, "fault", "no configuration can be used: every part is rejected", "the reason; plug in a stick with a good one"
    ),
    "configuration_fallback": Fault(
        51, "warn", "the chosen configuration cannot be used: the last good one runs", "the reason; apply it anew by a stick"
    ),
    "stick_refused": Fault(52, "warn", "what the stick brought was not applied", "RESULT.txt on the stick"),
    "stick_unreadable": Fault(53, "warn", "the stick cannot be read", "another stick, freshly formatted (FAT32 or exFAT)"),
    "stick_lamp_lost": Fault(54, "warn", "the lamp that tells of the stick cannot be moved", "outputs.stick and its wiring"),
    # --- reporting -----------------------------------------------------------------------------------------
    "ledger_disk_full": Fault(40, "warn", "the ledger cannot be written: records wait in memory", "free disk space"),
    "broker_away": Fault(41, "warn", "the MQTT broker does not answer: records wait on disk", "network, broker, password"),
    "plc_lost": Fault(42, "warn", "the PLC's heartbeat stopped", "PLC program, network, register 9"),
    "images_disk_full": Fault(43, "warn", "images cannot be kept: the disk or the quota is full", "storage.images"),
    "images_dropped": Fault(44, "count", "images were dropped: all archive slots were busy", "disk speed, what is kept"),
    # --- inspecting ----------------------------------------------------------------------------------------
    "camera_lost": Fault(60, "hold", "a camera gives no frames", "its cable and supply; it is re-opened by itself"),
    "golden_failed": Fault(61, "hold", "the model no longer reproduces its golden vectors", "the GPU; reinstall the bundle"),
    "engine_failed": Fault(62, "warn", "the engine failed on a frame: that part is blind", "the log of inspectd"),
    "frozen": Fault(63, "count", "the camera gave the same picture twice", "the camera"),
    "stray": Fault(64, "count", "a frame belonged to no part", "match_ms, offset_ms, the camera's trigger"),
    "ambiguous": Fault(65, "count", "two frames fit one part", "match_ms, the camera's trigger"),
    # --- the trigger ---------------------------------------------------------------------------------------
    "double": Fault(80, "count", "an edge came closer than min_pitch_mm, or two parts touched", "part separation"),
    "behind": Fault(82, "count", "an edge came while the belt was behind its farthest place", "nothing: it was counted before"),
    "gate_eye_stray": Fault(83, "count", "the gate's eye saw something that no trigger announced", "the eye, min_pitch_mm"),
    "late_verdict": Fault(81, "count", "a verdict came after its part was committed, and changed nothing", "see late"),
    # --- the box -------------------------------------------------------------------------------------------
    "too_hot": Fault(100, "warn", "the box is near the heat at which it becomes slower", "fan, filter, air, the cabinet's heat"),
    "throttled": Fault(101, "warn", "the box runs slower for its heat: verdicts may be late", "fan, filter, power mode, load"),
    "under_voltage": Fault(102, "warn", "the box's supply sagged", "supply, its cable and terminals; what else hangs on it"),
    "over_current": Fault(103, "warn", "the box draws more current than it may", "a lower power mode (nvpmodel); USB devices"),
    "power_mode": Fault(
        104, "warn", "the box runs in another power mode than its engines were built in", "set that mode, or run engine build"
    ),
    "fan_stopped": Fault(105, "warn", "the fan is asked to turn and stands still", "the fan: blocked, unplugged, worn out"),
    "disk_nearly_full": Fault(
        106, "warn", "the disk is nearly full: soon nothing can be recorded", "storage.images.quota_gb, what else lies there"
    ),
    "clock_unset": Fault(
        107, "warn", "the clock was never set: records carry no time that can be believed", "network, NTP server, RTC battery"
    ),
    "watchdog_unproven": Fault(
        108, "warn", "nothing shows that a frozen box would be reset", "RuntimeWatchdogSec, the kernel; README: watchdog"
    ),
    "sensors_silent": Fault(109, "warn", "a sensor of the box does not answer", "dmesg; restart the box at the next stop"),
}  # fmt: skip


def sentence(code: str, what: str = "") -> str:
    """What the operator reads: the row's words, the particulars, what to check. Raises KeyError on unknown codes."""
    fault = FAULTS[code]
    particulars = f" ({what})" if what else ""
    return f"{fault.says}{particulars}; check: {fault.check}"
