"""What a person who made eight mistakes reads: eight errors, each with its place and what to write instead."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.config import ConfigError, load
from appliance.config.load import load_bytes
from appliance.config.verbs import check, schema

SHIPPED = Path(__file__).resolve().parents[2] / "appliance/twin/station.yaml"
MISTAKES = [  # (what stands there, what is written in its place, what the error must hold)
    ("    fps: 60", "    fsp: 60", ("cameras.top.fsp: unknown setting", "did you mean fps?")),
    ("  kind: hold", "  kind: hodl", ("reject.kind", "did you mean hold?")),
    ("  deadline_ms: 20", "  deadline_ms: -5", ("reject.deadline_ms", "at least 0")),
    ("part_mm: 28", "part_mm: long", ("part_mm", "valid number")),
    ("    pixel: mono8", "    pixel: mono9", ("cameras.top.pixel", "did you mean mono")),
    ("  input: twin://eye", "  input: eye", ("trigger.input", "write one of gpio://")),
    ("    number: 1", "    number: 0", ("recipes.cap-28mm.number", "at least 1")),
    ("  broker: embedded", "  broker: http://x", ("mqtt.broker", "mqtt://")),
]


def planted(tmp_path: Path) -> tuple[Path, list[int]]:
    text = SHIPPED.read_text()
    for right, wrong, _ in MISTAKES:
        assert right in text, right
        text = text.replace(right, wrong, 1)
    path = tmp_path / "station.yaml"
    path.write_text(text)
    lines = text.splitlines()
    return path, [next(n for n, line in enumerate(lines, 1) if line.startswith(wrong)) for _, wrong, _ in MISTAKES]


def test_eight_mistakes_are_eight_errors_with_line_column_and_what_to_write(tmp_path: Path) -> None:
    path, lines = planted(tmp_path)
    out = io.StringIO()
    assert check(path, out) == 2
    told = [line for line in out.getvalue().splitlines() if line.startswith(f"{path}:") and line.count(";")]
    errors = told[:-1] if "to correct" in told[-1] else told
    assert len(errors) == 8, out.getvalue()
    for (_, _, words), line in zip(MISTAKES, lines):
        mine = [error for error in errors if error.startswith(f"{path}:{line}:")]
        assert len(mine) == 1, (line, errors)
        assert all(word in mine[0] for word in words), mine[0]
        column = int(mine[0].split(":")[2])
        assert column > 1 or path.read_text().splitlines()[line - 1][0] != " "


def test_the_shipped_station_is_valid_and_says_what_a_person_should_know() -> None:
    out = io.StringIO()
    assert check(SHIPPED, out) == 0
    assert "parts/min" in out.getvalue() and "simulated" in out.getvalue()


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (b"a: &x 1\n", "anchors"),
        (b"a: 1\nb: *a\n", "alias"),
        (b"a: !!python/object:os.system x\n", "tags"),
        (b"a: 1\na: 2\n", "second time"),
        (b"a: 1\n---\nb: 1\n", "second document"),
        (b"a: \xff\xfe\n", "UTF-8"),
        (b"", "empty"),
        (b"a: [1, 2\n", "not YAML"),
        (b"[" * 60_000, "deeper than 20"),
        (b"# " + b"x" * (1024 * 1024), "at most"),
    ],
)
def test_a_hostile_file_is_one_clear_sentence(raw: bytes, word: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_bytes(raw, Path("stick.yaml"))
    assert word in str(refused.value) and str(refused.value).startswith("stick.yaml:")


@settings(max_examples=60)
@given(at=st.integers(0, 1100), new=st.binary(max_size=6), cut=st.integers(0, 12))
def test_no_damage_raises_anything_but_a_config_error(at: int, new: bytes, cut: int) -> None:
    raw = SHIPPED.read_bytes()
    damaged = raw[:at] + new + raw[at + cut :]
    try:
        load_bytes(damaged, SHIPPED)
    except ConfigError as why:
        assert why.problems


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("  speed_mm_s: 500", "  encoder: {input: twin://e, mm_per_pulse: 0.2}\n", "pulses/s"),
        ("signature: \"off\"", "integrity: {models/a/b: x}", "bundles"),
        ("    fps: 60", "    fps: 60\n    gain: 3.0", "gain: not built yet"),
        ("signature: \"off\"", "storage: {ledger: {keep_days: 7}}", "keep_days: not built yet"),
        ("  output: twin://gate", "  output: twin://gate\n  on_review: divert", "no second gate"),
        ("active: cap-28mm", "active: cap", "no recipe cap"),
        ("roi: [160, 80, 320, 320]", "roi: [400, 80, 320, 320]", "reaches beyond"),
        ("        bundle: cap-28mm", "        bundle: nothing", "no bundle nothing"),
        ("  distance_mm: 420", "  distance_mm: 10", "before the trigger"),
        ("  energised_means: accept", "  energised_means: reject", ""),
        ("  ready: twin://ready", "  ready: twin://gate", "used by"),
        ("source: twin://top", "source: csi://0?flip=clockwise", "write one of none"),
        ("source: twin://top", "source: csi://0", "holds neither exposure_us"),
        (
            "    source: twin://top\n", "    source: csi://0\n    exposure_us: auto\n    trigger: free-run\n    gain: 3.0\n",
            "nor trigger: hardware",
        ),
        ("source: twin://top", "source: rtsp://cell:pass@10.0.0.7/a?b=c", "converted to rgb8 by its library"),
        ("twin://top\n    size: [640, 480]\n    pixel: mono8\n    fps: 60", "csi://0\n    fps: 29.97", "whole frames a second"),
        ("    fps: 60\n", "    fps: 60\n    trigger: free-run\n    match_ms: 9\n", "each part is ambiguous"),
        ("source: twin://top", "source: v4l2:///dev/video0?expose=1", "has no option expose"),
        ("source: twin://top", "source: v4l2:///dev/video0?stamp=before", "write one of start"),
        ("source: twin://top", "source: gige://11?packet_delay_us=some", "is no number above 0"),
        ("  listen: 127.0.0.1:1502", "  listen: plc", "no address and port"),
        ("  listen: 127.0.0.1:1502", "  clients: [cell-7]", "no IPv4 address"),
    ],
)
def test_contradictions_and_what_is_not_built_are_refused_in_words(tmp_path: Path, old: str, new: str, word: str) -> None:
    text = SHIPPED.read_text()
    assert old in text
    path = tmp_path / "station.yaml"
    path.write_text(text.replace(old, new, 1))
    if not word:
        assert load(path).reject.energised_means == "reject"
        return
    with pytest.raises(ConfigError, match=word):
        load(path)


def test_a_camera_down_a_belt_that_changes_its_speed_is_refused(tmp_path: Path) -> None:
    """Its frames would be looked for where the belt's highest speed has them: a part could be judged by another's picture."""
    path = tmp_path / "station.yaml"
    text = SHIPPED.read_text().replace("  speed_mm_s: 500\n", "  encoder: {input: twin://a, mm_per_pulse: 1}\n")
    path.write_text(text)
    load(path)
    path.write_text(text.replace("    fps: 60\n", "    fps: 60\n    at_mm: 100\n"))
    with pytest.raises(ConfigError, match="put the camera at the trigger"):
        load(path)


def test_the_schema_is_json_with_help() -> None:
    import json

    out = io.StringIO()
    assert schema(out) == 0
    assert "millimetres" in json.dumps(json.loads(out.getvalue()))
