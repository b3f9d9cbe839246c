"""From a bundle to a TensorRT plan that may run on this module: found, or built in a process of its own. Knows devices/.

    python -m appliance.wiring.engines build BUNDLE --precision int8 --workspace 1073741824 --data-dir DIR

is that process: a build that fails inside TensorRT may take its process down, and its memory goes back to the machine with
it. It says how far it is in JSON lines on stdout, and what it built lies in the engine cache when it ends with 0."""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import msgspec

from appliance.box.jetson import memory_available, read_facts
from appliance.clock import boottime_ns, now_ns
from appliance.inspect.decode import decode_reduced
from appliance.model.bundle import ONNX_FILE, Bundle, BundleError, load_bundle
from appliance.model.engine_cache import (
    BuildFigures,
    EngineCache,
    EngineCacheError,
    EngineKey,
    StoredEngine,
    digest_of,
    json_bytes,
    power_mode_warning,
    slower_than_built,
    write_whole,
)
from appliance.model.kernel_plan import ExtremesStruct, FrameStruct, SumsStruct, kernel_plan
from appliance.model.licence import Latency, LicenceError, latency_of, read_licence, valid_for
from appliance.model.pixels import checked_rows
from appliance.model.preprocess import NO_GAINS, Gains
from appliance.ports import DeviceEngine, EngineError, EngineLost

if TYPE_CHECKING:
    from appliance.devices.cuda import Cuda, GpuFacts
    from appliance.devices.network_cuda import CudaNetwork

Precision = Literal["int8", "float16", "float32"]
PRECISIONS: tuple[Precision, ...] = ("int8", "float16", "float32")
Probe = Callable[[], object]
"""None where no CUDA driver answers."""
Progress = Callable[[str, float], None]
"""What is being done, and how much of it, 0..1."""

WORKSPACES_BYTES = tuple(size << 20 for size in (1024, 512, 256, 128))
_FREE_SHARE = 4  # tactics are tried beside weights, activations and the station: a quarter of what is free is scratch
_WARM_RUNS, MEASURED_RUNS, _START_RUNS = 20, 300, 100
_SILENT_S = 1800.0  # a whole build takes minutes: half an hour without one step of it is a hang
_LOOK_S = 0.25  # how often a build that says nothing is looked after: whoever must end it has two seconds
_WAIT_S = 2.0  # between two looks whether another build is over, and between two lines that say so
_DRIVER_COMES_NS = 120_000_000_000  # since the boot: what did not load its driver by then will not
_PR_SET_PDEATHSIG = 1
_LINE_BYTES, _TAIL_BYTES = 64 * 1024, 2000
_MOST_CHOICE_BYTES = 64 * 1024
CHOICE_FILE, LICENCE_FILE = "bench.json", "licence-int8.json"
# What makes a float graph out of the bundle's file: another firmware may make another, and that is another engine.
_GRAPH_SOURCES = ("graph.py", "half_graph.py")
_CHILD = (sys.executable, "-m", "appliance.wiring.engines")


class NotThisPrecision(EngineError):
    """The model cannot be of that precision; another can."""


@dataclass(frozen=True)
class ThisModule:
    """What engines are tied to here. ``module``: "p3767-0005", or the GPU's name where there is no Jetson."""

    tensorrt: str
    module: str
    multiprocessors: int
    capability: tuple[int, int]
    l4t: str
    power_mode: str | None
    free_bytes: int


@dataclass(frozen=True)
class ReadyPlan:
    """What may run: a plan that was checked, why it is of this precision, and what a person should know (``told``)."""

    plan: bytes
    precision: str
    key: EngineKey
    digest: str
    figures: BuildFigures
    told: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """What ``engine bench`` found: precisions that reproduce the golden vectors, fastest first, and for whom that holds."""

    order: tuple[Precision, ...]
    bundle_digest: str
    tensorrt: str
    module: str
    l4t: str
    schema: Literal[1] = 1


@dataclass(frozen=True)
class Site:
    """The GPU of this process and thread, what engines are tied to on it, and what TensorRT's file asks before each use."""

    gpu: Cuda
    here: ThisModule
    probe: Probe

    def close(self) -> None:
        """After every network on it."""
        self.gpu.close()


def open_site(
    kernels: Callable[[GpuFacts], bytes] | None = None, load: Callable[[str], Any] = ctypes.CDLL,
    load_quick: Callable[[str], Any] = ctypes.PyDLL, root: Path = Path("/"), since_boot_ns: Callable[[], int] = boottime_ns,
) -> Site:  # fmt: skip
    """``kernels``: the image for a GPU, needed where a network is made. Raises EngineError: what is missing here; EngineLost
    where a Jetson that just booted may not have loaded its driver yet (JetPack 7 does that late): who asked once in vain is
    never answered, and his device rules were made without it."""
    from appliance.devices.cuda import Cuda, driver

    if read_facts(root).l4t is not None and since_boot_ns() < _DRIVER_COMES_NS and driver(load) is None:
        raise EngineLost("no CUDA driver answers yet: the box has just booted; a new process asks again")
    gpu = Cuda.open(load, load_quick)
    try:
        here = this_module(gpu.facts, gpu.free_bytes(), root)
        if kernels is not None:
            gpu.load_kernels(kernels(gpu.facts))
    except EngineError:
        gpu.close()
        raise
    return Site(gpu, here, driver_probe(load))


# --- what is needed, and whether it is there --------------------------------------------------------------


def this_module(gpu: GpuFacts, gpu_free_bytes: int, root: Path = Path("/")) -> ThisModule:
    """``gpu_free_bytes``: as the driver says; a Jetson's is the machine's, most of which the driver counts as used while
    it only caches files. Raises EngineError without TensorRT."""
    from appliance.devices.engine_tensorrt import version

    facts = read_facts(root)
    free_bytes = memory_available(root) if gpu.integrated else None
    return ThisModule(
        tensorrt=version(), module=facts.module or gpu.name, multiprocessors=gpu.multiprocessors,
        capability=gpu.capability, l4t=facts.l4t or "", power_mode=facts.power_mode,
        free_bytes=gpu_free_bytes if free_bytes is None else free_bytes,
    )  # fmt: skip


def workspace_bytes(free_bytes: int) -> int:
    """Scratch memory for a build: the largest step within a quarter of what is free, at most 1 GiB, at least 128 MiB.

    In steps, for it is part of the engine's key: free memory is another number at every start. More than 1 GiB gains small
    networks nothing and costs an 8 GB module the memory that everything else shares."""
    return next((size for size in WORKSPACES_BYTES if size <= free_bytes // _FREE_SHARE), WORKSPACES_BYTES[-1])


def key_of(bundle: Bundle, precision: Precision, here: ThisModule, workspace: int) -> EngineKey:
    """What the engine of this bundle, precision and workspace is tied to. Raises EngineError for a TensorRT too old."""
    from appliance.devices.engine_tensorrt import flags_for

    made = () if precision == "int8" else (f"graph:{_graph_digest()}",)
    return EngineKey(
        model_digest=bundle.files[ONNX_FILE], tensorrt=here.tensorrt, module=here.module,
        multiprocessors=here.multiprocessors, capability=".".join(map(str, here.capability)), l4t=here.l4t,
        precision=precision, flags=(*flags_for(here.tensorrt, precision), *made), workspace_bytes=workspace,
    )  # fmt: skip


def graph_of(bundle: Bundle, precision: Precision, tensorrt: str) -> bytes:
    """The ONNX that TensorRT is given. Raises NotThisPrecision, BundleError."""
    try:
        raw = bundle.onnx.read_bytes()
    except OSError as why:
        raise BundleError(f"{bundle.onnx}: cannot be read ({why.strerror}); copy the bundle anew") from why
    if digest_of(raw) != bundle.files[ONNX_FILE]:  # the engine would be kept under the digest of the old one
        raise BundleError(f"{bundle.onnx}: was replaced since the bundle was read; begin again")
    if precision == "int8":
        return raw
    import onnx  # slow, and needed in the building process alone

    from appliance.devices.engine_tensorrt import strongly_typed
    from appliance.model.graph import float_model
    from appliance.model.half_graph import half

    model = float_model(onnx.load_from_string(raw))
    if precision == "float16" and strongly_typed(tensorrt):
        try:
            model = half(model)
        except ValueError as why:
            raise NotThisPrecision(f"{bundle.onnx}: {why}") from why
    return bytes(model.SerializeToString())


def find_engine(cache: EngineCache, bundle: Bundle, precision: Precision, here: ThisModule) -> tuple[StoredEngine | None, str]:
    """The engine that lies there, built with any workspace, or None and why the one that lies there is not used ("" where
    there is none)."""
    key = key_of(bundle, precision, here, workspace_bytes(here.free_bytes))
    try:
        return cache.find(key, WORKSPACES_BYTES), ""
    except EngineCacheError as why:
        return None, str(why)


# --- the plan that may run ----------------------------------------------------------------------------------


def ensure_engine(
    bundle: Bundle, here: ThisModule, data_dir: Path, progress: Progress, build: Builder | None = None
) -> ReadyPlan:
    """The plan to run: INT8 with a licence that holds for it, else float16, and it says so; built where it is missing.

    After ``engine bench`` the fastest that reproduced the golden vectors. Raises EngineError in words."""
    build = build or build_in_child
    cache = EngineCache(engines_dir(data_dir))
    told: list[str] = []
    last: NotThisPrecision | None = None
    for precision in _in_order(cache, bundle, here, told):
        try:
            stored = _licensed(cache, bundle, here, told) if precision == "int8" else None
            if stored is None and precision != "int8":
                stored = found_or_built(cache, bundle, precision, here, data_dir, progress, told, build)
        except NotThisPrecision as why:
            told.append(str(why))
            last = why
            continue
        if stored is not None:
            warning = power_mode_warning(stored, here.power_mode)
            told += [warning] if warning else []
            return ReadyPlan(stored.plan, precision, stored.key, stored.digest, stored.figures, tuple(told))
    raise EngineError(f"{bundle.folder}: no engine can run it here: {'; '.join(told)}") from last


def found_or_built(
    cache: EngineCache, bundle: Bundle, precision: Precision, here: ThisModule, data_dir: Path, progress: Progress,
    told: list[str], build: Builder,
) -> StoredEngine:  # fmt: skip
    """The engine of that precision, with or without a licence; ``told`` gets what there is to say. Raises EngineError."""
    found, refused = find_engine(cache, bundle, precision, here)
    if refused:
        told.append(refused)
    if found is not None:
        return found
    workspace = workspace_bytes(here.free_bytes)
    build(BuildRequest(bundle.folder, precision, workspace, data_dir), progress)
    found, refused = find_engine(cache, bundle, precision, here)
    if found is None:
        raise EngineError(f"{bundle.folder}: the {precision} engine was built and is not there: {refused or 'the disk lost it'}")
    return found


def engines_dir(data_dir: Path) -> Path:
    """Where engines are kept; made by whoever stores the first."""
    return data_dir / "engines"


def _in_order(cache: EngineCache, bundle: Bundle, here: ThisModule, told: list[str]) -> tuple[Precision, ...]:
    choice = read_choice(cache.folder_of(bundle.files[ONNX_FILE]) / CHOICE_FILE)
    if choice is not None and choice == replace(choice, **_holds_for(bundle, here)):
        told.append(f"engine bench: {', '.join(choice.order)} reproduce the golden vectors, fastest first")
        return choice.order if "float32" in choice.order else (*choice.order, "float32")
    return PRECISIONS if bundle.precision == "int8" else PRECISIONS[1:]


def _licensed(cache: EngineCache, bundle: Bundle, here: ThisModule, told: list[str]) -> StoredEngine | None:
    """The INT8 engine if it may run; it is not built here, for a new engine has no licence."""
    found, refused = find_engine(cache, bundle, "int8", here)
    why: str | None = refused or "no INT8 engine was licensed on this module"
    if found is not None:
        try:
            licence = read_licence(found.folder / LICENCE_FILE)
            why = "there is no INT8 licence" if licence is None else valid_for(licence, found.key, found.digest, bundle.digest)
        except LicenceError as fault:
            why = str(fault)
    if why:
        told.append(f"INT8 does not run: {why}; run `appliance engine licence {bundle.folder}`")
        return None
    return found


def write_choice(path: Path, order: Sequence[Precision], bundle: Bundle, here: ThisModule) -> None:
    """What bench found, whole or not at all. Raises OSError."""
    choice = Choice(tuple(order), **_holds_for(bundle, here))
    write_whole(path, json_bytes(msgspec.to_builtins(choice)))


def read_choice(path: Path) -> Choice | None:
    """None where none was made, or none that can be read: then INT8 with a licence, else float16."""
    try:
        with path.open("rb") as stream:
            return msgspec.json.decode(stream.read(_MOST_CHOICE_BYTES), type=Choice)
    except (OSError, msgspec.MsgspecError):
        return None


def _holds_for(bundle: Bundle, here: ThisModule) -> dict[str, Any]:
    return {"bundle_digest": bundle.digest, "tensorrt": here.tensorrt, "module": here.module, "l4t": here.l4t}


def _graph_digest() -> str:
    folder = Path(__file__).resolve().parents[1] / "model"
    try:
        sources = b"".join((folder / name).read_bytes() for name in _GRAPH_SOURCES)
    except OSError as why:
        raise EngineError(f"{folder}: this firmware is not whole ({why}); install it anew") from why
    return digest_of(sources).removeprefix("sha256:")[:12]


# --- the building process, from outside ---------------------------------------------------------------------


@dataclass(frozen=True)
class BuildRequest:
    """One engine to be built and stored."""

    bundle_dir: Path
    precision: Precision
    workspace_bytes: int
    data_dir: Path


Builder = Callable[[BuildRequest, Progress], None]


def build_in_child(
    request: BuildRequest, progress: Progress, command: Sequence[str] = _CHILD, silent_s: float = _SILENT_S
) -> None:
    """Build in a process of its own and wait for it. Raises EngineError in words for whatever became of that process."""
    line = [
        *command, "build", str(request.bundle_dir.absolute()), "--precision", request.precision,
        "--workspace", str(request.workspace_bytes), "--data-dir", str(request.data_dir.absolute()),
    ]  # fmt: skip
    what = f"building the {request.precision} engine of {request.bundle_dir}"
    root = str(Path(__file__).resolve().parents[2])
    with ExitStack() as stack:
        try:
            said = stack.enter_context(tempfile.TemporaryFile())
            child = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, cwd=root)
        except OSError as why:
            raise EngineError(f"{what}: it cannot be begun ({why.strerror}); free memory and disk, then build again") from why
        assert child.stdout is not None
        try:
            ending = _listen(child.stdout, progress, silent_s)
            if ending is None:
                raise EngineError(f"{what}: not a word for {silent_s:.0f} s, so it was ended; try with the station stopped")
            code = child.wait(silent_s)
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
        if code == 0:
            return
        if "unfit" in ending:
            raise NotThisPrecision(str(ending["unfit"]))
        raise EngineError(f"{what}: {ending.get('error') or _death(code, said)}")


def _listen(pipe: IO[bytes], progress: Progress, silent_s: float) -> dict[str, Any] | None:
    """Progress until the process ends or closes the pipe; its last word ("error", "unfit"), {} for none; None = it hangs.

    While it says nothing ``progress`` hears the same again, often: it may raise to end the build."""
    last: dict[str, Any] = {}
    doing, share = "beginning a build", 0.0
    rest = b""
    heard_ns = now_ns()
    while now_ns() - heard_ns < silent_s * 1e9:
        if not select.select([pipe], [], [], min(_LOOK_S, silent_s))[0]:
            progress(doing, share)
            continue
        some = os.read(pipe.fileno(), _LINE_BYTES)
        if not some:
            return last
        heard_ns = now_ns()
        *lines, rest = (rest + some).split(b"\n")
        rest = rest[-_LINE_BYTES:]
        for line in lines:
            word = _word(line)
            if "share" in word:
                doing, share = str(word.get("doing", "")), float(word["share"])
                progress(doing, share)
            elif word:
                last = word
    return None


def _word(line: bytes) -> dict[str, Any]:
    try:
        word = json.loads(line)
    except ValueError:
        return {}  # a library that writes to stdout
    return word if isinstance(word, dict) else {}


def _death(code: int, said: IO[bytes]) -> str:
    """How a process ended that left no word, with the end of what it wrote to stderr."""
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - _TAIL_BYTES))
    tail = " / ".join(said.read().decode("utf-8", "replace").strip().splitlines()[-3:])
    if code == -signal.SIGKILL:
        how = "its process was killed, most likely for want of memory; stop the station and other programs, then build again"
    elif code < 0:
        how = f"TensorRT or the driver crashed ({signal.Signals(-code).name}); update JetPack, or send this with the bundle"
    else:
        how = f"its process ended with {code}"
    return f"{how} ({tail})" if tail else how


# --- the building process, from inside ----------------------------------------------------------------------


def main(
    arguments: Sequence[str] | None = None, load: Callable[[str], Any] = ctypes.CDLL,
    load_quick: Callable[[str], Any] = ctypes.PyDLL, root: Path = Path("/"),
) -> int:  # fmt: skip
    """The building process. ``load``, ``load_quick``: as devices.cuda has them; ``root``: as box.jetson has it."""
    parser = argparse.ArgumentParser(prog="python -m appliance.wiring.engines")
    build = parser.add_subparsers(required=True).add_parser("build")
    build.add_argument("bundle", type=Path)
    build.add_argument("--precision", choices=PRECISIONS, required=True)
    build.add_argument("--workspace", type=int, required=True)
    build.add_argument("--data-dir", type=Path, required=True)
    given = parser.parse_args(arguments)
    request = BuildRequest(given.bundle, given.precision, given.workspace, given.data_dir)
    with _reports() as report:
        try:
            os.nice(10)  # a station that runs goes before
            _first_to_go()
            _end_with_the_parent()
            _build(request, report, load, load_quick, root)
        except NotThisPrecision as why:
            report({"unfit": str(why)})
            return 1
        except (EngineError, BundleError, EngineCacheError) as why:
            report({"error": str(why)})
            return 1
    return 0


def _end_with_the_parent() -> None:
    """A build that nobody waits for any more holds memory and the lock."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _first_to_go() -> None:
    """Where memory runs out the system ends this process, and not the one that holds the gate."""
    Path("/proc/self/oom_score_adj").write_text("1000")


@contextmanager
def _reports() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Our lines alone on stdout: what libraries print there goes to stderr."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)

    def report(word: dict[str, Any]) -> None:
        try:
            os.write(ours, json.dumps(word).encode() + b"\n")
        except BrokenPipeError:
            os._exit(1)  # nobody waits any more; out of TensorRT's callback there is no other way

    try:
        yield report
    finally:
        os.dup2(ours, 1)
        os.close(ours)


def _build(
    request: BuildRequest, report: Callable[[dict[str, Any]], None], load: Callable[[str], Any],
    load_quick: Callable[[str], Any], root: Path,
) -> None:  # fmt: skip
    from appliance.devices.cuda import Cuda

    def progress(doing: str, share: float) -> None:
        report({"doing": doing, "share": round(share, 4)})

    bundle = load_bundle(request.bundle_dir)
    cache = EngineCache(engines_dir(request.data_dir))
    with _one_build(request.data_dir, progress):
        gpu = Cuda.open(load, load_quick)
        try:
            here = this_module(gpu.facts, gpu.free_bytes(), root)
            if find_engine(cache, bundle, request.precision, here)[0] is None:  # else another process has built it meanwhile
                _build_and_store(request, bundle, cache, here, gpu, progress, driver_probe(load))
        finally:
            gpu.close()


def _build_and_store(
    request: BuildRequest, bundle: Bundle, cache: EngineCache, here: ThisModule, gpu: Cuda, progress: Progress,
    probe: Probe,
) -> None:  # fmt: skip
    from appliance.devices.engine_tensorrt import BuildOptions, build

    precision = request.precision
    key = key_of(bundle, precision, here, request.workspace_bytes)
    progress("making the graph", 0.0)
    graph = graph_of(bundle, precision, here.tensorrt)
    begun = now_ns()
    options = BuildOptions(precision, request.workspace_bytes, cache.timing_cache(key) or None)
    built = build(graph, options, progress, probe)
    build_s = (now_ns() - begun) / 1e9
    latency = _measure_plan(gpu, built.plan, f"the new {precision} engine", probe)
    figures = BuildFigures(latency.p50_ms, latency.p99_ms, round(build_s, 1), here.power_mode)
    cache.store(key, built.plan, built.timing_cache, figures)


@contextmanager
def _one_build(data_dir: Path, progress: Progress) -> Iterator[None]:
    """Two builds at once would measure each other and share the memory of one."""
    folder = engines_dir(data_dir)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / ".building", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as why:
        raise EngineError(f"{folder}: engines cannot be kept there ({why.strerror}); name a folder that can be written") from why
    pause = threading.Event()
    try:
        while not _taken(lock):
            progress("waiting for another build to end", 0.0)
            pause.wait(_WAIT_S)
        yield
    finally:
        os.close(lock)  # the lock goes with it, also when this process is killed


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# --- a network of a plan ------------------------------------------------------------------------------------


def plan_network(
    gpu: Cuda, bundle: Bundle, plan: bytes, precision: str, probe: Probe, white_balance: Gains = NO_GAINS
) -> CudaNetwork:
    """The bundle on the GPU by a plan of ``ensure_engine``, the kernels loaded. In the thread of ``gpu``. Raises EngineError."""
    return _owning(gpu, bundle, _loaded(gpu, bundle, plan, precision, probe), precision, white_balance)


def start_network(
    site: Site, bundle: Bundle, ready: ReadyPlan, white_balance: Gains = NO_GAINS
) -> tuple[CudaNetwork, str | None]:
    """What a station runs, and a sentence where its engine is slower than when it was built. Raises EngineError."""
    engine = _loaded(site.gpu, bundle, ready.plan, ready.precision, site.probe)
    network = _owning(site.gpu, bundle, engine, ready.precision, white_balance)
    try:
        return network, slower_than_built(ready.figures.p50_ms, measure(site.gpu, engine, _START_RUNS).p50_ms)
    except EngineError:
        network.close()
        raise


def network_on(gpu: Cuda, bundle: Bundle, engine: DeviceEngine, precision: str, white_balance: Gains = NO_GAINS) -> CudaNetwork:
    """The bundle on the GPU by an engine that is loaded; closed with the network. Raises EngineError."""
    from appliance.devices.network_cuda import CudaNetwork, Structs, Wanted

    output, (width, height) = bundle.output, bundle.input.size
    whole = tuple(filter(None, (output.tensor,) if bundle.task == "classify" else (output.score,)))
    return CudaNetwork(
        gpu=gpu, engine=engine, task=bundle.task,
        identity={"name": bundle.name, "digest": bundle.digest, "precision": precision},
        input_name=bundle.input.tensor, input_shape=(1, bundle.input.channels, height, width),
        wanted=Wanted(whole, None if bundle.task == "classify" else output.map, output.low, output.high),
        plan_for=lambda size, pixel, roi: kernel_plan(size, pixel, roi, bundle.input, white_balance),
        check=checked_rows, decode=partial(decode_reduced, bundle=bundle),
        structs=Structs(FrameStruct, SumsStruct, ExtremesStruct),
    )  # fmt: skip


def _loaded(gpu: Cuda, bundle: Bundle, plan: bytes, precision: str, probe: Probe) -> DeviceEngine:
    from appliance.devices.engine_tensorrt import TensorRtEngine

    return TensorRtEngine(plan, f"the {precision} engine of {bundle.name}", gpu.facts.capability, probe)


def _owning(gpu: Cuda, bundle: Bundle, engine: DeviceEngine, precision: str, white_balance: Gains) -> CudaNetwork:
    """The engine is closed with the network, and when there is none."""
    try:
        return network_on(gpu, bundle, engine, precision, white_balance)
    except EngineError:
        engine.close()
        raise


# --- figures ------------------------------------------------------------------------------------------------


def driver_probe(load: Callable[[str], Any] = ctypes.CDLL) -> Probe:
    """What engine_tensorrt asks before it touches TensorRT."""
    from appliance.devices.cuda import driver

    return partial(driver, load)


def measure(gpu: Cuda, engine: DeviceEngine, runs: int = MEASURED_RUNS) -> Latency:
    """The engine alone, every tensor bound, one inference after another, as the GPU's own clock has it. Raises EngineError."""
    marks, done = gpu.marks(2), gpu.done()
    times_ms = []
    try:
        for _ in range(_WARM_RUNS + runs):
            marks.mark(0)
            engine.enqueue(gpu.stream)
            marks.mark(1)
            done.record()
            done.wait()
            times_ms.append(marks.milliseconds(0, 1))
    finally:
        marks.free()
    return latency_of(times_ms[_WARM_RUNS:])


def _measure_plan(gpu: Cuda, plan: bytes, what: str, probe: Probe) -> Latency:
    """A plan's first load, in the process that may crash at it, and its figures."""
    from appliance.devices.engine_tensorrt import TensorRtEngine

    engine = TensorRtEngine(plan, what, gpu.facts.capability, probe)
    memories = []
    try:
        for name, shape in (engine.inputs | engine.outputs).items():
            nbytes = 4
            for side in shape:
                nbytes *= side
            memory = gpu.allocate(nbytes)
            memories.append(memory)
            gpu.zero(memory.address, nbytes)
            engine.bind(name, memory.address)
        return measure(gpu, cast(DeviceEngine, engine))
    finally:
        engine.close()
        for memory in memories:
            memory.free()


if __name__ == "__main__":
    sys.exit(main())
