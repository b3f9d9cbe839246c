"""From a station's file to its rehearsal: the twin in place of every physical address, the rest untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from appliance.config import Station, load
from appliance.config.reader import ReadError, read
from appliance.twin.scenarios import Scenario, apply


def derive(
    file: Path, folder: Path, *, broker: str, speed_mm_s: float | None = None, photographs: bool = False,
    modbus: str | None = None, scenario: Scenario | None = None,
) -> Path:  # fmt: skip
    """Writes ``folder``/station.yaml and links the bundles beside it; ``modbus``: where its PLC's server listens.

    Raises ConfigError for a file that is not valid."""
    load(file, built_only=False)
    try:
        document: dict[str, Any] = read(file.read_bytes()).data
    except ReadError as why:
        raise ValueError(str(why)) from why
    if scenario is not None:
        apply(document, scenario)
    for name, camera in document["cameras"].items():
        camera["source"] = f"twin://{name}" + ("?photographs=1" if photographs else "")
        for setting in ("strobe", "exposure_us", "gain", "white_balance"):  # of a sensor that is not there
            camera.pop(setting, None)
    if document["trigger"]["input"] not in ("frame",):
        document["trigger"]["input"] = "twin://eye"
    document["reject"]["output"] = "twin://gate"
    _twin_lines(document)
    outputs = document.get("outputs") or {}
    document["outputs"] = {name: f"twin://{name}" for name in outputs}
    mqtt = document.get("mqtt") or {}
    mqtt = {"broker": broker, "commands": sorted({*mqtt.get("commands", []), "clear"})}
    document["mqtt"] = mqtt
    document.pop("modbus", None)
    if modbus:
        document["modbus"] = {"listen": modbus}
    if speed_mm_s is not None:
        if "encoder" not in document["transport"]:
            document["transport"]["speed_mm_s"] = speed_mm_s
        document["transport"]["max_speed_mm_s"] = max(speed_mm_s, document["transport"].get("max_speed_mm_s", 800))
    folder.mkdir(parents=True, exist_ok=True)
    bundles = file.resolve().parent / "bundles"
    if bundles.is_dir() and not (folder / "bundles").exists():
        (folder / "bundles").symlink_to(bundles)
    path = folder / "station.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def _twin_lines(document: dict[str, Any]) -> None:
    """Inputs and the second gate; what the line has no part in (a clear button) stays, as an input that never moves."""
    transport, reject = document["transport"], document["reject"]
    if encoder := transport.get("encoder"):
        encoder["input"] = "twin://encoder"
        if "input_b" in encoder:
            encoder["input_b"] = "twin://encoder_b"
    if transport.get("running"):
        transport["running"] = "twin://running"
    if confirm := reject.get("confirm"):
        confirm["input"] = "twin://confirm"
    if reject.get("gate_eye"):
        reject["gate_eye"] = "twin://gate_eye"
    if divert := document.get("divert"):
        divert["output"] = "twin://divert"
    for name, line in (document.get("inputs") or {}).items():
        if line:
            document["inputs"][name] = f"twin://{name}"


def faster(speed_mm_s: float, ppm: float) -> str:
    """What the user is told when the belt had to be run faster."""
    return f"belt set to {speed_mm_s:.0f} mm/s: {ppm:g} parts/min do not fit at the station's speed\n"


def pitch_and_speed(station: Station, ppm: float) -> tuple[float, float, bool]:
    """(pitch_mm, speed_mm_s, raised): the pitch at the station's speed; where parts or gate windows would touch, the
    belt is run faster instead, at the shortest pitch this gate serves."""
    speed = station.transport.speed_mm_s or station.transport.max_speed_mm_s
    pulse_mm = (station.reject.pulse_ms - station.reject.response_ms) / 1000 * speed
    # A part, the gate's way back, the feeder's jitter either way: what one part takes of the belt.
    needed = max(station.part_mm, pulse_mm, station.trigger.min_pitch_mm) * 1.15 + 4.0
    pitch = 60 * speed / ppm
    if pitch >= needed:
        return pitch, speed, False
    least = max(station.part_mm, station.trigger.min_pitch_mm) * 1.15 + 4.0
    speed = ppm / 60 * least
    # A faster belt moves further during a pulse: iterate until the pulse fits the pitch.
    for _ in range(20):
        pulse_mm = (station.reject.pulse_ms - station.reject.response_ms) / 1000 * speed
        least = max(least, pulse_mm * 1.15 + 4.0)
        if abs(ppm / 60 * least - speed) < 1e-6:
            break
        speed = ppm / 60 * least
        if speed > 20_000:
            raise ValueError(f"{ppm:g} parts/min: this gate's pulse of {station.reject.pulse_ms:g} ms is too long for it")
    return least, speed, True
