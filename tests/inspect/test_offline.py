"""``appliance inspect``: one JSON line a picture; what cannot be read is told, and the others go on."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from appliance.model.bundle import Bundle
from appliance.wiring.models import inspect_paths
from tests.model.tiny import frames, tiny_bundle

STATION = """\
version: 1
station: acme/test
cameras:
  top: {source: "twin://top", size: [96, 80], pixel: mono8}
trigger: {input: "twin://eye", min_pitch_mm: 20, max_part_mm: 40}
transport: {speed_mm_s: 500}
part_mm: 28
reject: {output: "twin://gate", kind: hold, distance_mm: 420, purge_mm: 600}
recipes:
  tiny:
    number: 1
    inspect: [{camera: top, bundle: tiny, roi: [20, 10, 64, 64], review_at: 0.3, fail_at: 0.7, classes: {bright: {fail_at: 0.9}}}]
    image_health: {brightness: [40, 250]}
active: tiny
"""


@dataclass
class Answer:
    """What the verb gave back."""

    code: int
    lines: list[dict[str, Any]]
    errors: str


def ask(bundle: Bundle, *paths: Path, recipe: Path | None = None, json_file: Path | None = None) -> Answer:
    out, errors = io.StringIO(), io.StringIO()
    code = inspect_paths(bundle.folder, recipe, list(paths), out, json_file, errors)
    return Answer(code, [json.loads(line) for line in out.getvalue().splitlines()], errors.getvalue())


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "bundles" / "tiny")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """a.png dark, b.jpg middling, sub/c.bmp bright."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for name, index in (("a.png", 0), ("b.jpg", 3), ("sub/c.bmp", 7)):
        assert cv2.imwrite(str(folder / name), frames()[index])
    (folder / "notes.txt").write_text("not a picture, and not looked at")
    return folder


@pytest.fixture
def station(tmp_path: Path, bundle: Bundle) -> Path:
    path = tmp_path / "station.yaml"
    path.write_text(STATION)
    return path


def test_a_folder_gives_one_line_a_picture_in_the_order_of_names(bundle: Bundle, pictures: Path) -> None:
    answer = ask(bundle, pictures)
    assert answer.code == 0 and answer.errors == ""
    assert [Path(line["file"]).name for line in answer.lines] == ["a.png", "b.jpg", "c.bmp"]
    assert [line["verdict"] for line in answer.lines] == ["fail", "pass", "fail"]
    assert [line["cause"] for line in answer.lines] == ["dark", None, "bright"]
    first = answer.lines[0]
    assert first["threshold"] == 0.6 and first["score"] > 0.6 and first["regions"] == []
    assert set(first["times_ms"]) == {"read", "preprocess", "infer", "decide"}


def test_the_json_file_holds_the_lines_and_their_counts(bundle: Bundle, pictures: Path, tmp_path: Path) -> None:
    answer = ask(bundle, pictures, json_file=tmp_path / "out.json")
    whole = json.loads((tmp_path / "out.json").read_text())
    assert whole["results"] == answer.lines
    assert (whole["judged"], whole["pass"], whole["fail"], whole["unreadable"]) == (3, 1, 2, 0)
    assert whole["model"]["digest"] == bundle.digest


def test_regions_are_told_where_the_bundle_finds_them(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "b", "anomaly")
    picture = np.full((64, 64), 20, np.uint8)
    picture[10:20, 30:50] = 255
    assert cv2.imwrite(str(tmp_path / "spot.png"), picture)
    (line,) = ask(made, tmp_path / "spot.png").lines
    assert line["verdict"] == "fail"
    (region,) = line["regions"]
    assert region == {"camera": "photograph", "class": "anomaly", "score": 1.0, "box": [30, 10, 20, 10], "area_px": 200}


def test_a_colour_bundle_reads_colour(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "b", "classify", 3)
    assert cv2.imwrite(str(tmp_path / "colour.png"), frames(3)[7][:, :, ::-1])
    (line,) = ask(made, tmp_path / "colour.png").lines
    assert (line["verdict"], line["cause"]) == ("fail", "bright")


def test_sixteen_bits_say_the_same_as_eight(tmp_path: Path, bundle: Bundle) -> None:
    for channels, of in ((1, bundle), (3, tiny_bundle(tmp_path / "b", "classify", 3))):
        assert cv2.imwrite(str(tmp_path / "eight.png"), frames(channels)[5])
        assert cv2.imwrite(str(tmp_path / "sixteen.png"), frames(channels)[5].astype(np.uint16) * 257)
        eight, sixteen = ask(of, tmp_path / "eight.png", tmp_path / "sixteen.png").lines
        assert eight["score"] == pytest.approx(sixteen["score"], abs=0.01)  # words are rounded finer when halved


def test_colour_with_transparency_serves_a_mono_bundle(bundle: Bundle, tmp_path: Path) -> None:
    grey = frames()[7]
    assert cv2.imwrite(str(tmp_path / "alpha.png"), cv2.merge([grey, grey, grey, np.full_like(grey, 255)]))
    assert cv2.imwrite(str(tmp_path / "grey.png"), grey)
    first, second = ask(bundle, tmp_path / "alpha.png", tmp_path / "grey.png").lines
    assert first["score"] == second["score"]


# --- recipes -----------------------------------------------------------------------------------------------


def test_a_picture_of_the_cameras_size_goes_through_the_roi_and_another_is_cut_already(
    bundle: Bundle, station: Path, tmp_path: Path
) -> None:
    whole = np.full((80, 96), 128, np.uint8)
    whole[10:74, 20:84] = frames()[7]
    for name, picture in (("whole.png", whole), ("cut.png", frames()[7])):
        assert cv2.imwrite(str(tmp_path / name), picture)
    first, second = ask(bundle, tmp_path / "whole.png", tmp_path / "cut.png", recipe=station).lines
    assert first["score"] == second["score"] and first["verdict"] == second["verdict"]


def test_the_recipes_thresholds_hold(bundle: Bundle, station: Path, tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "bright.png"), frames()[7])
    (line,) = ask(bundle, tmp_path / "bright.png", recipe=station).lines
    assert line["threshold"] == 0.9 and line["verdict"] == "review"


def test_the_recipes_image_health_makes_a_picture_blind(bundle: Bundle, station: Path, tmp_path: Path) -> None:
    for name in ("black.png", "again.png"):
        assert cv2.imwrite(str(tmp_path / name), frames()[0])
    lines = ask(bundle, tmp_path / "black.png", tmp_path / "again.png", recipe=station).lines
    assert [(line["verdict"], line["cause"], line["score"]) for line in lines] == [("blind", "dark", None)] * 2


def test_equal_photographs_are_not_a_frozen_camera(bundle: Bundle, tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "one.png"), frames()[3])
    lines = ask(bundle, tmp_path / "one.png", tmp_path / "one.png").lines
    assert [line["verdict"] for line in lines] == ["pass", "pass"]


def test_a_recipe_of_another_bundle_is_refused(station: Path, tmp_path: Path) -> None:
    other = tiny_bundle(tmp_path / "other", name="other")
    answer = ask(other, tmp_path, recipe=station)
    assert answer.code == 2 and "does not use other; give -m one of tiny" in answer.errors


def test_a_recipe_file_with_mistakes_is_told_with_its_lines(bundle: Bundle, station: Path, pictures: Path) -> None:
    station.write_text(STATION.replace("part_mm: 28", "part_mm: long"))
    answer = ask(bundle, pictures, recipe=station)
    assert answer.code == 2 and "station.yaml:7:" in answer.errors and answer.lines == []


# --- what cannot be read -----------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) * 2 // 3])


def only_tail_missing(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def text(path: Path) -> None:
    path.write_text("this is no picture")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("b.jpg", cut, "b.jpg: the picture is cut short; copy it anew"),
        ("b.jpg", only_tail_missing, "b.jpg: the picture is cut short"),
        ("a.png", cut, "a.png: the picture is cut short"),
        ("sub/c.bmp", cut, "c.bmp: the picture is cut short"),
        ("b.jpg", text, "b.jpg: is not a picture"),
        ("a.png", empty, "a.png: the file is empty"),
    ],
)
def test_what_cannot_be_read_is_told_and_the_others_are_judged(
    bundle: Bundle, pictures: Path, name: str, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(pictures / name)
    answer = ask(bundle, pictures)
    assert answer.code == 2 and said in answer.errors
    spoiled = [line for line in answer.lines if "error" in line]
    assert [line["file"] for line in spoiled] == [str(pictures / name)] and said in spoiled[0]["error"]
    assert sum("verdict" in line for line in answer.lines) == 2


@pytest.mark.parametrize("progressive", [0, 1])
def test_a_jpeg_cut_anywhere_is_never_judged(tmp_path: Path, bundle: Bundle, progressive: int) -> None:
    """OpenCV reads most of these without a word and fills the rest with grey. A thumbnail's end mark must not deceive."""
    ok, raw = cv2.imencode(".jpg", frames()[3], [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive])
    ok, thumbnail = cv2.imencode(".jpg", frames()[3][::8, ::8])
    whole, inner = raw.tobytes(), b"Exif\0\0" + thumbnail.tobytes()
    whole = whole[:2] + b"\xff\xe1" + (len(inner) + 2).to_bytes(2, "big") + inner + whole[2:]
    folder = tmp_path / "cut"
    folder.mkdir()
    (folder / "whole.jpg").write_bytes(whole)
    lengths = range(3, len(whole), max(1, len(whole) // 60))
    for length in lengths:
        (folder / f"cut-{length:06}.jpg").write_bytes(whole[:length])
    answer = ask(bundle, folder)
    assert [Path(line["file"]).name for line in answer.lines if "verdict" in line] == ["whole.jpg"]
    assert sum("error" in line for line in answer.lines) == len(lengths)


def test_an_empty_folder_and_a_path_that_is_not_there_are_told(bundle: Bundle, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    answer = ask(bundle, tmp_path / "empty", tmp_path / "nowhere", pictures / "b.jpg")
    assert answer.code == 2
    assert "empty: no pictures in this folder" in answer.errors and "nowhere: no such file or folder" in answer.errors
    assert [line["verdict"] for line in answer.lines] == ["pass"]


def test_a_bundle_that_cannot_reproduce_its_vectors_judges_nothing(bundle: Bundle, pictures: Path) -> None:
    path = bundle.folder / "model.yaml"
    path.write_text(path.read_text().replace("  mean:\n  - 0.5", "  mean:\n  - 0.4"))
    answer = ask(bundle, pictures)
    assert answer.code == 2 and answer.lines == [] and "golden vector 0: input" in answer.errors


def test_a_bundle_that_is_not_there_is_told(bundle: Bundle, pictures: Path, tmp_path: Path) -> None:
    errors = io.StringIO()
    assert inspect_paths(tmp_path / "none", None, [pictures], io.StringIO(), None, errors) == 2
    assert "no bundle there" in errors.getvalue()


def test_a_json_file_that_cannot_be_written_is_told(bundle: Bundle, pictures: Path, tmp_path: Path) -> None:
    answer = ask(bundle, pictures, json_file=tmp_path / "no" / "folder" / "out.json")
    assert answer.code == 2 and "cannot be written" in answer.errors and len(answer.lines) == 3
