"""What a box has no jetson-utils for is said on the box before anybody waits for a camera that cannot open."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config import load
from appliance.wiring.jetpack import not_there
from appliance.wiring.station import bundle_remarks

SHIPPED = Path(__file__).resolve().parents[2] / "appliance/twin/station.yaml"
AUTO = "\n    exposure_us: auto\n    trigger: free-run"
RELEASES = {"39": "# R39 (release), REVISION: 2.1, GCID: 1\n", "36": "# R36 (release), REVISION: 4.3, GCID: 1\n"}


def station_with(folder: Path, source: str) -> Path:
    file = folder / "station.yaml"
    text = SHIPPED.read_text().replace("source: twin://top", f"source: {source}{AUTO}")
    file.write_text(text.replace("pixel: mono8", "pixel: auto"))
    return file


def box(folder: Path, release: str) -> Path:
    (folder / "etc").mkdir()
    (folder / "etc/nv_tegra_release").write_text(RELEASES[release])
    return folder


@pytest.mark.parametrize(("source", "instead"), [("csi://0", "v4l2:// node of the same sensor"), ("rtsp://camera/1", "gige://")])
def test_on_jetpack_7_such_a_camera_is_told_with_what_to_take_instead(tmp_path: Path, source: str, instead: str) -> None:
    station = load(station_with(tmp_path, source), built_only=False)
    (told,) = bundle_remarks(station, box(tmp_path, "39"))
    assert told.startswith("warning: cameras.top.source: ") and "JetPack 7 (L4T 39.2.1)" in told and instead in told


@pytest.mark.parametrize("source", ["v4l2:///dev/video0", "gige://SERIAL"])
def test_other_cameras_need_nothing_that_jetpack_7_lacks(tmp_path: Path, source: str) -> None:
    assert bundle_remarks(load(station_with(tmp_path, source), built_only=False), box(tmp_path, "39")) == []


def test_a_laptop_does_not_know(tmp_path: Path) -> None:
    assert bundle_remarks(load(station_with(tmp_path, "csi://0"), built_only=False), tmp_path) == []


def test_on_jetpack_6_it_is_told_with_what_builds_it_unless_it_is_there(tmp_path: Path) -> None:
    station = load(station_with(tmp_path, "csi://0"), built_only=False)
    assert not_there(station, "36.4.7", ["cap-28mm"], installed=lambda _module: True) == []
    camera, bundle = not_there(station, "36.4.7", ["cap-28mm"], installed=lambda _module: False)
    assert camera.startswith("cameras.top.source: csi:// needs jetson-utils") and "v4l2://" in camera
    assert bundle.startswith("bundle cap-28mm runs on jetson-inference")
    assert "--with-jetson-utils" in camera and "--with-jetson-utils" in bundle
    (said,) = bundle_remarks(station, box(tmp_path, "36"))
    assert said == f"warning: {camera.replace('36.4.7', '36.4.3')}"


def test_a_bundle_on_jetson_inference_is_told_too() -> None:
    (told,) = not_there(load(SHIPPED), "39.2.0", ["cap-28mm"], installed=lambda _module: False)
    assert told.startswith("bundle cap-28mm runs on jetson-inference, which JetPack 7 (L4T 39.2.0) does not have; make it")


def test_whoever_built_it_there_all_the_same_is_not_told(tmp_path: Path) -> None:
    station = load(station_with(tmp_path, "csi://0"), built_only=False)
    assert not_there(station, "39.2.1", ["cap-28mm"], installed=lambda _module: True) == []
    only_utils = not_there(station, "39.2.1", ["cap-28mm"], installed=lambda module: module == "jetson_utils_python")
    assert len(only_utils) == 1 and "bundle cap-28mm" in only_utils[0]
