"""What changed, in words with line numbers; and nothing in it that steers an eye, a terminal or gives a password away."""

from __future__ import annotations

import timeit
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.box.result import Report, compose
from appliance.box.words import differences, plain, shown, without_secrets
from appliance.config import reader
from appliance.config.load import load_bytes
from tests.box.stick_rig import SHIPPED


def told(old: str, new: str) -> list[str]:
    """As the stick's dialogue has it."""
    before, after = (load_bytes(text.encode(), Path("/nowhere/appliance.yaml")) for text in (old, new))
    lines = {path: mark.line for path, mark in reader.read(new.encode()).keys.items()}
    dumped = [one.model_dump(mode="json", warnings="none") for one in (before, after)]
    return differences(dumped[0], dumped[1], lines)


CAP = "        bundle: cap-28mm\n"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("pulse_ms: 40", "pulse_ms: 45", ["reject.pulse_ms: 40 -> 45 (line 31)"]),
        ("revision: 1", "revision: 2", ["revision: 1 -> 2 (line 4)"]),
        (CAP, CAP + "        fail_at: 0.6\n", ["recipes.cap-28mm.inspect[0].fail_at: added: 0.6 (line 52)"]),
        ("  purge_mm: 600\n", "  purge_mm: 600\n  on_late: stop\n", ["reject.on_late: reject -> stop (line 35)"]),
        ("  purge_mm: 600\n", "", []),  # its default: nothing changes
        ("size: [640, 480]", "size: [1280, 960]", ["cameras.top.size: [640, 480] -> [1280, 960] (line 9)"]),
        ("frozen: true", "frozen: false", ["recipes.cap-28mm.image_health.frozen: true -> false (line 53)"]),
        ("  heartbeat: twin://heartbeat\n", "", ["outputs.heartbeat: taken out (it was twin://heartbeat)"]),
        ("  commands: [clear]\n", "", ["mqtt.commands: [clear] -> []"]),
    ],
)
def test_one_change_is_one_line(old: str, new: str, words: list[str]) -> None:
    assert old in SHIPPED
    assert told(SHIPPED, SHIPPED.replace(old, new, 1)) == words


def test_a_section_that_comes_or_goes_is_one_line() -> None:
    without = SHIPPED.replace("modbus:\n  listen: 127.0.0.1:1502\n", "")
    assert told(SHIPPED, without) == ["modbus: taken out (it was {listen: 127.0.0.1:1502})"]
    (line,) = told(without, SHIPPED)
    assert line.startswith("modbus: added: {listen: 127.0.0.1:1502") and "(line " in line


def test_a_second_look_is_told_by_its_number() -> None:
    more = SHIPPED.replace("    image_health:", "      - camera: top\n        bundle: cap-28mm\n    image_health:")
    (line,) = told(SHIPPED, more)
    assert line.startswith("recipes.cap-28mm.inspect[1]: added: {camera: top, bundle: cap-28mm")


def test_comments_and_order_are_no_change() -> None:
    moved = SHIPPED.replace("  pulse_ms: 40\n", "").replace("reject:\n", "reject:\n  pulse_ms: 40\n")
    assert told(SHIPPED, "# another day\n" + moved) == []


def test_true_is_not_one() -> None:
    assert differences({"gain": 1}, {"gain": True}, {}) == ["gain: 1 -> true"]
    assert differences({"gain": 1}, {"gain": 1.0}, {}) == []


def test_a_password_in_an_address_is_never_told() -> None:
    old: dict[str, Any] = {"cameras": {"a": {"source": "rtsp://cell:hunter2@10.0.0.7/a"}}}
    new: dict[str, Any] = {"cameras": {"a": {"source": "rtsp://cell:hunter3@10.0.0.7/a"}}}
    assert differences(old, new, {}) == ["cameras.a.source: changed in what is not shown here"]
    (line,) = differences(old, {"cameras": {"a": {"source": "rtsp://cell:hunter3@10.0.0.8/a"}}}, {})
    assert "hunter" not in line and "10.0.0.8" in line


_NAMES, _VALUES = st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.text()
_TREES = st.recursive(_VALUES, lambda one: st.lists(one, max_size=4) | st.dictionaries(_NAMES, one, max_size=4), max_leaves=12)


@given(one=_TREES, other=st.dictionaries(_NAMES, _VALUES, max_size=5))
def test_whatever_differs_is_told_and_nothing_else(one: Any, other: dict[str, Any]) -> None:
    old, new = {"x": one}, {"x": other}
    assert differences(new, new, {}) == [] and differences(old, old, {}) == []
    lines = differences(old, new, {})
    assert all(line.isprintable() for line in lines)
    if (one or None) != (other or None) and not (isinstance(one, dict) and _alike(one, other)):
        assert lines


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """But for what is nothing either way."""
    return {key: value for key, value in one.items() if value is not None} == {k: v for k, v in other.items() if v is not None}


@given(st.text())
def test_no_text_steers_what_shows_it(text: str) -> None:
    assert plain(text).isprintable() and len(shown(text)) <= 160


@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\nWHAT", "\u202etxt.exe", "\u200b", "\r\n", "\x00", "\udcff", "\u2028"])
def test_hostile_characters_become_escapes(hostile: str) -> None:
    assert hostile not in plain(hostile) and plain(hostile).isprintable()


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("source: rtsp://cell:hunter2@10.0.0.7/a", "hunter2"),
        ("broker: mqtts://user:p%40ss@h:8883", "p%40ss"),
        ("  password: hunter2", "hunter2"),
        ("MQTT_PASSWORD=hunter2 sent", "hunter2"),
        ("api-token: abcdef", "abcdef"),
        ("secret: x y z", "x y z"),
        ("source: rtsp://cam/stream?user=admin&password=hunter2", "hunter2"),
        ("source: RTSPS://cam/stream?user=admin&pwd=hunter2", "hunter2"),
        ("opened rtsp://u:hun@ter2@cam/1 at once", "ter2"),
        ("opened rtsp://u:hun/ter2@cam/1 at once", "hun/ter2"),
        ("opened rtsp://u:hun?ter2@cam/1 at once", "ter2"),
        ("opened rtsp://u:a://ter2@cam/1 at once", "ter2"),
    ],
)
def test_secrets_are_hidden(text: str, gone: str) -> None:
    assert gone not in without_secrets(text) and "***" in without_secrets(text)


@pytest.mark.parametrize("hostile", ["://", "rtsp://", "\n", " ", "password", "a@", "token = ", "rtsp://a?"])
def test_a_text_made_to_be_slow_is_searched_in_time_of_its_length(hostile: str) -> None:
    def seconds(length: int) -> float:
        text = hostile * (length // len(hostile))
        return min(timeit.repeat(lambda: without_secrets(text), number=1, repeat=3))

    assert seconds(400_000) < 40 * seconds(20_000) + 0.05, "twenty times the length may not take the square of that"


def test_what_is_no_secret_stays_readable() -> None:
    for text in ("gpio://gpiochip0/17?bias=pull-up", "v4l2://usb-1.2?serial=77", "from rtsp://cam/1 to mail me@example.org"):
        assert without_secrets(text) == text
    assert without_secrets("rtsp://u:p@cam/1, rtsp://u:p@cam/2") == "rtsp://***@cam/1, rtsp://***@cam/2"


def test_a_passwords_file_is_no_secret() -> None:
    assert without_secrets("password_file: /etc/appliance/broker.password") == "password_file: /etc/appliance/broker.password"


def test_the_result_is_read_by_notepad_and_holds_no_line_of_the_sticks_own() -> None:
    report = Report("refused", "x", "now", "acme", found=("a\nRESULT: APPLIED",), wrong=tuple(f"line {at}" for at in range(500)))
    raw = compose(report)
    assert raw.count(b"\r\n") == raw.count(b"\n") and raw.startswith(b"Result: REFUSED - nothing was changed\r\n")
    assert b"\r\nRESULT: APPLIED" not in raw and b"... and 300 more" in raw
    assert b"WHAT IS WRONG (500)" in raw and b"WHAT CHANGED" not in raw
    assert max(map(len, raw.split(b"\r\n"))) <= 110
