"""From the configuration store to what a process is started with: a station, the last good one, or safe mode.

essentials: all that safe mode may know of the last good station, kept where no later release can fail to read it."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from appliance.box.store import Generation, Store
from appliance.config import ConfigError, Station, find_bundle
from appliance.config.addresses import LINE, parse
from appliance.config.load import Problem, load_bytes
from appliance.config.reader import MAX_BYTES, ReadError, read
from appliance.config.schema import Modbus, Mqtt
from appliance.identity import running_version
from appliance.paths import Paths
from appliance.ports import Clock, Output, OutputLost
from appliance.reject.daemon import RejectBuild
from appliance.reject.safe import safe_build
from appliance.wiring import station as wiring

if TYPE_CHECKING:
    from appliance.report.daemon import ReportBuild

log = logging.getLogger("appliance.store")

NAMELESS = "unconfigured"  # the station's name where none was ever configured
_BROKER_FILES = ("password_file", "ca_file", "cert_file", "key_file")
ROLES = frozenset({"reject", "inspect", "report"})


@dataclass(frozen=True)
class Chosen:
    """``station`` None: safe mode, by ``essentials`` ({}: nothing is known) and with ``why`` in words. Else ``why`` is "" or
    says what could not be used before this one was taken."""

    station: Station | None
    generation: Generation | None
    why: str
    essentials: dict[str, Any] = field(default_factory=dict)

    @property
    def broker(self) -> str | None:
        """Its address, or ``embedded``; None: there is no broker."""
        if self.station:
            return self.station.mqtt.broker.text if self.station.mqtt else None
        told = (self.essentials.get("mqtt") or {}).get("broker")
        return told if isinstance(told, str) else None


def load_chosen(store: Store, data_dir: Path | None) -> Chosen:
    """What is to be run now. Raises ConfigError where the station wants to fail instead of falling back (strict_start),
    OSError where nothing of the store can be read."""
    choice, essentials = store.choose(), store.essentials() or {}
    strict = essentials.get("strict_start") is True
    problems: list[Problem] = []
    told: list[str] = []
    for one in (choice.generation, *choice.fallbacks):
        if one is None:
            continue
        try:
            raw = _bytes_of(one)
            strict = strict or _says_strict(raw)
            station = load_bytes(raw, one.file, data_dir=data_dir)
        except ConfigError as why:
            problems += why.problems
            more = f" (and {len(why.problems) - 1} more)" if len(why.problems) > 1 else ""
            told.append(f"generation {one.number} cannot be used: {why.problems[0]}{more}")
            log.error("%s", told[-1])
            if strict:
                raise ConfigError(problems) from why
            continue
        return Chosen(station, one, "; ".join(told), essentials)
    return Chosen(None, None, "; ".join(told) or choice.why, essentials)


def chosen_digest(place: Path, until_then: str) -> str:
    """Of what is to run now by the store at ``place``, "" for none; ``until_then`` where that is a file, or cannot be read."""
    if not place.is_dir():
        return until_then
    try:
        generation = Store(place).choose().generation
    except OSError as why:
        log.warning("what is to run cannot be read (%s); this goes on as it is", why)
        return until_then
    return generation.digest if generation else ""


def _bytes_of(one: Generation) -> bytes:
    """The configuration's bytes, if they are still those that were put there. Raises ConfigError."""
    try:
        with open(one.file, "rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
        altered = "sha256:" + hashlib.sha256(raw).hexdigest() != one.digest
    except OSError as why:
        raise ConfigError([Problem(str(one.file), 1, 1, "file", str(why.strerror), "apply it anew by a stick")]) from why
    if altered:
        raise ConfigError([Problem(str(one.file), 1, 1, "file", "it is not what was put there", "apply it anew by a stick")])
    return raw


def _says_strict(raw: bytes) -> bool:
    """Whether a file asks for strict_start, however wrong the rest of it is."""
    try:
        document = read(raw).data
    except ReadError:
        return False
    return isinstance(document, dict) and document.get("strict_start") is True


# --- essentials ---------------------------------------------------------------------------------------------


def essentials_of(station: Station) -> dict[str, Any]:
    """All that safe mode may know, as plain JSON. The names of the broker's files become absolute."""
    plan = wiring.plan_of(station)
    levels = {name: gate.reject_level if gate.kind == "hold" else not gate.reject_level for name, gate in plan.gates.items()}
    addresses = {"gate": station.reject.output, "divert": station.divert.output if station.divert else None}
    addresses |= dict(station.outputs)
    if not wiring.acts_on_a_line(station):
        addresses = {}
    mqtt = station.mqtt.model_dump(mode="json") if station.mqtt else None
    folder = Path(station.file).resolve().parent
    for name in _BROKER_FILES:
        if mqtt and mqtt.get(name):
            mqtt[name] = str(folder / mqtt[name])
    return {
        "station": station.station,
        "digest": station.digest,
        "revision": station.revision,
        "simulated": station.simulated,
        "outputs": {
            role: {"address": address.text, "level": levels.get(role, False)} for role, address in addresses.items() if address
        },
        "mqtt": mqtt,
        "modbus": station.modbus.model_dump(mode="json") if station.modbus else None,
        "strict_start": station.strict_start,
    }


def reject_build(chosen: Chosen, paths: Paths, clock: Clock) -> RejectBuild:
    """All that rejectd needs, of a station or in safe mode. Raises OutputLost."""
    return wiring.reject_build(chosen.station, paths, clock) if chosen.station else safe_reject_build(chosen, paths, clock)


def report_build(chosen: Chosen, clock: Clock) -> ReportBuild:
    """All that reportd needs, of a station or in safe mode."""
    if chosen.station is None:
        return safe_report_build(chosen, clock)
    generation = chosen.generation.number if chosen.generation else None
    return wiring.report_build(chosen.station, clock, generation, chosen.why)


def safe_reject_build(chosen: Chosen, paths: Paths, clock: Clock) -> RejectBuild:
    """rejectd in safe mode. An output that cannot be opened is told and leaves the others as they are."""
    outputs: dict[str, tuple[Output, bool]] = {}
    missing: list[str] = []
    for role, told in dict(chosen.essentials.get("outputs") or {}).items():
        try:
            address, level = parse(told["address"], "digital line", LINE), told["level"] is True
            outputs[role] = (wiring.output_of(role, address, level, None, paths, clock), level)
        except (OutputLost, ValueError, KeyError, TypeError) as why:
            missing.append(f"output {role} cannot be held: {why}")
            log.error("%s", missing[-1])
    return safe_build(outputs, "; ".join([chosen.why, *missing]), running_version())


@dataclass(frozen=True)
class _Essential:
    """What a broker's client asks of a station."""

    station: str
    mqtt: Mqtt | None
    file: str


def safe_report_build(chosen: Chosen, clock: Clock) -> ReportBuild:
    """reportd in safe mode: the broker and the PLC of the last good station hear of it."""
    from appliance.report.daemon import ReportBuild

    known, mqtt, modbus = chosen.essentials, None, None
    try:
        mqtt = Mqtt.model_validate(known["mqtt"]) if known.get("mqtt") else None
        modbus = Modbus.model_validate(known["modbus"]) if known.get("modbus") else None
    except ValidationError as why:  # of an older release; what is left of it goes on
        log.error("the last good station's broker or PLC cannot be used: %s", why)
    station = _Essential(str(known.get("station") or NAMELESS), mqtt, "/essentials.json")
    commands = frozenset(mqtt.commands) if mqtt else frozenset()
    return ReportBuild(
        station.station, bool(known.get("simulated", False)), wiring.broker_maker(station, commands), commands, "",
        plc=wiring.plc_maker(modbus, clock), version=running_version(), safe=chosen.why,
        box=partial(wiring.box_sensors, clock),
    )  # fmt: skip


# --- what a change concerns ---------------------------------------------------------------------------------

_INSPECTS = ("cameras", "trigger", "transport", "recipes", "active", "golden_every_h", "engine")


def changed_roles(old: Station | None, new: Station, data_dir: Path | None = None) -> frozenset[str]:
    """Which of reject, inspect and report must begin anew when ``new`` takes ``old``'s place; report always does, it shows
    the digest."""
    if old is None:
        return ROLES
    roles = {"report"}
    if _rejects_by(old) != _rejects_by(new):
        roles.add("reject")
    if _inspects_by(old, data_dir) != _inspects_by(new, data_dir):
        roles.add("inspect")
    return frozenset(roles)


def _rejects_by(station: Station) -> tuple[Any, ...]:
    """All that rejectd is made of."""
    divert = station.divert.output if station.divert else None
    lines = (station.reject.output, divert, dict(station.outputs), wiring.inputs_of(station))
    return wiring.plan_of(station), station.transport, lines, wiring.acts_on_a_line(station)


def _inspects_by(station: Station, data_dir: Path | None) -> tuple[Any, ...]:
    """All that inspectd is made of; a bundle's model.yaml names the digests of all its files."""
    bundles = {}
    for name in {look.bundle for recipe in station.recipes.values() for look in recipe.inspect}:
        folder = find_bundle(name, Path(station.file), data_dir)
        bundles[name] = (folder / "model.yaml").read_bytes() if folder else None
    settings = [getattr(station, name) for name in _INSPECTS]
    return (*settings, station.storage.images, bundles)

