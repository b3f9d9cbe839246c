"""The CPU bench tells what it promises; how good the figures are is no test's business."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from appliance.model.bundle import load_bundle
from appliance.model.graph import float_model, lint
from tests.bench.bench_cpu import (
    BARE,
    LEFT_OUT_AT_MOST,
    ONNXRUNTIME,
    OPENVINO,
    OURS,
    OURS_ONNXRUNTIME,
    SCRIPT,
    SHIPPED,
    YARDSTICK,
    Case,
    Round,
    Slice,
    bounds,
    clean,
    judged,
    one_round,
    row,
)  # fmt: skip
from tests.bench.mobile_net import mobile_net_bundle, pictures
from tests.bench.naive_script import NaiveScript

ROOT = Path(__file__).resolve().parents[2]
MS = 1_000_000
ROUNDS = 3
BASE = {OURS: 2.0, BARE: 1.0, YARDSTICK: 0.3, SCRIPT: 3.1}


def test_a_short_run_tells_every_case_in_table_and_json(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.bench.bench_cpu", "--rounds", str(ROUNDS), "--json", str(file)]
    bench = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        printed, _ = bench.communicate(timeout=100)
    finally:
        if bench.poll() is None:
            os.killpg(bench.pid, signal.SIGKILL)
            bench.wait()
    result = json.loads(file.read_text())
    assert bench.returncode == {True: 0, False: 1, None: 3}[result["passed"]]
    assert [one["case"] for one in result["cases"]] == [
        "cap-28mm, bgr8", "cap-28mm, mono8", "mobile-net, bgr8", "mobile-net, mono8",
    ]  # fmt: skip
    for case in result["cases"]:
        assert case["case"] in printed and case["why"] in printed and bool(case["left"]) == ("mobile" in case["case"])
        names = {one["what"] for one in case["rows"]}
        assert not case["rows"] or {OURS, BARE, YARDSTICK, SCRIPT, OURS_ONNXRUNTIME, ONNXRUNTIME} <= names


def test_a_folder_without_openvino_is_a_wrong_call(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.bench_cpu", "--openvino", str(tmp_path)]
    bench = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert bench.returncode == 2 and "no openvino in" in bench.stderr


@pytest.mark.parametrize(
    ("changed", "engine", "missed"),
    [
        ({}, "onnxruntime-1/cpu", []),
        ({OURS: 2.3}, "onnxruntime-1/cpu", ["overhead in yardsticks", "script / frame to verdict"]),
        ({SCRIPT: 2.9}, "onnxruntime-1/cpu", ["script / frame to verdict"]),
        ({OPENVINO: 0.9}, "onnxruntime-1/cpu", ["OpenVINO / engine"]),
        ({OPENVINO: 1.1}, "onnxruntime-1/cpu", []),
        ({OPENVINO: 0.9}, "openvino-1/cpu", []),
    ],
)
def test_each_bound_is_judged(changed: dict[str, float], engine: str, missed: list[str]) -> None:
    found = bounds({**BASE, **changed}, engine)
    assert [name for name, one in found.items() if not one["kept"]] == missed


def a_case() -> Case:
    return Case("a case", "onnxruntime-1/cpu", "why", (), lambda number: None, {name: lambda: None for name in BASE}, {})


@pytest.mark.parametrize(("stolen", "passed"), [(0, True), (1, True), (2, None)])
def test_seconds_with_steal_are_left_out_and_too_many_are_no_judgement(stolen: int, passed: bool | None) -> None:
    took = {name: round(ms * MS) for name, ms in BASE.items()}
    slow = {name: 100 * ns for name, ns in took.items()}
    rounds = [Round(10 * at, slow if at < stolen else took) for at in range(4)]
    slices = [Slice(10 * at, 10 * at + 10, 3 if at < stolen else 0) for at in range(4)]
    assert len(clean(rounds, slices)) == 4 - stolen
    result = judged(a_case(), rounds, slices)
    assert result["passed"] is passed and result["slices"]["left_out"] == stolen
    assert (stolen / 4 > LEFT_OUT_AT_MOST) == (passed is None)
    assert {one["what"]: one["p50"] for one in result["rows"]} == BASE


def test_a_run_stolen_whole_is_no_judgement() -> None:
    assert judged(a_case(), [Round(5, {})], [Slice(0, 10, 1)])["passed"] is None


def test_figures_are_nearest_ranks() -> None:
    whole = row("all", [number * MS for number in range(1, 1001)])
    assert (whole.n, whole.p50, whole.p99, whole.least) == (1000, 500.0, 990.0, 1.0)


def test_each_round_begins_with_another_contender_and_each_finds_the_frame_written_anew() -> None:
    seen: list[str] = []
    turns = {name: (lambda name=name: seen.append(name)) for name in "abc"}
    after = {"b": ("b's end", lambda: seen.append("end"))}
    case = Case("case", "engine", "why", (), lambda number: seen.append(f"frame {number}"), turns, after)
    assert set(one_round(case, 0).took_ns) == set(one_round(case, 1).took_ns) == {"a", "b", "c", "b's end"}
    assert seen[:7] == ["frame 0", "a", "frame 0", "b", "end", "frame 0", "c"]
    assert seen[7:] == ["frame 1", "b", "end", "frame 1", "c", "frame 1", "a"]


def test_the_networks_are_what_they_are_said_to_be(tmp_path: Path) -> None:
    bundle = mobile_net_bundle(tmp_path)
    model = onnx.load(str(bundle.onnx))
    assert lint(model) == []
    kinds = [node.op_type for node in float_model(model).graph.node]
    assert kinds.count("Conv") == 52 and kinds.count("Add") == 10 and kinds.count("Clip") == 35
    weights = sum(int(np.prod(one.dims)) for one in float_model(model).graph.initializer)
    assert 2_200_000 < weights < 2_300_000  # 2.2 million without the thousand classes of ImageNet
    dequantised = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    skips = [[name in dequantised for name in node.input] for node in model.graph.node if node.op_type == "Add"]
    assert skips == [[True, False]] * 10
    made = (tmp_path / bundle.folder.name / "model.onnx").stat().st_mtime_ns
    assert (mobile_net_bundle(tmp_path).folder / "model.onnx").stat().st_mtime_ns == made


def test_the_script_finds_what_the_product_finds(tmp_path: Path) -> None:
    """On golden frames, both within the tolerance of INT8: a script that judged something else would be no measure."""
    import cv2

    from appliance.model.golden import load_golden

    bundle = load_bundle(SHIPPED)
    golden = load_golden(bundle)
    onnx.save(float_model(onnx.load(str(bundle.onnx))), str(tmp_path / "float.onnx"))
    script = NaiveScript(str(tmp_path / "float.onnx"), bundle.input.size, 1, bundle.thresholds.fail_at)
    verdicts = [script.verdict(cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR))[0] for frame in golden.frames]
    wanted = ["fail" if score >= bundle.thresholds.fail_at else "pass" for score in golden.scores]
    assert sum(one == two for one, two in zip(verdicts, wanted)) >= len(wanted) - 1
    assert len((ROOT / "tests/bench/naive_script.py").read_text().splitlines()) <= 60


def test_frames_differ_so_that_none_is_taken_for_frozen() -> None:
    shots = list(pictures(16, 1))
    assert shots[0].shape == (1024, 1280) and len({one.tobytes() for one in shots}) == 16
