"""TensorRT engines on the stand-in of 10.3, 10.16 and 11.4: what is built and run, and every way it can go wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper

from appliance.devices import engine_tensorrt
from appliance.devices.cuda import Cuda
from appliance.devices.engine_tensorrt import BuildOptions, Built, Layers, TensorRtEngine, build, flags_for, int8_layers
from appliance.model.graph import float_model
from appliance.model.half_graph import half
from appliance.ports import EngineError
from tests.fakes import fake_pycuda, fake_tensorrt, fake_tensorrt_graph
from tests.fakes.fake_libcuda import Gpu
from tests.fakes.fake_tensorrt import VERSIONS, ProcessCrashed, hooks, installed
from tests.fakes.fake_tensorrt_gpu import on_gpu
from tests.model import tiny

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "models" / "cap-28mm"
WORKSPACE_BYTES = 256 << 20
CAPABILITY = (8, 7)
STREAM = 0x5A0
MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "shipped": lambda: onnx.load(SHIPPED / "model.onnx"),
    "mono": tiny.classifier,
    "colour": lambda: tiny.classifier(3),
    "anomaly": tiny.anomaly,
}


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest) -> Iterator[Any]:
    with installed(request.param) as module:
        yield module


def driver() -> object:
    """As devices/cuda.driver where one answers."""
    return "CUDA 12.6"


def graph_of(model: onnx.ModelProto, precision: str) -> bytes:
    """What wiring hands in for a precision."""
    if precision == "int8":
        return model.SerializeToString()
    whole = float_model(model)
    typed = engine_tensorrt.strongly_typed(engine_tensorrt.version())
    return (half(whole) if precision == "float16" and typed else whole).SerializeToString()


def built(model: onnx.ModelProto, precision: Any = "int8", **changes: Any) -> Built:
    given = {"precision": precision, "workspace_bytes": WORKSPACE_BYTES, **changes}
    return build(graph_of(model, precision), BuildOptions(**given), lambda phase, share: None, driver)


def load(plan: bytes, probe: Callable[[], object] = driver) -> TensorRtEngine:
    return TensorRtEngine(plan, "the engine of tiny", CAPABILITY, probe)


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Float32 zeros whose address TensorRT takes."""
    nbytes = int(np.prod(shape)) * 4
    room = np.zeros(nbytes + 256, np.uint8)
    begin = -room.ctypes.data % 256
    return room[begin : begin + nbytes].view(np.float32).reshape(shape)


def bound(engine: TensorRtEngine) -> dict[str, np.ndarray]:
    arrays = {name: aligned(shape) for name, shape in {**engine.inputs, **engine.outputs}.items()}
    for name, array in arrays.items():
        engine.bind(name, array.ctypes.data)
    return arrays


def reference(onnx_bytes: bytes, given: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(onnx_bytes, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: given})[0]


def plainly(trt: Any, onnx_bytes: bytes, flags: int = 0, named: tuple[str, ...] = ()) -> tuple[Any, str]:
    """A build by hand, past every check of ours: the plan or None, and what was logged."""
    log = Lines(trt)
    builder = trt.Builder(log.logger)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log.logger)
    assert parser.parse(onnx_bytes), parser.get_error(0).desc()
    config = builder.create_builder_config()
    for name in named:
        config.set_flag(getattr(trt.BuilderFlag, name))
    return builder.build_serialized_network(network, config), log.text()


class Lines:
    """A logger that keeps what it is told; ``logger`` must be kept as long as TensorRT is used."""

    def __init__(self, trt: Any) -> None:
        lines: list[str] = []

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                lines.append(msg)

        self.logger, self._lines = Logger(), lines

    def text(self) -> str:
        return "; ".join(self._lines)


# --- built and run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["int8", "float16", "float32"])
@pytest.mark.parametrize("name", MODELS)
def test_an_engine_answers_at_the_addresses_it_was_given(trt: Any, name: str, precision: Any) -> None:
    model = MODELS[name]()
    made = built(model, precision)
    assert made.flags == flags_for(engine_tensorrt.version(), precision)
    engine = load(made.plan)
    assert engine.version == f"tensorrt-{'.'.join(trt.__version__.split('.')[:3])}/sm87"
    assert engine.device_memory_bytes > 0
    arrays = bound(engine)
    (given,), (answer,) = ([arrays[one] for one in side] for side in (engine.inputs, engine.outputs))
    for seed in (1, 2):
        given[...] = np.random.default_rng(seed).uniform(-0.5, 0.5, given.shape)
        engine.enqueue(STREAM)
        np.testing.assert_allclose(answer, reference(graph_of(model, precision), given), rtol=1e-4, atol=1e-4)
    engine.close()


def test_the_float16_engine_is_near_the_float_model(trt: Any) -> None:
    model = MODELS["shipped"]()
    engine = load(built(model, "float16").plan)
    arrays = bound(engine)
    golden = np.load(SHIPPED / "golden.npz")
    for given, expected in zip(golden["input"], golden["output"]):
        arrays["image"][0] = given
        engine.enqueue(STREAM)
        assert np.abs(arrays["scores"][0] - expected).max() < 0.05  # as tests/model/test_half_graph.py


def test_int8_is_seen_in_the_layers_of_either_schema(trt: Any) -> None:
    weighted = sum(node.op_type in fake_tensorrt_graph.WEIGHTED for node in MODELS["shipped"]().graph.node)
    found = load(built(MODELS["shipped"]()).plan).layers()
    assert (found.int8, found.reformats) == (weighted, 1) and found.working > weighted
    assert load(built(MODELS["shipped"](), "float16").plan).layers().int8 == 0


@pytest.mark.parametrize(
    ("full", "precision", "flags"),
    [
        ("10.0.1.6", "int8", ("weakly_typed", "INT8", "FP16", "TF32", "DETAILED")),
        ("10.3.0.30", "int8", ("weakly_typed", "INT8", "FP16", "TF32", "DETAILED")),
        ("10.3.0.30", "float16", ("weakly_typed", "FP16", "TF32", "DETAILED")),
        ("10.11.0.33", "float32", ("weakly_typed", "TF32", "DETAILED")),
        ("10.12.0.36", "float16", ("STRONGLY_TYPED", "TF32", "DETAILED")),
        ("10.16.2.10", "int8", ("STRONGLY_TYPED", "TF32", "DETAILED")),
        ("11.0.0.1", "int8", ("strongly_typed", "TF32", "DETAILED")),
        ("11.4.0.106", "float16", ("strongly_typed", "TF32", "DETAILED")),
    ],
)
def test_flags_by_version(full: str, precision: Any, flags: tuple[str, ...]) -> None:
    assert flags_for(full, precision) == flags
    assert engine_tensorrt.strongly_typed(full) == (flags[0] != "weakly_typed")


@pytest.mark.parametrize(("full", "words"), [("8.6.2.3", "JetPack 6.1 brings 10.3"), ("none", "which is no version")])
def test_a_version_that_is_not_run_on_is_refused(full: str, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        flags_for(full, "int8")


# --- which TensorRT -----------------------------------------------------------------------------------


def library(*parts: int) -> types.SimpleNamespace:
    names = ("Major", "Minor", "Patch", "Build")
    return types.SimpleNamespace(**{f"getInferLib{name}Version": lambda part=part: part for name, part in zip(names, parts)})


def test_the_build_number_comes_from_the_library() -> None:
    for version, parts in (("10.3.0", (10, 3, 0, 30)), ("11.4", (11, 4, 0, 106))):
        libraries = {f"libnvinfer.so.{parts[0]}": library(*parts)}
        with installed(version):
            assert engine_tensorrt.version(libraries.__getitem__) == ".".join(str(part) for part in parts)


def test_a_library_that_does_not_tell_leaves_what_the_bindings_say() -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    with installed("10.3.0"):
        assert engine_tensorrt.version(lambda name: library(10, 3)) == "10.3.0"
        assert engine_tensorrt.version(missing) == "10.3.0"


@pytest.mark.parametrize("stranger", [None, types.ModuleType("tensorrt")])
def test_without_tensorrt_the_words_say_what_to_install(monkeypatch: pytest.MonkeyPatch, stranger: Any) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", stranger)  # None: the import fails
    wanted = "python3-libnvinfer .* --system-site-packages; never the index's"
    for call in (engine_tensorrt.version, lambda: load(b"plan"), lambda: built(tiny.classifier())):
        with pytest.raises(EngineError, match=wanted):
            call()


def test_the_file_is_imported_without_tensorrt() -> None:
    script = "import sys, appliance.devices.engine_tensorrt; assert 'tensorrt' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


# --- progress -----------------------------------------------------------------------------------------


def test_progress_rises_from_0_to_1_and_never_falls(trt: Any) -> None:
    told: list[tuple[str, float]] = []
    given = graph_of(MODELS["shipped"](), "int8")
    build(given, BuildOptions("int8", WORKSPACE_BYTES), lambda phase, share: told.append((phase, share)), driver)
    shares = [share for _, share in told]
    assert shares == sorted(shares) and (shares[0], shares[-1]) == (0.0, 1.0)
    assert shares.count(1.0) == 1 and len({round(share, 2) for share in shares}) > 20
    assert {"Building Engine", "Timing graph nodes", "built"} == {phase for phase, _ in told}


class Stopped(Exception):
    pass


@pytest.mark.parametrize("why", [Stopped("enough"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_what_progress_raises_ends_the_build_and_comes_out(trt: Any, why: BaseException, after: int) -> None:
    told: list[float] = []

    def progress(phase: str, share: float) -> None:
        told.append(share)
        if len(told) > after:
            raise why

    with pytest.raises(type(why)) as raised:
        build(graph_of(tiny.classifier(), "int8"), BuildOptions("int8", WORKSPACE_BYTES), progress, driver)
    assert raised.value is why and len(told) == after + 1
    assert "cancelled by the progress monitor" in engine_tensorrt._errors(trt), "TensorRT worked on"


def test_phases_that_come_again_or_in_other_orders_do_not_fall() -> None:
    told: list[float] = []
    share = engine_tensorrt._Share(lambda phase, part: told.append(part))
    share.begin("a", None, 4)
    share.step("a", 2)
    share.begin("inner", "a", 10)
    share.step("inner", 4)
    share.end("inner")
    share.begin("a", None, 4)  # the same phase again
    share.step("unknown", 3)
    share.begin("empty", "a", 0)
    share.end("a")
    share.step("empty", 0)
    assert told == sorted(told) and told[2] == 0.75 and 0.75 < told[3] < 1.0 and max(told) < 1.0


def test_an_exception_out_of_a_monitor_ends_the_process(trt: Any) -> None:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            raise Stopped

    log = Lines(trt)
    builder = trt.Builder(log.logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log.logger)
    assert parser.parse(float_model(tiny.classifier()).SerializeToString())
    config = builder.create_builder_config()
    config.progress_monitor = Monitor()
    with pytest.raises(ProcessCrashed, match="noexcept"):
        builder.build_serialized_network(network, config)


# --- the graph (trap 17) ------------------------------------------------------------------------------


def shifted(model: onnx.ModelProto, kind: Any, value: int) -> onnx.ModelProto:
    """Every zero point of the input's pair another one."""
    for one in model.graph.initializer:
        if one.name == "image_8_zero":
            one.CopyFrom(tiny.tensor(one.name, np.array(value, kind)))
    return model


def int32_bias() -> onnx.ModelProto:
    model = tiny.classifier()
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.input[2] = "bias_8"
    more = helper.make_node("DequantizeLinear", ["bias_int32", "bias_scale"], ["bias_8"], name="bias_dq")
    model.graph.node.insert(0, more)
    model.graph.initializer.extend(
        [tiny.tensor("bias_int32", np.zeros(2, np.int32)), tiny.tensor("bias_scale", np.array(0.01, np.float32))]
    )
    return model


def qoperator() -> onnx.ModelProto:
    scale, zero = tiny.tensor("s", np.array(0.1, np.float32)), tiny.tensor("z", np.array(0, np.int8))
    weights = tiny.tensor("w", np.ones((1, 1, 1, 1), np.int8))
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "s", "z"], ["q"], name="q"),
        helper.make_node("QLinearConv", ["q", "s", "z", "w", "s", "z", "s", "z"], ["r"], name="conv"),
        helper.make_node("DequantizeLinear", ["r", "s", "z"], ["map"], name="dq"),
    ]
    return tiny.model(nodes, [scale, zero, weights], 1, {"map": [1, 1, tiny.SIDE, tiny.SIDE]})


def mixed_types() -> onnx.ModelProto:
    """Weights in float16 behind a float32 input."""
    model = tiny.anomaly()
    next(one for one in model.graph.initializer if one.name == "one").CopyFrom(
        tiny.tensor("one", np.ones((1, 1, 1, 1), np.float16))
    )
    return model


def dynamic() -> onnx.ModelProto:
    model = tiny.classifier()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: shifted(tiny.classifier(), np.int8, 3), "image_8_q: Non-zero zero point"),
        (lambda: shifted(tiny.classifier(), np.uint8, 128), "image_8_q: UINT8 zero points"),
        (int32_bias, "DequantizeLinear bias_dq: DequantizeLinear of INT32"),
        (qoperator, "QLinearConv conv: No importer registered for op: QLinearConv"),
        (mixed_types, "Failed to parse ONNX model"),
        (dynamic, r"image is \[-1, 1, 32, 32\]; shapes are static"),
    ],
)
def test_a_graph_tensorrt_does_not_take_is_named_by_its_node(trt: Any, make: Any, words: str) -> None:
    with pytest.raises(EngineError, match=words) as raised:
        built(make())
    assert "make the bundle anew" in str(raised.value)


def test_bytes_that_are_no_model_are_refused(trt: Any) -> None:
    with pytest.raises(EngineError, match="Failed to parse"):
        build(b"no model", BuildOptions("int8", WORKSPACE_BYTES), lambda phase, share: None, driver)


@pytest.mark.parametrize(
    ("given", "precision", "words"),
    [
        ("float32", "int8", "it has no Q/DQ pairs; hand in the bundle's file"),
        ("int8", "float16", "it has Q/DQ pairs; hand in the float model"),
        ("int8", "float32", "it has Q/DQ pairs; hand in the float model"),
        ("half", "float32", "parts of it are float16"),
    ],
)
def test_a_graph_of_another_precision_is_refused(trt: Any, given: str, precision: Any, words: str) -> None:
    model = tiny.classifier()
    graphs = {"int8": model, "float32": float_model(model), "half": half(float_model(model))}
    with pytest.raises(EngineError, match=words):
        options = BuildOptions(precision, WORKSPACE_BYTES)
        build(graphs[given].SerializeToString(), options, lambda phase, share: None, driver)


@pytest.mark.parametrize("version", ["10.16", "11.4"])
def test_with_strong_typing_a_float32_graph_does_not_become_an_engine_called_float16(version: str) -> None:
    whole = float_model(tiny.classifier()).SerializeToString()
    with installed(version) as trt:
        typed = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        plan, _ = plainly(trt, whole, 1 << int(typed))
        assert plan is not None, "TensorRT itself builds it without a word"
        with pytest.raises(EngineError, match="nothing in it is float16; hand in the float16 graph"):
            build(whole, BuildOptions("float16", WORKSPACE_BYTES), lambda phase, share: None, driver)


def test_a_workspace_that_is_not_taken_or_too_small_is_told(trt: Any) -> None:
    with pytest.raises(EngineError, match="takes no workspace of 0 bytes: .*invalid pool size"):
        built(tiny.classifier(), workspace_bytes=0)
    with pytest.raises(EngineError, match="built no int8 engine: .*Could not find any implementation for node"):
        built(tiny.classifier(), workspace_bytes=1)


# --- typing and flags by version (trap 15) ------------------------------------------------------------


def test_the_int8_flag_forgotten_on_10_3_builds_nothing() -> None:
    with installed("10.3.0") as trt:
        assert plainly(trt, tiny.classifier().SerializeToString(), 0, ("INT8",))[0] is not None
        plan, said = plainly(trt, tiny.classifier().SerializeToString(), 0, ("FP16",))
        assert plan is None and "kINT8 is not set" in said


def test_precision_flags_beside_strong_typing_build_nothing() -> None:
    with installed("10.16") as trt:
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        plan, said = plainly(trt, tiny.classifier().SerializeToString(), typed, ("INT8", "FP16"))
        assert plan is None and "FP16, INT8 cannot be set with kSTRONGLY_TYPED" in said


@pytest.mark.parametrize("name", ["BuilderFlag.INT8", "BuilderFlag.FP16", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH"])
def test_names_that_11_has_not_are_not_there(name: str) -> None:
    kind, member = name.split(".")
    for version in VERSIONS:
        with installed(version) as trt:
            assert hasattr(getattr(trt, kind), member) == (version != "11.4")


@pytest.mark.parametrize(
    "name",
    ["ICudaEngine.num_bindings", "ICudaEngine.get_binding_shape", "IExecutionContext.execute_async_v2", "Builder.build_engine",
     "IBuilderConfig.max_workspace_size", "IInt8EntropyCalibrator2", "Builder.platform_has_fast_int8"],
)  # fmt: skip
def test_what_is_gone_is_gone(name: str) -> None:
    kind, _, member = name.partition(".")
    with installed("11.4") as trt:
        assert not hasattr(getattr(trt, kind), member) if member else not hasattr(trt, kind)


def test_a_setting_that_is_gone_cannot_be_set() -> None:
    with installed("11.4") as trt:
        log = Lines(trt)
        config = trt.Builder(log.logger).create_builder_config()
        with pytest.raises(AttributeError, match="int8_calibrator"):
            config.int8_calibrator = object()


def test_a_bit_written_as_a_number_means_another_flag() -> None:
    int8 = tiny.classifier().SerializeToString()
    with installed("10.16") as trt:  # 1 << 0, strong typing in 11, is the batch flag here: weak, and without INT8
        assert plainly(trt, int8, 1 << 0)[0] is None
        with pytest.raises(TypeError):
            1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert [fake_tensorrt._NAMES[one]["numbers"]["NetworkDefinitionCreationFlag"]["STRONGLY_TYPED"] for one in VERSIONS] == [
        1,
        1,
        0,
    ]


# --- plans and timing caches (trap 16) ----------------------------------------------------------------


def damaged(plan: bytes) -> bytes:
    return plan[:-1] + bytes([plan[-1] ^ 1])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda plan: b"", "Magic tag"),
        (lambda plan: b"\x7fELF" * 100, "Magic tag"),
        (lambda plan: plan[: len(plan) // 2], "truncated or damaged"),
        (damaged, "truncated or damaged"),
    ],
)
def test_a_damaged_plan_is_refused_with_what_was_logged(trt: Any, spoil: Callable[[bytes], bytes], words: str) -> None:
    plan = built(tiny.classifier()).plan
    with pytest.raises(
        EngineError, match=f"the engine of tiny was not loaded: .*{words}.*; it belongs to another .*: build anew"
    ):
        load(spoil(plan))


@pytest.mark.parametrize(
    ("version", "gpu", "words"), [("11.4", "sm87", "version tag 10.3.0"), ("10.3.0", "sm110", "incompatible device")]
)
def test_a_plan_of_another_tensorrt_or_gpu_is_refused(version: str, gpu: str, words: str) -> None:
    with installed("10.3.0"):
        plan = built(tiny.classifier()).plan
    with installed(version, gpu=gpu) as trt:
        log = Lines(trt)
        assert trt.Runtime(log.logger).deserialize_cuda_engine(plan) is None, "no exception tells"
    with installed(version, gpu=gpu), pytest.raises(EngineError, match=f"{words}.*build anew"):
        load(plan)


def test_a_timing_cache_is_carried_on(trt: Any) -> None:
    first = built(tiny.classifier())
    second = built(tiny.classifier(), timing_cache=first.timing_cache)
    entries = [json.loads(one.timing_cache)["entries"] for one in (first, second)]
    assert entries[1] == 2 * entries[0] > 0 and second.notes == ()


@pytest.mark.parametrize(("version", "gpu"), [("10.16", "sm87"), ("10.3.0", "sm110"), ("10.3.0", "garbage")])
def test_a_timing_cache_from_elsewhere_is_left_out_and_noted(version: str, gpu: str) -> None:
    with installed(version, gpu=gpu):
        cache = b"\x00garbage" if gpu == "garbage" else built(tiny.classifier()).timing_cache
    with installed("10.3.0"):
        made = built(tiny.classifier(), timing_cache=cache)
        assert "of another TensorRT or GPU and was left out" in made.notes[0]
        assert json.loads(made.timing_cache) == json.loads(built(tiny.classifier()).timing_cache)


# --- binding and running ------------------------------------------------------------------------------


def test_addresses_are_checked_before_tensorrt_sees_them(trt: Any) -> None:
    engine = load(built(tiny.classifier()).plan)
    room = aligned((1, 1, 32, 32))
    for name, address, words in [
        ("picture", room.ctypes.data, "none of its tensors .image, scores."),
        ("image", 0, "0x0; an address is a multiple of 256"),
        ("image", room.ctypes.data + 4, "an address is a multiple of 256"),
    ]:
        with pytest.raises(EngineError, match=words):
            engine.bind(name, address)
    engine.bind("image", room.ctypes.data)
    with pytest.raises(EngineError, match="image is bound already"):
        engine.bind("image", room.ctypes.data)
    with pytest.raises(EngineError, match="scores not bound"):
        engine.enqueue(STREAM)


def test_an_address_tensorrt_refuses_is_an_error_with_its_words(trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(built(tiny.classifier()).plan)
    monkeypatch.setattr(fake_tensorrt, "_ALIGNMENT_BYTES", 1 << 40)
    with pytest.raises(EngineError, match="image was not bound: .*is not aligned"):
        engine.bind("image", aligned((1, 1, 32, 32)).ctypes.data)


def test_unbound_tensors_run_nothing_and_raise_nothing_in_tensorrt_itself(trt: Any) -> None:
    log = Lines(trt)
    runtime = trt.Runtime(log.logger)
    context = runtime.deserialize_cuda_engine(built(tiny.classifier()).plan).create_execution_context()
    assert context.execute_async_v3(STREAM) is False


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_the_default_stream_is_refused(trt: Any, stream: int) -> None:
    engine = load(built(tiny.classifier()).plan)
    bound(engine)
    with pytest.raises(EngineError, match="default stream, which synchronises"):
        engine.enqueue(stream)


def test_a_closed_engine_says_so(trt: Any) -> None:
    engine = load(built(tiny.classifier()).plan)
    bound(engine)
    engine.close()
    engine.close()
    for call in (lambda: engine.enqueue(STREAM), engine.layers):
        with pytest.raises(EngineError, match="is closed"):
            call()


def test_a_freed_buffer_is_found_when_the_work_runs(trt: Any) -> None:
    engine = load(built(tiny.classifier()).plan)
    arrays = bound(engine)

    def live(address: int, nbytes: int) -> None:
        assert (address, nbytes) == (arrays["image"].ctypes.data, 4 * 32 * 32), "not live"

    with hooks(on_address=live), pytest.raises(AssertionError, match="not live"):
        engine.enqueue(STREAM)  # `scores` was freed


def io_plan(trt: Any, kind: int, batch: int) -> bytes:
    nodes = [helper.make_node("Relu", ["image"], ["map"], name="relu")]
    rim = [helper.make_tensor_value_info(name, kind, [batch, 1, 8, 8]) for name in ("image", "map")]
    graph = helper.make_graph(nodes, "io", rim[:1], rim[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(plainly(trt, model.SerializeToString())[0])


@pytest.mark.parametrize(
    ("kind", "batch", "words"),
    [
        (TensorProto.FLOAT16, 1, "image is HALF, not float32; map is HALF, not float32"),
        (TensorProto.FLOAT, 2, r"image is \[2, 1, 8, 8\], not static with batch 1"),
    ],
)
def test_an_engine_with_another_rim_is_refused(trt: Any, kind: int, batch: int, words: str) -> None:
    with pytest.raises(EngineError, match=f"the engine of tiny: {words}"):
        load(io_plan(trt, kind, batch))


# --- graphs (trap 20) ---------------------------------------------------------------------------------


class Stream:
    """One stream: work waits until ``synchronise``; while it captures, work is kept for ``launch``."""

    def __init__(self) -> None:
        self.capturing = False
        self.synchronised = 0
        self._waiting: list[Callable[[], None]] = []
        self._graph: list[Callable[[], None]] = []

    def on_stream(self, handle: int, work: Callable[[], None]) -> None:
        (self._graph if self.capturing else self._waiting).append(work)

    def is_capturing(self, handle: int) -> bool:
        return self.capturing

    def on_synchronise(self) -> None:
        self.synchronised += 1

    def launch(self) -> None:
        self._waiting += self._graph

    def synchronise(self) -> None:
        waiting, self._waiting = self._waiting, []
        for work in waiting:
            work()

    def hooked(self) -> Any:
        return hooks(on_stream=self.on_stream, is_capturing=self.is_capturing, on_synchronise=self.on_synchronise)


def test_a_captured_graph_answers_as_the_plain_call(trt: Any) -> None:
    engine, stream = load(built(tiny.classifier()).plan), Stream()
    arrays = bound(engine)
    with stream.hooked():
        arrays["image"][...] = 0.25
        engine.enqueue(STREAM)
        assert not arrays["scores"].any(), "nothing runs before its turn"
        stream.synchronise()
        plain = arrays["scores"].copy()
        stream.capturing = True
        engine.enqueue(STREAM)
        stream.capturing = False
        for value, same in ((-0.25, False), (0.25, True)):
            arrays["image"][...] = value
            stream.launch()
            stream.synchronise()
            assert np.array_equal(arrays["scores"], plain) == same


def test_capture_without_a_plain_run_before_it_fails(trt: Any) -> None:
    engine, stream = load(built(tiny.classifier()).plan), Stream()
    bound(engine)
    stream.capturing = True
    with stream.hooked(), pytest.raises(EngineError, match="the engine of tiny failed: .*not permitted when stream is capturing"):
        engine.enqueue(STREAM)


def test_the_default_stream_synchronises_and_spoils_a_capture(trt: Any) -> None:
    stream, log = Stream(), Lines(trt)
    runtime = trt.Runtime(log.logger)
    engine = runtime.deserialize_cuda_engine(built(tiny.classifier()).plan)
    context = engine.create_execution_context()
    arrays = {name: aligned(tuple(engine.get_tensor_shape(name))) for name in ("image", "scores")}
    assert all(context.set_tensor_address(name, array.ctypes.data) for name, array in arrays.items())
    with stream.hooked():
        assert context.execute_async_v3(0) and stream.synchronised == 1
        stream.capturing = True
        assert context.execute_async_v3(0) is False and "capturing" in log.text()


def test_a_graph_goes_on_with_the_address_of_its_capture_so_ours_cannot_change(trt: Any) -> None:
    log, stream = Lines(trt), Stream()
    runtime = trt.Runtime(log.logger)
    vendor = runtime.deserialize_cuda_engine(built(tiny.classifier()).plan)
    context = vendor.create_execution_context()
    old, new, image = aligned((1, 3)), aligned((1, 3)), aligned((1, 1, 32, 32))
    with stream.hooked():
        assert context.set_tensor_address("image", image.ctypes.data) and context.set_tensor_address("scores", old.ctypes.data)
        assert context.execute_async_v3(STREAM)
        stream.capturing = True
        assert context.execute_async_v3(STREAM)
        stream.capturing = False
        assert context.set_tensor_address("scores", new.ctypes.data), "nothing complains"
        stream.launch()
        stream.synchronise()
    assert old.any() and not new.any()
    engine = load(built(tiny.classifier()).plan)
    arrays = bound(engine)
    engine.enqueue(STREAM)
    with pytest.raises(EngineError, match="bind every tensor before the first run"):
        engine.bind("scores", arrays["scores"].ctypes.data)


# --- on the stand-in of the GPU -----------------------------------------------------------------------


class OnGpu:
    """An engine of the shipped bundle bound to memory of the one GPU."""

    def __init__(self, cuda: Cuda, model: onnx.ModelProto) -> None:
        self.cuda = cuda
        self.engine = TensorRtEngine(built(model).plan, "the engine", cuda.facts.capability, lambda: cuda)
        shapes = {**self.engine.inputs, **self.engine.outputs}
        self.memory = {name: cuda.allocate(4 * int(np.prod(shape))) for name, shape in shapes.items()}
        self.answer = np.zeros(self.engine.outputs["scores"], np.float32)

    def bind(self) -> None:
        for name, memory in self.memory.items():
            self.engine.bind(name, memory.address)

    def send(self, given: np.ndarray) -> None:
        self.cuda.send(self.memory["image"].address, np.ascontiguousarray(given, np.float32))

    def fetch(self) -> np.ndarray:
        self.cuda.fetch(self.answer, self.memory["scores"].address)
        self.cuda.finish()
        return self.answer

    def free(self) -> None:
        self.engine.close()
        for memory in self.memory.values():
            memory.free()


@contextmanager
def one_gpu() -> Iterator[tuple[Gpu, Cuda]]:
    gpu = Gpu()
    with fake_pycuda.installed(gpu), on_gpu(gpu):
        cuda = Cuda.open(gpu.library, gpu.library)
        try:
            yield gpu, cuda
        finally:
            gpu.fault = 0  # a GPU that is lost frees nothing
            cuda.close()


def test_on_the_gpu_plain_and_graph_answer_the_golden_inputs_alike(trt: Any) -> None:
    model = MODELS["shipped"]()
    with one_gpu() as (gpu, cuda):
        rig = OnGpu(cuda, model)
        rig.bind()
        golden = np.load(SHIPPED / "golden.npz")["input"][:3]
        plain = []
        for given in golden:
            rig.send(given[None])
            rig.engine.enqueue(cuda.stream)
            plain.append(rig.fetch().copy())
        graph = cuda.capture(lambda: rig.engine.enqueue(cuda.stream))
        allocations = gpu.allocations
        for given, expected in zip(golden, plain):
            np.testing.assert_allclose(expected, reference(model.SerializeToString(), given[None]), rtol=1e-4, atol=1e-4)
            rig.send(given[None])
            graph.launch()
            np.testing.assert_array_equal(rig.fetch(), expected)
        assert gpu.allocations == allocations, "nothing is allocated in the loop"
        graph.free()
        rig.free()
        assert gpu.live() == 0


def test_on_the_gpu_a_capture_before_the_plain_run_is_lost(trt: Any) -> None:
    with one_gpu() as (_, cuda):
        rig = OnGpu(cuda, tiny.classifier())
        rig.bind()
        with pytest.raises(EngineError):
            cuda.capture(lambda: rig.engine.enqueue(cuda.stream))
        rig.send(np.full((1, 1, 32, 32), 0.25))  # the plain path goes on
        rig.engine.enqueue(cuda.stream)
        assert rig.fetch().any()
        rig.free()


def test_on_the_gpu_memory_freed_under_the_engine_loses_the_gpu(trt: Any) -> None:
    with one_gpu() as (gpu, cuda):
        rig = OnGpu(cuda, tiny.classifier())
        rig.bind()
        rig.memory.pop("scores").free()
        rig.engine.enqueue(cuda.stream)
        with pytest.raises(EngineError, match="the GPU failed"):
            cuda.finish()
        gpu.fault = 0
        rig.free()


def test_on_the_gpu_another_context_runs_nothing(trt: Any) -> None:
    with one_gpu() as (gpu, cuda):
        rig = OnGpu(cuda, tiny.classifier())
        rig.bind()
        import pycuda.autoinit  # type: ignore[import-not-found]  # trap 10: a second context, current now

        with pytest.raises(EngineError, match="the engine failed: Error Code 1: Cuda Runtime"):
            rig.engine.enqueue(cuda.stream)
        pycuda.autoinit.context.pop()
        rig.engine.enqueue(cuda.stream)
        rig.fetch()
        rig.free()


# --- no driver, and what ends a process ---------------------------------------------------------------


def test_without_a_driver_nothing_of_tensorrt_is_made() -> None:
    with installed("10.3.0", driver=False):
        words = "needs a GPU, and no CUDA driver answers; run it on the box"
        with pytest.raises(EngineError, match=f"the engine of tiny {words}"):
            load(b"plan", lambda: None)
        with pytest.raises(EngineError, match=rf"building an engine .int8. {words}"):
            build(b"onnx", BuildOptions("int8", WORKSPACE_BYTES), lambda phase, share: None, lambda: None)


def test_a_driver_that_was_not_asked_for_cannot_be_forgotten() -> None:
    with pytest.raises(TypeError, match="probe"):
        TensorRtEngine(b"plan", "what", CAPABILITY)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="probe"):
        build(b"onnx", BuildOptions("int8", 1), lambda phase, share: None)  # type: ignore[call-arg]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_runtime_made_without_a_driver_ends_the_process_at_the_next_call(version: str) -> None:
    with installed(version, driver=False) as trt:
        log = Lines(trt)
        runtime, builder = trt.Runtime(log.logger), trt.Builder(log.logger)
        assert "CUDA initialization failure with error: 35" in log.text()
        for call in (lambda: runtime.deserialize_cuda_engine(b"plan"), lambda: builder.create_network(0)):
            with pytest.raises(ProcessCrashed, match="without a CUDA driver"):
                call()


def test_a_probe_that_lies_costs_the_process() -> None:
    script = """
import os
from tests.fakes import fake_tensorrt
from appliance.devices.engine_tensorrt import TensorRtEngine
with fake_tensorrt.hooks(on_crash=lambda why: os._exit(139)), fake_tensorrt.installed("11.4", driver=False):
    try:
        TensorRtEngine(b"plan", "the engine", (8, 7), lambda: "CUDA 12.6")
    except BaseException:
        pass
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 139


def test_a_logger_that_was_freed_ends_the_process(trt: Any) -> None:
    runtime = trt.Runtime(Lines(trt).logger)
    with pytest.raises(ProcessCrashed, match="logger that was freed"):
        runtime.deserialize_cuda_engine(b"no plan")


def test_a_parser_freed_before_the_build_ends_the_process(trt: Any) -> None:
    log = Lines(trt)
    builder = trt.Builder(log.logger)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, log.logger).parse(float_model(tiny.classifier()).SerializeToString())
    with pytest.raises(ProcessCrashed, match="parser that was freed"):
        builder.build_serialized_network(network, builder.create_builder_config())


def test_a_logger_without_its_base_is_no_logger(trt: Any) -> None:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match="must be called"):
        Logger()


def test_errors_of_a_second_engine_are_heard_although_the_first_logger_stays(trt: Any) -> None:
    first = load(built(tiny.classifier()).plan)
    with pytest.raises(EngineError, match="Magic tag"):
        load(b"no plan")
    with pytest.raises(EngineError, match="No importer registered"):
        built(qoperator())
    bound(first)
    first.enqueue(STREAM)


def test_an_error_is_told_once(trt: Any) -> None:
    for make in (lambda: load(b"no plan"), lambda: built(qoperator()), lambda: built(tiny.classifier(), workspace_bytes=1)):
        with pytest.raises(EngineError) as raised:
            make()
        told = [words for words in ("Magic tag", "No importer", "any implementation") if words in str(raised.value)]
        assert len(told) == 1
    assert load(built(tiny.classifier()).plan).notes == ()


def test_two_loggers_are_one_too_many(trt: Any) -> None:
    first, second = Lines(trt), Lines(trt)
    kept = trt.Runtime(first.logger)
    assert trt.Runtime(second.logger).deserialize_cuda_engine(b"no plan") is None and kept
    assert "Magic tag" in first.text() and "Magic tag" not in second.text()


# --- the inspector ------------------------------------------------------------------------------------


def layer(kind: str, *inputs: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"Name": kind, "LayerType": kind, "Inputs": list(inputs), "Outputs": [], **more}


TEN_FLOAT, TEN_INT8 = {"Format/Datatype": "Half"}, {"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}
ELEVEN_FLOAT, ELEVEN_INT8 = {"Format": "kLINEAR", "DataType": "Float"}, {"Format": "kCHW32", "DataType": "Int8"}


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        (
            [layer("CaskConvolution", TEN_INT8), layer("CaskConvolution", TEN_FLOAT), layer("Reformat", TEN_FLOAT)],
            Layers(2, 1, 1),
        ),
        ([layer("CaskConvolution", ELEVEN_INT8), layer("kgen", ELEVEN_FLOAT), layer("Reformat", ELEVEN_INT8)], Layers(2, 1, 1)),
        ([layer("CaskConvolution", TEN_FLOAT, Weights={"Type": "Int8", "Count": 9})], Layers(1, 1, 0)),
        ([layer("Quantize", TEN_FLOAT), layer("Dequantize", TEN_INT8), layer("Constant")], Layers(0, 0, 0)),
        ([layer("kgen", {"Format/Datatype": "UInt8"}), layer("kgen", {"DataType": "UInt8"})], Layers(2, 0, 0)),
        ([], Layers(0, 0, 0)),
    ],
)
def test_layers_are_counted_in_the_words_of_10_and_of_11(layers: list[dict[str, Any]], found: Layers) -> None:
    assert int8_layers(json.dumps({"Layers": layers, "Bindings": ["image"]})) == found


@pytest.mark.parametrize("text", ["", "Layers:\nconv", "[]", "{}", '{"Layers": 3}'])
def test_an_inspector_nobody_understands_is_an_error(text: str) -> None:
    with pytest.raises(EngineError, match="says nothing that is known"):
        int8_layers(text)


def test_a_plan_without_details_says_what_to_do(trt: Any) -> None:
    log = Lines(trt)
    plan, _ = plainly(trt, float_model(tiny.classifier()).SerializeToString())
    with pytest.raises(EngineError, match="built without details .*; build anew"):
        load(bytes(plan)).layers()
    assert log


# --- the stand-in itself ------------------------------------------------------------------------------


def public(kind: Any) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_stand_in_has_no_name_that_the_real_one_has_not(version: str) -> None:
    real = fake_tensorrt._NAMES[version]
    with installed(version) as trt:
        assert {name for name in vars(trt) if not name.startswith("_")} <= {*real["names"]}
        for kind in fake_tensorrt._KINDS:
            assert public(getattr(trt, kind.__name__)) <= {*real["members"][kind.__name__]}, kind.__name__
        for name in set(real["numbers"]) - {"Severity"}:
            assert {one: int(two) for one, two in getattr(trt, name).__members__.items()} == real["numbers"][name]
        with pytest.raises(AttributeError):
            trt.IUffParser  # noqa: B018
        with pytest.raises(NotImplementedError, match="the stand-in does not"):
            trt.Refitter  # noqa: B018


def test_the_stand_in_writes_no_member_that_no_version_has() -> None:
    for kind in fake_tensorrt._KINDS:
        known = {name for version in VERSIONS for name in fake_tensorrt._NAMES[version]["members"][kind.__name__]}
        assert public(kind) <= known, kind.__name__


def test_what_only_tensorrt_makes_cannot_be_made(trt: Any) -> None:
    for name in ("ICudaEngine", "IExecutionContext", "IBuilderConfig", "INetworkDefinition"):
        with pytest.raises(TypeError, match="No constructor defined"):
            getattr(trt, name)()


def test_the_stand_in_leaves_when_it_is_done() -> None:
    before = sys.modules.get("tensorrt")
    with installed("11.4") as trt:
        assert sys.modules["tensorrt"] is trt
    assert sys.modules.get("tensorrt") is before
