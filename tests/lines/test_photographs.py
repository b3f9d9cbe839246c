"""Real photographs: judged offline, run from a folder, sent down the belt. Needs APPLIANCE_DATA, else one clear skip."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from appliance.config import load
from appliance.report.verify import verify

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def castings(photographs: Path) -> tuple[list[Path], list[Path]]:
    listed = (photographs / "labels.csv").read_text(encoding="utf-8").splitlines()
    rows = [line.split(",") for line in listed if line.startswith("casting,") and ",val," in line]
    by_label: dict[str, list[Path]] = {"0": [], "1": []}
    for row in rows:
        by_label[row[3]].append(photographs / row[1])
    return by_label["0"], by_label["1"]


def test_every_photograph_gets_one_verdict_line(castings, appliance) -> None:
    good, bad = castings
    some = [str(path) for path in (*good[:20], *bad[:20])]
    ended = appliance("inspect", "-m", "models/cap-28mm", *some)
    rows = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert [row["file"] for row in rows if "verdict" in row] == some


def test_photographs_down_the_belt_close_the_books(castings, appliance, tmp_path) -> None:
    folders = []
    for name, paths in zip(("good", "bad"), castings):
        folder = tmp_path / name
        folder.mkdir()
        for path in paths[:30]:
            (folder / path.name).symlink_to(path)
        folders.append(folder)
    out = tmp_path / "figures.json"
    words = ("--good", str(folders[0]), "--bad", str(folders[1]), "--parts", "120", "--json", str(out))
    appliance("rehearse", "--fast", *words)
    figures = json.loads(out.read_text())
    assert figures["books_closed"] and figures["escapes_by"]["gate"] == 0 and figures["parts"] == 120


def folder_station(folder: Path, images: Path) -> Path:
    document = yaml.safe_load((PROJECT / "appliance/twin/station.yaml").read_text())
    document["cameras"]["top"] = {"source": f"folder://{images}?fps=20", "size": [320, 320]}
    document["trigger"] = {"input": "frame", "min_pitch_mm": 20, "max_part_mm": 40}
    document["recipes"]["cap-28mm"]["inspect"][0].pop("roi")
    document["recipes"]["cap-28mm"]["image_health"] = {"frozen": False}
    del document["mqtt"], document["outputs"]
    path = folder / "station.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_station_runs_on_a_folder_and_stops_clean() -> None:
    """No real photographs needed: what matters is that every frame of the folder becomes a part with a record."""
    folder = Path(tempfile.mkdtemp(prefix="run-"))
    images = folder / "images"
    images.mkdir()
    noise = np.random.default_rng(1)
    for index in range(6):
        cv2.imwrite(str(images / f"{index}.png"), noise.integers(0, 255, (320, 320), dtype=np.uint8))
    station = folder_station(folder, images)
    assert load(station).simulated
    command = [sys.executable, "-m", "appliance", "run", "-c", str(station), "--run-dir", str(folder / "r")]
    process = subprocess.Popen([*command, "--data-dir", str(folder / "d")], cwd=PROJECT, env={**os.environ})
    ledger = folder / "d" / "ledger.sqlite"
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(9)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    finally:
        process.kill()
    whole, told = verify(ledger)
    assert whole, told
    entries = int(told.split(": ")[1].split()[0])
    assert entries > 60, told
