"""From a bundle to the plan that runs, on stand-ins of CUDA and TensorRT: builds in a process of its own, licence, verbs."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from appliance.clock import now_ns
from appliance.model import engine_cache
from appliance.model.bundle import Bundle
from appliance.model.engine_cache import EngineCache, digest_of
from appliance.model.golden import replay_all
from appliance.model.licence import read_licence, write_licence
from appliance.ports import EngineError, EngineLost
from appliance.wiring import engine_verbs as verbs
from appliance.wiring import engines as engines
from appliance.wiring.engines import BuildRequest, ReadyPlan, Site, ensure_engine, open_site, start_network, workspace_bytes
from appliance.wiring.models import write_bundle
from tests.contracts.rigs import until
from tests.fakes import fake_pycuda, fake_tensorrt
from tests.fakes.fake_libcuda import Gpu
from tests.fakes.fake_tensorrt_gpu import on_gpu
from tests.kernels.host_library import host_library
from tests.model.tiny import SIDE, classifier, meta, tensor, tiny_bundle

VERSIONS = fake_tensorrt.VERSIONS
OLD = VERSIONS[0]
MIB = 1 << 20


# --- the stand-ins, here and in the building process --------------------------------------------------------


@contextmanager
def stand_ins(version: str, kernels: Any = None) -> Iterator[Gpu]:
    """PyCUDA and TensorRT on one simulated GPU."""
    gpu = Gpu(kernels)
    with fake_pycuda.installed(gpu), fake_tensorrt.installed(version), on_gpu(gpu):
        yield gpu


def child(arguments: list[str]) -> int:
    """What the building process is in these tests: the product's, on stand-ins, with a trouble."""
    version, trouble, root, *rest = arguments
    _plant(trouble)
    with stand_ins(version) as gpu:
        return engines.main(rest, gpu.library, gpu.library, Path(root))


def _plant(trouble: str) -> None:
    if trouble in ("SIGKILL", "SIGSEGV"):
        fake_tensorrt.Builder._phases = lambda *_: os.kill(os.getpid(), getattr(signal, trouble))  # type: ignore[assignment, method-assign]
    elif trouble == "noise":
        real = fake_tensorrt.Builder._phases
        fake_tensorrt.Builder._phases = lambda *given: (os.write(1, b'{"doing": "theirs", "share": 7}\n{'), real(*given))[1]  # type: ignore[assignment, method-assign]
    elif trouble in (".plan", ".json"):  # power is lost as this file is put in its place
        replaced = os.replace
        engine_cache.os.replace = lambda one, two: (  # type: ignore[assignment]
            os.kill(os.getpid(), signal.SIGKILL) if Path(two).suffix == trouble else replaced(one, two)
        )
    elif trouble == "bug":
        engines.graph_of = None  # type: ignore[assignment]


@dataclass
class Box:
    """One module of a test, its data folder and its releases."""

    folder: Path
    version: str = OLD
    l4t: str = "36.4.3"
    trouble: str = ""
    apart: bool = False
    """Build in a process of its own, as the product does; else in this one, which is quicker."""
    builds: int = 0
    gpu: Gpu | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def root(self) -> Path:
        root = self.folder / f"root-{self.l4t}"
        release = root / "etc/nv_tegra_release"
        release.parent.mkdir(parents=True, exist_ok=True)
        major, minor = self.l4t.split(".", 1)
        release.write_text(f"# R{major} (release), REVISION: {minor}, GCID: 1, BOARD: generic\n")
        compatible = root / "proc/device-tree/compatible"
        compatible.parent.mkdir(parents=True, exist_ok=True)
        compatible.write_bytes(b"nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0")
        return root

    def build(self, request: BuildRequest, progress: engines.Progress) -> None:
        """On the stand-ins."""
        self.builds += 1
        if not self.apart:
            assert self.gpu is not None

            def report(word: dict[str, Any]) -> None:
                progress(word["doing"], word["share"])

            engines._build(request, report, self.gpu.library, self.gpu.library, self.root())
            return
        script = "import sys; from tests.wiring.test_engines import child; sys.exit(child(sys.argv[1:]))"
        command = (sys.executable, "-c", script, self.version, self.trouble, str(self.root()))
        engines.build_in_child(request, progress, command)

    @contextmanager
    def site(self, kernels: Any = None) -> Iterator[Site]:
        with stand_ins(self.version, kernels) as gpu:
            site = self.open(gpu)
            yield site
            site.close()

    def open(self, gpu: Gpu) -> Site:
        self.gpu = gpu
        kernels = (lambda facts: cubin()) if gpu.kernels is not None else None
        return open_site(kernels, gpu.library, gpu.library, self.root())

    def ensure(self, bundle: Bundle) -> ReadyPlan:
        with self.site() as site:
            return ensure_engine(bundle, site.here, self.data, lambda doing, share: None, self.build)

    def verb(self, verb: Any, bundle: Bundle, **more: Any) -> tuple[int, str, str]:
        out, errors = io.StringIO(), io.StringIO()
        with stand_ins(self.version, host_library()) as gpu:
            code = verb(bundle.folder, self.data, out, errors, partial(self.open, gpu), build=self.build, **more)
            assert gpu.live() == 0 and gpu.live_handles() == 0 and gpu.left_pushed() == []
        return code, out.getvalue(), errors.getvalue()

    def licensed(self, bundle: Bundle, **more: Any) -> None:
        code, out, errors = self.verb(verbs.engine_licence, bundle, **more)
        assert code == 0, out + errors

    def engine_files(self, bundle: Bundle) -> list[str]:
        folder = EngineCache(self.data / "engines").folder_of(bundle.files["model.onnx"])
        return sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []


def cubin() -> bytes:
    """The header of one for sm_87, as CUDA 12.6 writes it."""
    image = bytearray(64)
    image[:4], image[7], image[8], image[18:20] = b"\x7fELF", 0x33, 7, (190).to_bytes(2, "little")
    image[48:52] = (0x00500500 + 87).to_bytes(4, "little")
    return bytes(image)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "tiny", promise={"false_rejects": 0.01})


def pictures(levels: list[int], side: int = 2 * SIDE, seed: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.clip(rng.normal(level, 6, (side, side)), 0, 255).astype(np.uint8) for level in levels]


def write_sample(folder: Path) -> Path:
    """Forty good parts and twenty of each defect."""
    for kind, levels in {"good": [*range(108, 148)], "dark": [*range(5, 25)], "bright": [*range(230, 250)]}.items():
        (folder / kind).mkdir(parents=True)
        for index, picture in enumerate(pictures(levels)):
            assert cv2.imwrite(str(folder / kind / f"{index:02}.png"), picture)
    return folder


def starved_bundle(folder: Path) -> Bundle:
    """INT8 calibrated on good parts alone: its range ends where defects begin, and every golden vector is reproduced."""
    graph = classifier()
    for one in graph.graph.initializer:
        if one.name == "image_8_scale":
            one.CopyFrom(tensor(one.name, np.float32(0.15 / 127)))
    levels = [105, 110, 115, 120, 130, 135, 140, 145]
    return write_bundle(folder, graph, meta(promise={"false_rejects": 0.01}), pictures(levels), "mono8")


# --- what is built, and from what ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_first_start_builds_float16_says_why_and_the_next_start_only_loads(box: Box, bundle: Bundle, version: str) -> None:
    box.version, box.apart = version, True
    ready = box.ensure(bundle)
    assert ready.precision == "float16" and "INT8 does not run: no INT8 engine was licensed" in ready.told[0]
    assert ready.key.tensorrt.startswith(version[:4]) and ready.key.l4t == "36.4.3" and ready.key.module == "p3767-0005"
    assert ready.figures.p50_ms > 0 and ready.digest == digest_of(ready.plan)
    again = box.ensure(bundle)
    assert (again.plan, box.builds) == (ready.plan, 1)


def test_a_build_tells_how_far_it_is(box: Box, bundle: Bundle) -> None:
    told: list[tuple[str, float]] = []
    box.apart = True
    with box.site() as site:
        ensure_engine(bundle, site.here, box.data, lambda *one: told.append(one), box.build)
    shares = [share for _, share in told]
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 3


def test_a_bundle_without_int8_runs_in_float16_and_wants_no_licence(box: Box, tmp_path: Path) -> None:
    plain = tiny_bundle(tmp_path / "plain", graph=classifier(int8=False))
    ready = box.ensure(plain)
    assert (ready.precision, ready.told) == ("float16", ())


def test_a_model_that_float16_cannot_hold_runs_in_float32(box: Box, tmp_path: Path) -> None:
    box.version, box.apart = VERSIONS[1], True
    huge = tiny_bundle(tmp_path / "huge", graph=classifier(int8=False, weight=1e5))
    ready = box.ensure(huge)
    assert ready.precision == "float32" and "float16 ends at" in " ".join(ready.told)


@pytest.mark.parametrize(
    ("free_mib", "workspace_mib"), [(7000, 1024), (4096, 1024), (4095, 512), (1500, 256), (600, 128), (100, 128), (0, 128)]
)
def test_the_workspace_is_a_quarter_of_what_is_free_in_steps(free_mib: int, workspace_mib: int) -> None:
    assert workspace_bytes(free_mib * MIB) == workspace_mib * MIB


def test_less_free_memory_at_a_later_start_builds_nothing_anew(box: Box, bundle: Bundle) -> None:
    with box.site() as site:
        for free_mib in (8000, 700):
            here = replace(site.here, free_bytes=free_mib * MIB)
            ready = ensure_engine(bundle, here, box.data, lambda doing, share: None, box.build)
    assert box.builds == 1 and ready.key.workspace_bytes == 1024 * MIB


# --- another key, and damage --------------------------------------------------------------------------------


def test_another_release_builds_anew_and_says_what_differs(box: Box, bundle: Bundle) -> None:
    box.ensure(bundle)
    box.l4t = "36.5.0"
    ready = box.ensure(bundle)
    assert box.builds == 2 and "built for another l4t (36.4.3 there, 36.5.0 here)" in " ".join(ready.told)
    assert len(box.engine_files(bundle)) == 2  # the old plan is gone


def test_another_tensorrt_never_sees_the_old_plan(box: Box, bundle: Bundle) -> None:
    box.ensure(bundle)
    box.version = VERSIONS[2]
    ready = box.ensure(bundle)
    assert box.builds == 2 and "tensorrt (10.3.0 there, 11.4" in " ".join(ready.told)


def test_a_firmware_that_makes_the_graph_otherwise_builds_anew(box: Box, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with box.site() as site:
        before = engines.key_of(bundle, "float16", site.here, 128 * MIB)
        int8 = engines.key_of(bundle, "int8", site.here, 128 * MIB)
        monkeypatch.setattr(engines, "_GRAPH_SOURCES", ("graph.py", "half_graph.py", "bundle.py"))
        assert engines.key_of(bundle, "float16", site.here, 128 * MIB) != before
        assert engines.key_of(bundle, "int8", site.here, 128 * MIB) == int8  # the bundle's own file


def test_a_cut_plan_is_never_loaded_and_is_built_anew(box: Box, bundle: Bundle) -> None:
    box.ensure(bundle)
    (plan,) = (box.data / "engines").glob("*/*.plan")
    os.truncate(plan, plan.stat().st_size // 2)
    ready = box.ensure(bundle)
    assert box.builds == 2 and "cut or altered" in " ".join(ready.told)
    assert ready.digest == digest_of(plan.read_bytes() if plan.exists() else ready.plan)


def test_another_power_mode_is_told_and_nothing_is_built(box: Box, bundle: Bundle) -> None:
    box.ensure(bundle)
    root = box.root()
    for name, text in {"etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=7W >\n", "var/lib/nvpmodel/status": "pmode:0000\n"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    ready = box.ensure(bundle)
    assert box.builds == 1 and "built in power mode unknown and runs in 7W" in " ".join(ready.told)


# --- the building process dies ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("SIGKILL", "killed, most likely for want of memory"), ("SIGSEGV", r"crashed \(SIGSEGV\)"),
        (".plan", "killed, most likely"), (".json", "killed, most likely"), ("bug", "ended with 1.*TypeError"),
    ],
)  # fmt: skip
def test_a_build_that_dies_is_told_leaves_nothing_half_and_the_next_start_builds(
    box: Box, bundle: Bundle, trouble: str, words: str
) -> None:
    box.trouble, box.apart = trouble, True
    with pytest.raises(EngineError, match=f"building the float16 engine of .*{words}"):
        box.ensure(bundle)
    assert "float16.json" not in box.engine_files(bundle)
    box.trouble = ""
    assert box.ensure(bundle).precision == "float16" and box.builds == 2
    assert not [name for name in box.engine_files(bundle) if name.startswith(".")]


def test_a_rebuild_that_dies_while_storing_leaves_the_engine_that_was_there(box: Box, bundle: Bundle) -> None:
    box.apart = True
    old = box.ensure(bundle)
    box.l4t, box.trouble = "36.5.0", ".json"
    with pytest.raises(EngineError):
        box.ensure(bundle)
    box.l4t = "36.4.3"  # the update was rolled back
    assert box.ensure(bundle).plan == old.plan and box.builds == 2


def test_what_libraries_print_is_not_taken_for_our_words(box: Box, bundle: Bundle) -> None:
    box.trouble, box.apart = "noise", True
    told: list[str] = []
    box.build(BuildRequest(bundle.folder, "float16", 128 * MIB, box.data), lambda doing, share: told.append(doing))
    assert "theirs" not in told and told[-1] == "built"


def scripted(line: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", f"import os, signal, sys\n{line}")


def test_a_build_that_hangs_is_ended_and_told(box: Box, bundle: Bundle) -> None:
    told: list[str] = []
    request = BuildRequest(bundle.folder, "int8", 128 * MIB, box.data)
    script = 'os.write(1, b\'{"doing": %d, "share": 0.5}\\n\' % os.getpid())\nsignal.pause()'
    with pytest.raises(EngineError, match="not a word for 1 s, so it was ended"):
        engines.build_in_child(request, lambda doing, share: told.append(doing), scripted(script), silent_s=1.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(told[0]), 0)


def test_a_stop_does_not_wait_for_the_next_word_of_a_build(box: Box, bundle: Bundle) -> None:
    """A kernel is timed for minutes without a word: whoever asks for the end (SIGTERM) is out within two seconds."""
    begun_ns, stop = now_ns(), threading.Event()
    request = BuildRequest(bundle.folder, "int8", 128 * MIB, box.data)
    pids: list[int] = []

    def progress(doing: str, share: float) -> None:
        pids.append(int(doing))
        if stop.is_set():
            raise EngineError("stopped")
        stop.set()  # the signal arrives right after the child's last word

    script = 'os.write(1, b\'{"doing": "%d", "share": 0.5}\\n\' % os.getpid())\nsignal.pause()'
    with pytest.raises(EngineError, match="^stopped"):
        engines.build_in_child(request, progress, scripted(script), silent_s=20.0)
    assert now_ns() - begun_ns < 2e9
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_a_build_that_cannot_be_begun_is_a_sentence(box: Box, bundle: Bundle) -> None:
    """No memory for a process, or a full disk under /tmp: inspectd says so and lives."""
    request = BuildRequest(bundle.folder, "int8", 128 * MIB, box.data)
    with pytest.raises(EngineError, match="cannot be begun.*No such file"):
        engines.build_in_child(request, lambda doing, share: None, ("/no/such/python",))


def test_the_system_that_lacks_memory_ends_the_build_and_not_the_gate(box: Box, bundle: Bundle) -> None:
    scores: set[str] = set()

    def progress(doing: str, share: float) -> None:
        for pid in Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split():
            scores.add(Path(f"/proc/{pid}/oom_score_adj").read_text().strip())

    box.apart = True
    box.build(BuildRequest(bundle.folder, "float16", 128 * MIB, box.data), progress)
    assert "1000" in scores


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('os.write(1, b\'{"error": "no driver"}\\n\'); sys.exit(1)', "no driver"),
        ("os.write(2, b'first\\nlast words\\n'); sys.exit(3)", r"ended with 3 \(first / last words\)"),
        ('os.write(1, b\'{"error": "cut\'); sys.exit(1)', "ended with 1"),
        ("os.write(1, b'x' * 300000); sys.exit(1)", "ended with 1"),
    ],
)
def test_whatever_the_process_leaves_becomes_a_sentence(box: Box, bundle: Bundle, script: str, words: str) -> None:
    request = BuildRequest(bundle.folder, "int8", 128 * MIB, box.data)
    with pytest.raises(EngineError, match=words):
        engines.build_in_child(request, lambda doing, share: None, scripted(script), silent_s=20.0)


def test_a_build_that_nobody_waits_for_any_more_ends(box: Box, bundle: Bundle) -> None:
    """Its parent was killed: the pipe has no reader."""
    reading, writing = os.pipe()
    os.close(reading)
    script = "import sys; from tests.wiring.test_engines import child; sys.exit(child(sys.argv[1:]))"
    line = [sys.executable, "-c", script, OLD, "", str(box.root()), "build", str(bundle.folder), "--precision", "float16",
            "--workspace", str(128 * MIB), "--data-dir", str(box.data)]  # fmt: skip
    done = subprocess.run(line, stdout=writing, timeout=60)
    os.close(writing)
    assert done.returncode == 1 and box.engine_files(bundle) == []


def test_a_model_that_is_replaced_before_its_build_is_not_kept_under_the_old_ones_digest(box: Box, bundle: Bundle) -> None:
    """An update copies a bundle in while another process waits for its turn to build."""
    bundle.onnx.write_bytes(classifier(weight=3.0).SerializeToString())
    for precision in ("int8", "float16"):
        with pytest.raises(engines.BundleError, match="was replaced"):
            engines.graph_of(bundle, precision, OLD)  # type: ignore[arg-type]


def test_two_builds_at_once_wait_for_each_other(box: Box, bundle: Bundle) -> None:
    folder = box.data / "engines"
    folder.mkdir(parents=True)
    lock = os.open(folder / ".building", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    told: list[str] = []

    def progress(doing: str, share: float) -> None:
        told.append(doing)
        if doing.startswith("waiting") and told.count(doing) == 1:
            os.close(lock)

    box.apart = True
    box.build(BuildRequest(bundle.folder, "float16", 128 * MIB, box.data), progress)
    words = [one for one in told if one != "beginning a build"]
    assert words[0] == "waiting for another build to end" and words[-1] == "built"


def test_without_a_driver_nothing_of_tensorrt_is_touched(box: Box, bundle: Bundle) -> None:
    out, errors = io.StringIO(), io.StringIO()
    for verb in (verbs.engine_build, verbs.engine_bench, verbs.engine_licence):
        with fake_tensorrt.installed(OLD, driver=False):  # a Runtime of it would end the process

            def nothing(name: str) -> Any:
                raise OSError(f"{name}: cannot open shared object file")

            assert verb(bundle.folder, box.data, out, errors, partial(open_site, None, nothing, nothing)) == 2
    lines = errors.getvalue().splitlines()
    assert len(lines) == 3 and all("no CUDA driver answers on this machine" in line for line in lines)
    assert not out.getvalue() and not (box.data / "engines").exists()


@pytest.mark.parametrize(
    ("release", "seconds", "kind"), [(True, 119, EngineLost), (True, 121, EngineError), (False, 5, EngineError)]
)
def test_a_jetson_that_just_booted_gets_its_driver_by_a_new_process(
    tmp_path: Path, release: bool, seconds: int, kind: type[EngineError]
) -> None:
    def nothing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    if release:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/nv_tegra_release").write_text("# R39 (release), REVISION: 2.1, GCID: 1, BOARD: generic\n")
    with fake_tensorrt.installed(OLD, driver=False), pytest.raises(EngineError, match="no CUDA driver answers") as caught:
        open_site(None, nothing, nothing, tmp_path, lambda: seconds * 10**9)
    assert type(caught.value) is kind


def test_without_tensorrt_the_verbs_say_what_is_missing(box: Box, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = io.StringIO()
    with stand_ins(OLD) as gpu:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        code = verbs.engine_build(bundle.folder, box.data, io.StringIO(), errors, partial(box.open, gpu))
        assert code == 2 and "python3-libnvinfer" in errors.getvalue() and gpu.left_pushed() == []


# --- the licence --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_licensed_int8_engine_runs(box: Box, bundle: Bundle, tmp_path: Path, version: str) -> None:
    box.version = version
    sample = write_sample(tmp_path / "images")
    code, out, errors = box.verb(verbs.engine_licence, bundle, images=sample, json_file=tmp_path / "licence.json")
    assert code == 0, out + errors
    assert "INT8 licence: granted (images, 80 images)" in out and "recall of dark" in out and "20/20 (83.2% to 100.0%)" in out
    told = json.loads((tmp_path / "licence.json").read_text())
    assert told["granted"] and told["basis"] == "images" and told["latency"]["of"] == verbs.LATENCY_RUNS
    ready = box.ensure(bundle)
    assert (ready.precision, ready.told) == ("int8", ())
    assert told["plan_digest"] == ready.digest and told["bundle_digest"] == bundle.digest


@pytest.mark.parametrize("version", VERSIONS)
def test_int8_that_flips_verdicts_is_refused_and_float16_runs(box: Box, tmp_path: Path, version: str) -> None:
    """Calibration that saw good parts only: golden vectors agree, every clear defect passes."""
    box.version = version
    starved = starved_bundle(tmp_path / "starved")
    write_sample(starved.folder / "sample")
    code, out, _ = box.verb(verbs.engine_licence, starved)
    assert code == 3 and "INT8 licence: refused (sample, 80 images)" in out
    assert "refused: 40 images that the float model catches go in INT8" in out and "the float16 engine runs" in out
    assert "refused: golden" not in out
    ready = box.ensure(starved)
    assert ready.precision == "float16" and "the INT8 licence was refused: 40 images" in ready.told[0]


def test_the_same_starved_engine_passes_on_its_golden_vectors_alone_and_says_what_that_is(box: Box, tmp_path: Path) -> None:
    starved = starved_bundle(tmp_path / "starved")
    code, out, _ = box.verb(verbs.engine_licence, starved)
    assert code == 0 and "granted (golden only, 8 images)" in out and "was not measured" in out


def test_int8_that_was_built_and_never_licensed_does_not_run(box: Box, bundle: Bundle) -> None:
    assert box.verb(verbs.engine_build, bundle)[0] == 0
    ready = box.ensure(bundle)
    assert ready.precision == "float16" and "there is no INT8 licence" in ready.told[0] and box.builds == 2


def test_a_licence_of_another_engine_is_refused(box: Box, bundle: Bundle) -> None:
    box.licensed(bundle)
    folder = next((box.data / "engines").glob("*/"))
    path = folder / engines.LICENCE_FILE
    licence = read_licence(path)
    assert licence is not None
    write_licence(path, replace(licence, plan_digest="sha256:" + "0" * 64))
    ready = box.ensure(bundle)
    assert ready.precision == "float16" and "this one was built since" in ready.told[0]


def test_a_licence_does_not_outlive_an_update_of_tensorrt(box: Box, bundle: Bundle) -> None:
    box.licensed(bundle)
    box.version = VERSIONS[1]
    ready = box.ensure(bundle)
    assert ready.precision == "float16" and "built for another tensorrt" in ready.told[0]


def test_a_licence_of_another_revision_of_the_bundle_is_refused(box: Box, bundle: Bundle, tmp_path: Path) -> None:
    """Same network, other thresholds: the engine is found, its licence does not hold."""
    box.licensed(bundle)
    stricter = tiny_bundle(tmp_path / "tiny", thresholds={"review_at": 0.2, "fail_at": 0.3})
    assert stricter.files["model.onnx"] == bundle.files["model.onnx"]
    ready = box.ensure(stricter)
    assert ready.precision == "float16" and "another revision of the bundle" in ready.told[0]


def test_a_cut_licence_is_no_licence(box: Box, bundle: Bundle) -> None:
    box.licensed(bundle)
    (path,) = (box.data / "engines").glob(f"*/{engines.LICENCE_FILE}")
    os.truncate(path, path.stat().st_size - 10)
    ready = box.ensure(bundle)
    assert ready.precision == "float16" and "is not what was written there" in ready.told[0]


def test_a_cut_int8_plan_is_not_built_anew_for_a_licence_that_would_not_hold(box: Box, bundle: Bundle) -> None:
    box.licensed(bundle)
    (plan,) = (box.data / "engines").glob("*/int8-*.plan")
    os.truncate(plan, 100)
    ready = box.ensure(bundle)
    assert ready.precision == "float16" and "cut or altered" in ready.told[0]


def test_an_anomaly_bundle_takes_every_folder_that_is_not_good_for_a_kind_of_defect(box: Box, tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "anomaly", "anomaly", promise={"false_rejects": 0.2})
    for kind, level in (("good", 40), ("stain", 230)):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for index, picture in enumerate(pictures([level] * 20)):
            assert cv2.imwrite(str(tmp_path / "images" / kind / f"{index}.png"), picture)
    code, out, errors = box.verb(verbs.engine_licence, made, images=tmp_path / "images")
    assert code == 0 and "recall of stain" in out and "remark" not in out, out + errors


def test_images_without_a_class_are_refused_in_words(box: Box, bundle: Bundle, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "loose.png"), pictures([120])[0])
    code, _, errors = box.verb(verbs.engine_licence, bundle, images=tmp_path)
    assert code == 2 and "lies in no class's folder" in errors


def test_a_float_bundle_has_nothing_to_license(box: Box, tmp_path: Path) -> None:
    plain = tiny_bundle(tmp_path / "plain", graph=classifier(int8=False))
    code, _, errors = box.verb(verbs.engine_licence, plain)
    assert code == 2 and "nothing to license" in errors


# --- build and bench ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_build_makes_both_engines_and_tells_their_figures(box: Box, bundle: Bundle, tmp_path: Path, version: str) -> None:
    box.version = version
    code, out, errors = box.verb(verbs.engine_build, bundle, json_file=tmp_path / "built.json")
    assert code == 0, errors
    assert [line.split()[0] for line in out.splitlines()] == ["precision", "int8", "float16"]
    assert "100% int8: built" in errors
    told = json.loads((tmp_path / "built.json").read_text())
    assert [row["precision"] for row in told["engines"]] == ["int8", "float16"] and told["module"]["l4t"] == "36.4.3"


@pytest.mark.parametrize("version", VERSIONS)
def test_bench_times_every_precision_and_keeps_the_fastest(box: Box, bundle: Bundle, tmp_path: Path, version: str) -> None:
    box.version = version
    code, out, errors = box.verb(verbs.engine_bench, bundle, json_file=tmp_path / "bench.json")
    assert code == 0, out + errors
    rows = json.loads((tmp_path / "bench.json").read_text())["precisions"]
    assert [row["precision"] for row in rows] == ["int8", "float16", "float32"] and all(not row["golden"] for row in rows)
    assert rows[0]["int8_layers"] > 0 and rows[1]["int8_layers"] == 0
    fastest = min(rows, key=lambda row: row["p50_ms"])["precision"]
    assert f"kept: {fastest}" in out
    box.licensed(bundle)
    assert box.ensure(bundle).precision == fastest and box.builds == 3


def choose(box: Box, bundle: Bundle, *order: Any) -> Path:
    folder = EngineCache(box.data / "engines").folder_of(bundle.files["model.onnx"])
    folder.mkdir(parents=True, exist_ok=True)
    with box.site() as site:
        engines.write_choice(folder / engines.CHOICE_FILE, order, bundle, site.here)
    return folder / engines.CHOICE_FILE


def test_a_faster_float16_runs_though_int8_is_licensed(box: Box, bundle: Bundle) -> None:
    box.licensed(bundle)
    choose(box, bundle, "float16", "int8")
    assert box.ensure(bundle).precision == "float16"


def test_a_benched_int8_still_wants_its_licence(box: Box, bundle: Bundle) -> None:
    choose(box, bundle, "int8", "float16", "float32")
    ready = box.ensure(bundle)
    assert ready.precision == "float16" and "INT8 does not run" in " ".join(ready.told)


def test_a_float16_that_failed_its_golden_vectors_is_not_what_runs_instead(box: Box, bundle: Bundle) -> None:
    choose(box, bundle, "int8", "float32")
    assert box.ensure(bundle).precision == "float32"


def test_a_bench_of_another_release_decides_nothing(box: Box, bundle: Bundle) -> None:
    choose(box, bundle, "float32")
    box.l4t = "36.5.0"
    assert box.ensure(bundle).precision == "float16"


def test_a_damaged_bench_decides_nothing(box: Box, bundle: Bundle) -> None:
    path = choose(box, bundle, "float32")
    os.truncate(path, 20)
    assert box.ensure(bundle).precision == "float16"


# --- a network of the plan ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("task", ["classify", "anomaly"])
def test_the_plan_that_runs_reproduces_the_golden_vectors(box: Box, tmp_path: Path, version: str, task: str) -> None:
    box.version = version
    made = tiny_bundle(tmp_path / task, task)
    with box.site(host_library()) as site:
        ready = ensure_engine(made, site.here, box.data, lambda doing, share: None, box.build)
        network, slower = start_network(site, made, ready)
        assert slower is None and len(replay_all(network, made)) == 8
        assert network.identity["precision"] == "float16" and network.identity["engine"].startswith("tensorrt-1")
        network.close()


def test_an_engine_that_became_slow_is_told_at_start(box: Box, bundle: Bundle) -> None:
    with box.site(host_library()) as site:
        ready = ensure_engine(bundle, site.here, box.data, lambda doing, share: None, box.build)
        quick = replace(ready, figures=replace(ready.figures, p50_ms=-1.0))
        network, slower = start_network(site, bundle, quick)
        network.close()
        assert slower is not None and "took -1.00 ms when it was built" in slower


def test_another_thread_of_this_process_may_ensure_too(box: Box, bundle: Bundle) -> None:
    """inspectd's judge is no main thread."""
    done: list[ReadyPlan] = []
    box.apart = True
    thread = threading.Thread(target=lambda: done.append(box.ensure(bundle)))
    thread.start()
    thread.join(60)
    assert done and done[0].precision == "float16"


def test_a_build_ends_with_the_station_that_wanted_it() -> None:
    """Killed, the station cannot end it: the kernel does, or a build of minutes holds memory and the lock."""
    child = "import time; from appliance.wiring.engines import _end_with_the_parent as end; end(); print(1, flush=True)"
    child += "; time.sleep(600)"
    parent = f"import subprocess, sys; one = subprocess.Popen([sys.executable, '-c', {child!r}])"
    parent += "; print(one.pid, flush=True); one.wait()"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as station:
        assert station.stdout is not None
        pid = int(station.stdout.readline())
        assert station.stdout.readline() == "1\n"
        station.kill()
    until(lambda: not Path(f"/proc/{pid}/stat").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z")
