"""jetson-inference's own networks behind our port: what it silently does, and what our network does instead."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.devices import network_jetson_inference
from appliance.devices.network_jetson_inference import BundleFacts, JetsonInferenceNetwork, limits_of, refusals_of
from appliance.ports import EngineError, Frame
from tests.fakes import fake_jetson_utils
from tests.fakes.fake_jetson_inference import Zoo
from tests.fakes.fake_jetson_utils import Crashed, World

SIZE = (8, 6)
LATER = 1 << 62
VENDOR = Path(__file__).parents[1] / "vendor"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Statistics:
    histogram: np.ndarray
    total: int
    laplacian_variance: float
    probe: bytes = b""


def measure(memory: np.ndarray, size: tuple[int, int], pitch: int, pixel: str, roi: Any, /) -> Statistics:
    rows = memory[: pitch * size[1]].reshape(size[1], pitch)[:, : size[0] * 3].reshape(size[1], size[0], 3)
    x, y, wide, high = roi or (0, 0, *size)
    cut = rows[y : y + high, x : x + wide]
    return Statistics(np.bincount(cut.reshape(-1), minlength=256).astype(np.int64), int(cut.sum()), 0.0)


def softmax(raw: np.ndarray) -> np.ndarray:
    high = np.exp(raw - raw.max())
    return (high / high.sum()).astype(np.float32)


def as_it_is(raw: np.ndarray) -> np.ndarray:
    return raw


class Bench:
    """A box with JetPack 6.0 (TensorRT 8.6), a model of two classes, and a frame in memory the GPU reaches."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world, self.folder = World(), folder
        self.zoo = Zoo(self.world)
        self.utils, self.inference = self.world.utils(), self.zoo.inference()
        monkeypatch.setitem(sys.modules, "jetson_utils", self.utils)
        monkeypatch.setitem(sys.modules, "jetson_inference", self.inference)
        (folder / "model.onnx").write_bytes(b"onnx")
        (folder / "labels.txt").write_text("good\nscratch\n")
        self.kept: list[Any] = []

    def facts(self, task: str = "classify", **others: Any) -> BundleFacts:
        mean, std = ((0.5,) * 3, (0.5,) * 3) if task == "detect" else (MEAN, STD)
        outputs = ("scores", "boxes") if task == "detect" else ("output_0",)
        facts = BundleFacts(
            task, self.folder / "model.onnx", self.folder / "labels.txt", ("good", "scratch"), "input_0", outputs, (4, 4), 3,
            mean, std, "stretch", False, True, "8.6.2",
        )  # fmt: skip
        return replace(facts, **others)

    def network(self, task: str, answer: Any, scores_of: Any = as_it_is, **others: Any) -> JetsonInferenceNetwork:
        facts = self.facts(task, **others)
        self.zoo.answers[str(facts.model)] = answer
        return JetsonInferenceNetwork(facts, {"name": "cap", "digest": "sha256:1"}, measure, scores_of)

    def frame(self, image: np.ndarray, pixel: str = "rgb8", mapped: bool = True, padding: int = 0) -> Frame:
        height, width = image.shape[:2]
        rows = np.zeros((height, width * 3 + padding), np.uint8)
        rows[:, : width * 3] = image.reshape(height, -1)
        block = self.world.allocate(rows.size)
        block.view[:] = rows.reshape(-1)
        self.kept.append(block)
        memory = memoryview(block.raw).cast("B")
        address = block.address if mapped else 0
        return Frame(memory, address, width * 3 + padding, (width, height), pixel, 1, 7, 9, lambda: None)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def picture() -> np.ndarray:
    return np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


def judged(network: JetsonInferenceNetwork, frame: Frame, roi: Any = None) -> Any:
    findings = network.wait(network.submit(frame, roi), LATER)
    assert findings is not None
    return findings


# --- findings --------------------------------------------------------------------------------------------


def test_classify_gives_every_class_in_the_order_of_the_labels(bench: Bench) -> None:
    network = bench.network("classify", lambda tensor: [0.003, 0.9])  # the first is under its own threshold of 0.01
    findings = judged(network, bench.frame(picture()))
    assert findings.scores.dtype == np.float32 and findings.scores.tolist() == pytest.approx([0.003, 0.9])
    assert findings.statistics.total == int(picture().sum()) and findings.statistics.histogram.sum() == picture().size
    assert (findings.task, findings.score_map, findings.candidates) == ("classify", None, None)
    assert network.identity["precision"] == "float16" and network.identity["digest"] == "sha256:1"
    assert network.frame_copies == 0


def test_classify_applies_the_bundles_activation_to_raw_outputs_below_zero_too(bench: Bench) -> None:
    network = bench.network("classify", lambda tensor: [-5.0, 1.0], softmax)
    assert judged(network, bench.frame(picture())).scores.tolist() == pytest.approx(softmax(np.array([-5.0, 1.0])).tolist())


@pytest.mark.parametrize("raw", [[1.5, 0.1], [float("nan"), 0.5]])
def test_scores_that_are_none_are_an_error_and_not_a_pass(bench: Bench, raw: list[float]) -> None:
    network = bench.network("classify", lambda tensor: raw)
    with pytest.raises(EngineError, match="outside 0..1"):
        judged(network, bench.frame(picture()))


def test_it_is_fed_the_roi_stretched_and_normalised_as_the_limits_say(bench: Bench) -> None:
    network = bench.network("classify", lambda tensor: [0.5, 0.5])
    judged(network, bench.frame(picture()), (2, 1, 4, 4))
    cut = picture()[1:5, 2:6].astype(np.float64)
    assert bench.zoo.fed is not None
    assert np.abs(bench.zoo.fed - ((cut / 255 - MEAN) / STD).transpose(2, 0, 1)).max() < 1e-5
    assert judged(network, bench.frame(picture()), (2, 1, 4, 4)).statistics.total == int(cut.sum())


def test_detect_gives_boxes_in_network_pixels_of_the_roi(bench: Bench) -> None:
    answer = lambda tensor: ([[0.25, 0.5, 0.75, 1.0], [0, 0, 1, 1]], [[0.0, 0.8], [0.99, 0.01]])  # noqa: E731
    network = bench.network("detect", answer)
    candidates = judged(network, bench.frame(picture())).candidates
    assert candidates.dtype == np.float32 and candidates.tolist() == [pytest.approx([1.0, 2.0, 2.0, 2.0, 0.8, 1.0])]
    assert (bench.zoo.made[0]["scores"], bench.zoo.made[0]["boxes"]) == ("scores", "boxes")


def test_detect_finds_nothing_in_one_fixed_shape(bench: Bench) -> None:
    network = bench.network("detect", lambda tensor: ([], []))
    assert judged(network, bench.frame(picture())).candidates.shape == (0, 6)


def test_segment_gives_the_class_of_each_cell(bench: Bench) -> None:
    scores = np.zeros((2, 4, 4))
    scores[1, 2:, :2] = 1.0
    network = bench.network("segment", lambda tensor: scores)
    findings = judged(network, bench.frame(picture()))
    network.close()
    assert findings.score_map.dtype == np.uint8 and (findings.score_map == scores[1].astype(np.uint8)).all()


def test_a_frame_the_gpu_does_not_reach_or_with_padded_rows_is_copied_and_counted(bench: Bench) -> None:
    network = bench.network("classify", lambda tensor: [0.5, 0.5])
    judged(network, bench.frame(picture(), padding=8))
    padded = bench.zoo.fed
    judged(network, bench.frame(picture(), mapped=False))
    unreached = bench.zoo.fed
    judged(network, bench.frame(picture()))
    assert padded is not None and (padded == bench.zoo.fed).all() and (unreached == bench.zoo.fed).all()
    assert network.frame_copies == 2


def test_nothing_is_allocated_after_the_first_frame_and_no_dict_leaks(bench: Bench) -> None:
    network = bench.network("classify", lambda tensor: [0.5, 0.5])
    frame = bench.frame(picture())
    judged(network, frame, (1, 1, 4, 4))
    before = len(bench.world.kept)
    for _ in range(5):
        judged(network, frame, (1, 1, 4, 4))
    assert len(bench.world.kept) == before
    judged(network, bench.frame(picture(), padding=8))
    assert bench.world.leaked_dicts == 0


def test_another_ticket_and_a_library_that_fails_are_engine_errors(bench: Bench) -> None:
    network = bench.network("classify", lambda tensor: 1 / 0)
    ticket = network.submit(bench.frame(picture()), None)
    with pytest.raises(EngineError, match="not the one that waits"):
        network.wait(ticket + 1, LATER)
    with pytest.raises(EngineError, match="jetson-inference failed on model.onnx"):
        network.wait(ticket, LATER)
    network.close()


# --- what it does without a word -------------------------------------------------------------------------


def test_trap_it_draws_into_the_frame_unless_told_not_to(bench: Bench) -> None:
    answer = lambda tensor: ([[0, 0, 1, 1]], [[0.0, 0.9]])  # noqa: E731
    network = bench.network("detect", answer)
    frame = bench.frame(picture())
    judged(network, frame)
    assert (bench.kept[-1].view == picture().reshape(-1)).all()
    net = bench.inference.detectNet(model=str(bench.folder / "model.onnx"), labels=str(bench.folder / "labels.txt"))
    net.Detect(bench.utils.cudaImage(*SIZE, ptr=frame.address))
    assert (bench.kept[-1].view == 255).all()  # the trap


def test_trap_grey_frames_find_nothing_or_the_frame_before_and_are_refused(bench: Bench) -> None:
    answer = lambda tensor: ([[0, 0, 1, 1]], [[0.0, 0.9]])  # noqa: E731
    network = bench.network("detect", answer)
    net = bench.inference.detectNet(model=str(bench.folder / "model.onnx"), labels=str(bench.folder / "labels.txt"))
    assert net.Detect(bench.utils.cudaImage(*SIZE, format="gray8")) == []  # the trap: a defect nobody sees
    with pytest.raises(EngineError, match="takes rgb8 and the frame is mono8"):
        network.submit(bench.frame(picture(), "mono8"), None)


def test_trap_a_list_of_arguments_wins_over_the_keywords_and_names_are_downloaded(bench: Bench, tmp_path: Path) -> None:
    model, labels = str(tmp_path / "model.onnx"), str(tmp_path / "labels.txt")
    for values in ({"argv": ["inspectd"], "model": model, "labels": labels}, {"network": "googlenet"}):
        with pytest.raises(Exception, match="failed to load network"):
            bench.inference.imageNet(**values)
    assert bench.zoo.downloaded == ["googlenet", "googlenet"]
    with pytest.raises(EngineError, match="have to lie on the disk"):
        bench.network("classify", None, model=tmp_path / "resnet-18.onnx")
    assert len(bench.zoo.downloaded) == 2
    bench.network("classify", None)
    assert bench.zoo.made[-1] == {"model": model, "labels": labels, "input": "input_0", "output": "output_0"}


def test_trap_a_file_of_another_ending_is_fed_bgr_less_a_mean(bench: Bench, tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"engine")
    bench.zoo.answers[str(engine)] = lambda tensor: [0.5, 0.5]
    net = bench.inference.imageNet(model=str(engine), labels=str(tmp_path / "labels.txt"))
    net.Classify(bench.utils.cudaImage(*SIZE, ptr=bench.frame(picture()).address))
    assert bench.zoo.fed is not None and bench.zoo.fed.min() < -90  # the trap
    with pytest.raises(EngineError, match="does not end in .onnx"):
        bench.network("classify", None, model=engine)


def test_trap_on_tensorrt_10_the_published_one_ends_the_process(bench: Bench) -> None:
    bench.zoo.tensorrt = "10.3.0"
    with pytest.raises(Crashed):
        bench.inference.imageNet(model=str(bench.folder / "model.onnx"), labels=str(bench.folder / "labels.txt"))
    assert any("#1913" in one for one in limits_of(bench.facts(tensorrt="10.3.0")))
    bench.zoo.patched = True
    assert not any("#1913" in one for one in limits_of(bench.facts(tensorrt="10.3.0", patched=True)))
    bench.network("classify", None, tensorrt="10.3.0", patched=True)


def test_labels_that_do_not_match_are_refused(bench: Bench) -> None:
    (bench.folder / "labels.txt").write_text("good\nscratch\ndent\n")
    with pytest.raises(EngineError, match="has 3 classes, model.yaml names 2"):
        bench.network("classify", None)


def test_an_unmapped_stranger_or_absent_library_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jetson_utils", fake_jetson_utils.strangers())
    with pytest.raises(EngineError, match="stranger's"):
        bench.network("classify", None)
    monkeypatch.setitem(sys.modules, "jetson_utils", bench.utils)
    monkeypatch.setitem(sys.modules, "jetson_inference", None)
    with pytest.raises(EngineError, match="jetson-inference is not there"):
        bench.network("classify", None)


# --- the limits, said at check ---------------------------------------------------------------------------


def test_a_bundle_it_can_run_is_not_refused(bench: Bench) -> None:
    assert [refusals_of(bench.facts(task)) for task in ("classify", "detect", "segment")] == [[], [], []]


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"task": "anomaly"}, "no network for anomaly"),
        ({"quantized": True}, "Q/DQ"),
        ({"model": Path("/b/model.engine")}, "does not end in .onnx"),
        ({"labels": None}, "labels file is needed"),
        ({"channels": 1, "mean": (0.5,), "std": (0.5,)}, "takes 1 channel"),
        ({"mean": (0.5, 0.5, 0.5)}, "always takes mean"),
        ({"std": (0.5, 0.5, 0.5)}, "always takes mean"),
        ({"fit": "letterbox"}, "letterbox is not to be had"),
        ({"outputs": ("a", "b")}, "2 outputs"),
        ({"folder_writable": False}, "not writable"),
        ({"tensorrt": "11.4.1"}, "TensorRT 11"),
    ],
)
def test_what_it_cannot_do_is_refused_in_words(bench: Bench, others: dict[str, Any], words: str) -> None:
    found = refusals_of(bench.facts(**others))
    assert len(found) == 1 and words in found[0]
    assert set(found) <= set(limits_of(bench.facts(**others)))
    with pytest.raises(EngineError, match=".*"):
        JetsonInferenceNetwork(bench.facts(**others), {}, measure, as_it_is)


def test_detect_and_segment_tell_what_holds_of_any_bundle(bench: Bench) -> None:
    assert any("class 0 (good) is taken for background" in one for one in limits_of(bench.facts("detect")))
    assert any("no score" in one for one in limits_of(bench.facts("segment")))
    assert any("worked out by the CPU" in one for one in limits_of(bench.facts()))


# --- the recorded names ----------------------------------------------------------------------------------


def recorded(library: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads((VENDOR / f"{library}.json").read_text())}


def _asked_of(*variables: str) -> set[str]:
    tree = ast.parse(inspect.getsource(network_jetson_inference))
    return {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
        and ((isinstance(node.value, ast.Name) and node.value.id in variables)
             or (isinstance(node.value, ast.Attribute) and node.value.attr in variables))
    }  # fmt: skip


def test_every_name_the_network_asks_for_is_recorded() -> None:
    utils, inference = set(recorded("jetson_utils")), set(recorded("jetson_inference"))
    assert _asked_of("_utils", "jetson_utils") <= utils and _asked_of("_inference") <= inference
    methods = {name.split(".", 1)[1] for name in inference if "." in name}
    assert _asked_of("net", "_net") <= methods
    assert _asked_of("one") <= methods | {name.split(".")[-1] for name in inference}
    assert {f"cudaImage.{one}" for one in _asked_of("image", "mask")} <= utils


def test_the_stand_in_has_the_recorded_names_and_signatures(bench: Bench) -> None:
    names = recorded("jetson_inference")
    for name, one in names.items():
        target: Any = bench.inference
        instance = {"ClassID", "Confidence", "Left", "Top", "Right", "Bottom"} & {name.split(".")[-1]}
        for part in name.split(".")[: -1 if instance else None]:
            target = getattr(target, part)
        assert not instance or hasattr(target(), name.split(".")[-1])
        if one["signature"] is not None:
            parameters = [
                value.replace(annotation=inspect.Parameter.empty)
                for key, value in inspect.signature(target).parameters.items() if key != "self"
            ]  # fmt: skip
            assert str(inspect.Signature(parameters)) == one["signature"], name
    public = {name for name in vars(bench.inference) if not name.startswith("_")}
    inside = {
        f"{one}.{name}" for one in ("imageNet", "detectNet", "segNet")
        for name in vars(getattr(bench.inference, one)) if not name.startswith("_")
    }  # fmt: skip
    assert public | inside == {name for name in names if not name.startswith("detectNet.Detection.")}
