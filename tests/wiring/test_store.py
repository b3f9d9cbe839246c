"""From the store to what is started: the chosen one, the last good one, safe mode; and whom a change concerns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.box.store import Generation, Meta, Store
from appliance.config import ConfigError, Station, load
from appliance.config.load import PROJECT
from appliance.wiring.store import Chosen, changed_roles, essentials_of, load_chosen

SHIPPED = PROJECT / "appliance/twin/station.yaml"
META = Meta("stick 4711", "test", 1, "acme/demo", 0, "unset")
LATER_NS = 10**12


def written(place: Path, change: Callable[[dict[str, Any]], object] = lambda document: None) -> Path:
    """The shipped station with a change, in a folder as a stick holds it."""
    document = yaml.safe_load(SHIPPED.read_text())
    change(document)
    place.mkdir(parents=True, exist_ok=True)
    (place / "appliance.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return place


class Box:
    """A store whose boot and time stand still."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "config", lambda: "boot", lambda: 10**9)
        self._made = 0

    def put(self, change: Callable[[dict[str, Any]], object] = lambda document: None) -> Generation:
        self._made += 1
        return self.store.put(written(self.folder / f"stick{self._made}", change), META)

    def good(self, change: Callable[[dict[str, Any]], object] = lambda document: None) -> Generation:
        one = self.put(change)
        self.store.begin_trial(one, LATER_NS)
        self.store.mark_good(essentials_of(load(one.file)))
        return one

    def trial(self, change: Callable[[dict[str, Any]], object]) -> Generation:
        one = self.put(change)
        self.store.begin_trial(one, LATER_NS)
        return one

    def chosen(self) -> Chosen:
        return load_chosen(self.store, None)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def set_to(*path: Any, to: Any) -> Callable[[dict[str, Any]], object]:
    def change(document: dict[str, Any]) -> None:
        *above, last = path
        for step in above:
            document = document.setdefault(step, {}) if isinstance(document, dict) else document[step]
        document[last] = to

    return change


UNKNOWN = set_to("active", to="no-such-recipe")


# --- what is started ----------------------------------------------------------------------------------------


def test_the_chosen_one_is_started(box: Box) -> None:
    one = box.good()
    chosen = box.chosen()
    assert chosen.station and chosen.station.digest == one.digest and chosen.generation == one and chosen.why == ""
    two = box.trial(set_to("revision", to=2))
    assert box.chosen().generation == two
    assert chosen.broker == "embedded"


def test_nothing_at_all_is_safe_mode_in_words(box: Box) -> None:
    chosen = box.chosen()
    assert chosen.station is None and "plug in a stick" in chosen.why and chosen.essentials == {} and chosen.broker is None


def test_a_trial_that_cannot_be_loaded_falls_back_to_the_last_good_one(box: Box) -> None:
    one = box.good()
    two = box.trial(UNKNOWN)
    chosen = box.chosen()
    assert chosen.generation == one and chosen.station and chosen.station.digest == one.digest
    assert f"generation {two.number} cannot be used" in chosen.why and "no recipe no-such-recipe" in chosen.why


@pytest.mark.parametrize("how", ["text", "gone", "unreadable yaml", "altered"])
def test_a_last_good_one_that_rotted_is_safe_mode_by_the_essentials(box: Box, how: str) -> None:
    one = box.good()
    if how == "gone":
        one.file.unlink()
    else:
        text = one.file.read_text()
        one.file.write_text({"text": "version: 2\n", "unreadable yaml": "{", "altered": text + "# a bit\n"}[how])
    chosen = box.chosen()
    assert chosen.station is None and "generation 1 cannot be used" in chosen.why
    assert chosen.essentials["station"] == "acme/demo/line1/inspect-a" and chosen.broker == "embedded"


def test_neither_of_two_is_safe_mode_and_both_are_named(box: Box) -> None:
    one = box.good()
    box.trial(UNKNOWN)
    one.file.write_text("{")
    chosen = box.chosen()
    assert chosen.station is None and "generation 2 cannot" in chosen.why and "generation 1 cannot" in chosen.why


def test_essentials_that_rotted_leave_a_safe_mode_without_outputs(box: Box) -> None:
    box.good().file.write_text("{")
    for name in ("essentials.json", "essentials.copy.json"):
        (box.store.root / name).write_text("{}")
    chosen = box.chosen()
    assert chosen.station is None and chosen.essentials == {}


def test_strict_start_of_the_last_good_one_fails_instead(box: Box) -> None:
    box.good(set_to("strict_start", to=True)).file.write_text("{")
    with pytest.raises(ConfigError):
        box.chosen()


def test_strict_start_of_the_file_itself_fails_instead_if_it_can_be_read(box: Box) -> None:
    box.good()

    def strict(document: dict[str, Any]) -> None:
        UNKNOWN(document)
        document["strict_start"] = True

    box.trial(strict)
    with pytest.raises(ConfigError, match="no-such-recipe"):
        box.chosen()


def test_strict_start_does_not_fail_what_can_be_used(box: Box) -> None:
    one = box.good(set_to("strict_start", to=True))
    assert box.chosen().generation == one
    box.store.begin_trial(box.put(set_to("revision", to=9)), 10**9)  # over at once
    assert box.chosen().generation == one


# --- essentials ---------------------------------------------------------------------------------------------


def essentials(folder: Path, change: Callable[[dict[str, Any]], object] = lambda document: None) -> dict[str, Any]:
    return essentials_of(load(written(folder, change) / "appliance.yaml"))


def test_essentials_are_plain_json_and_hold_outputs_broker_and_plc(tmp_path: Path) -> None:
    told = essentials(tmp_path)
    assert json.loads(json.dumps(told)) == told
    assert told["outputs"]["gate"] == {"address": "twin://gate", "level": False}
    assert set(told["outputs"]) == {"gate", "ready", "fault", "line_stop", "heartbeat"}
    assert not any(one["level"] for one in told["outputs"].values())
    assert told["mqtt"]["broker"] == "embedded" and told["modbus"]["listen"] == "127.0.0.1:1502"
    assert told["simulated"] is True and told["strict_start"] is False


@pytest.mark.parametrize(
    ("kind", "means", "level"),
    [("hold", "accept", False), ("hold", "reject", True), ("pulse", "reject", False), ("pulse", "accept", True)],
)
def test_a_gate_that_can_be_held_stands_in_reject_one_that_cannot_at_rest(
    tmp_path: Path, kind: str, means: str, level: bool
) -> None:
    """A pusher that stayed out would be torn off; the line stop, which it must have, falls."""

    def change(document: dict[str, Any]) -> None:
        document["reject"] |= {"kind": kind, "energised_means": means}

    assert essentials(tmp_path, change)["outputs"]["gate"]["level"] is level


def test_the_brokers_files_are_found_from_anywhere(tmp_path: Path) -> None:
    mqtt = {"broker": "mqtts://host:8883", "username": "u", "password_file": "secret", "ca_file": "/etc/ca.pem"}
    told = essentials(tmp_path, set_to("mqtt", to=mqtt))["mqtt"]
    assert told["password_file"] == str(tmp_path / "secret") and told["ca_file"] == "/etc/ca.pem"


def test_a_station_of_photographs_has_no_outputs_to_hold(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["cameras"]["top"] = {"source": f"folder://{tmp_path}?fps=20", "trigger": "free-run"}
        document["trigger"] |= {"input": "frame"}

    assert essentials(tmp_path, change)["outputs"] == {}


# --- whom a change concerns ---------------------------------------------------------------------------------

NOBODY: frozenset[str] = frozenset()
REJECT, INSPECT, BOTH = frozenset({"reject"}), frozenset({"inspect"}), frozenset({"reject", "inspect"})
# One change at least of each setting of a Station; None: nothing of it is built yet, so it cannot be given.
CHANGES: dict[str, list[tuple[Callable[[dict[str, Any]], object], frozenset[str]]] | None] = {
    "version": None,
    "challenge": None,
    "station": [(set_to("station", to="acme/other"), NOBODY)],
    "revision": [(set_to("revision", to=2), NOBODY)],
    "author": [(set_to("author", to="M. Weber"), NOBODY)],
    "reason": [(set_to("reason", to="new caps"), NOBODY)],
    "integrity": [(set_to("integrity", to={"bundles/cap-28mm/model.onnx": "sha256:" + 64 * "0"}), NOBODY)],
    "cameras": [
        (set_to("cameras", "top", "offset_ms", to=1.5), INSPECT),
        (set_to("cameras", "top", "white_balance", to=[1.1, 1.0, 1.0]), INSPECT),
    ],
    "trigger": [(set_to("trigger", "min_pitch_mm", to=22), BOTH), (set_to("trigger", "edge", to="falling"), BOTH)],
    "transport": [(set_to("transport", "speed_mm_s", to=510), BOTH), (set_to("transport", "max_speed_mm_s", to=900), BOTH)],
    "part_mm": [(set_to("part_mm", to=29), REJECT)],
    "reject": [
        (set_to("reject", "pulse_ms", to=50), REJECT),
        (set_to("reject", "output", to="twin://other"), REJECT),
        (set_to("reject", "on_late", to="stop"), REJECT),
        (set_to("reject", "gate_eye", to="twin://gate_eye"), REJECT),
    ],
    "divert": [(set_to("divert", to={"output": "twin://divert"}), REJECT)],
    "outputs": [
        (set_to("outputs", "ready", to="twin://other"), REJECT),
        (set_to("outputs", "stick", to="twin://lamp"), REJECT),
    ],
    "inputs": [(set_to("inputs", "clear", to="twin://clear"), REJECT)],
    "alarms": [(set_to("alarms", "consecutive_rejects", to=9), REJECT)],
    "recipes": [
        (set_to("recipes", "cap-28mm", "inspect", 0, "fail_at", to=0.9), INSPECT),
        (set_to("recipes", "cap-28mm", "number", to=7), BOTH),
        (set_to("recipes", "cap-28mm", "image_health", "frozen", to=False), INSPECT),
    ],
    "active": [
        (lambda document: document.update(recipes={"new": document["recipes"]["cap-28mm"]}, active="new"), BOTH),
    ],
    "mqtt": [(set_to("mqtt", "broker", to="mqtt://10.0.0.1"), NOBODY), (set_to("mqtt", to=None), NOBODY)],
    "modbus": [(set_to("modbus", "listen", to="127.0.0.1:1503"), NOBODY)],
    "storage": [
        (set_to("storage", "images", to={"passes_every": 100}), INSPECT),
    ],
    "golden_every_h": [(set_to("golden_every_h", to=2), INSPECT)],
    "engine": [(set_to("engine", to="cpu"), INSPECT)],
    "signature": [(set_to("signature", to="warn"), NOBODY)],
    "strict_start": [(set_to("strict_start", to=True), NOBODY)],
}


def test_each_setting_of_a_station_stands_in_the_table() -> None:
    assert set(CHANGES) == set(Station.model_fields)


CASES = [(name, number) for name, cases in CHANGES.items() for number in range(len(cases or ()))]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_a_change_concerns_whom_it_concerns_both_ways(tmp_path: Path, name: str, number: int) -> None:
    change, roles = (CHANGES[name] or [])[number]
    old = load(written(tmp_path / "old") / "appliance.yaml", built_only=False)
    new = load(written(tmp_path / "new", change) / "appliance.yaml", built_only=False)
    assert changed_roles(old, new) == roles | {"report"} == changed_roles(new, old)


def test_the_first_configuration_concerns_all(tmp_path: Path) -> None:
    assert changed_roles(None, load(SHIPPED)) == {"reject", "inspect", "report"}
    assert changed_roles(load(SHIPPED), load(SHIPPED)) == {"report"}


def test_the_same_text_with_another_bundle_concerns_inspectd(tmp_path: Path) -> None:
    stations = []
    for name, more in (("old", ""), ("same", ""), ("new", "\n# revised\n")):
        place = written(tmp_path / name)
        bundle = place / "bundles/cap-28mm"
        bundle.mkdir(parents=True)
        (bundle / "model.yaml").write_text((PROJECT / "models/cap-28mm/model.yaml").read_text() + more)
        stations.append(load(place / "appliance.yaml"))
    assert changed_roles(stations[0], stations[1]) == {"report"}
    assert changed_roles(stations[0], stations[2]) == {"report", "inspect"}
