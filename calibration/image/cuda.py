"""JetPack's own libraries, and what has to be compiled against them: PyCUDA; for 6.2 jetson-utils and jetson-inference.

The compilers never enter the image. They are installed, and everything is built, in a layer over the root file system
that is thrown away; what comes out of it is a folder of finished files, and those are copied in."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from calibration.image import jetson_utils
from calibration.image.debian import PLACEHOLDER, nvidia_lists, readable_lists
from calibration.image.emulation import SHARED, Inside
from calibration.image.jetpack import JetPack
from calibration.image.rootfs import ImageError, Rootfs
from calibration.image.step import Step
from calibration.package.lock import read_lock, run_time_pins
from calibration.package.target import Target

PYCUDA = "pycuda==2026.1"  # as pycuda.lock has it; 2025.1.2 or later is needed for CUDA 13; no wheel of any version exists
_TENSORRT = ("python3-libnvinfer",)
_HERE = Path(__file__).resolve().parent
_SCRIPTS = _HERE / "scripts"
_ORIN = "t234"  # in NVIDIA's lists; nobody here has read what Thor is called in them
# Every instruction of the compiler is emulated; only PyCUDA's time is known (tests/box/test_image_emulated.py).
_LONGEST_BUILD_S = 6 * 3600


@dataclass(frozen=True)
class Gpu:
    """What was asked for. ``pycuda_from_wheels``: without NVIDIA's package lists, where they cannot be reached; ``board``:
    whose chip those lists are for."""

    board: str
    pycuda: bool = False
    jetson_utils: bool = False
    pycuda_from_wheels: bool = False


def gpu_steps(jetpack: JetPack, rootfs: Rootfs, inside: Callable[[], Inside], wanted: Gpu) -> list[Step]:
    """The steps that were asked for. Raises ImageError for jetson-utils on 7.2, whose compiler refuses its list of GPUs."""
    if wanted.jetson_utils and not jetpack.jetson_utils:
        raise ImageError(f"jetson-utils does not build on JetPack {jetpack.name} (its CUDA refuses the old GPUs on its list): "
                         "leave --with-jetson-utils out; cameras by v4l2:// and gige:// need neither")  # fmt: skip
    steps = []
    if wanted.pycuda or wanted.jetson_utils:
        steps.append(
            Step("JetPack", f"install {', '.join(_runtime(jetpack))}", "the engine, and what it runs on; one release together",
                 lambda: not _missing(rootfs, _runtime(jetpack)), lambda: _install(rootfs, inside(), jetpack, wanted.board))
        )  # fmt: skip
    if wanted.pycuda or wanted.jetson_utils or wanted.pycuda_from_wheels:
        steps.append(
            Step("PyCUDA", f"build {PYCUDA} against CUDA {jetpack.cuda.replace('-', '.')}", "there is no wheel of it",
                 lambda: pycuda_is_there(rootfs), lambda: _build_pycuda(rootfs, inside(), jetpack, wanted))
        )  # fmt: skip
    if wanted.jetson_utils:
        steps.append(
            Step("jetson-utils", f"build jetson-inference {jetson_utils.JETSON_INFERENCE[:8]} with its jetson-utils", "csi:// and rtsp://",
                 lambda: jetson_utils.is_there(rootfs),
                 lambda: _build_jetson(rootfs, inside(), jetpack, wanted.board))
        )  # fmt: skip
    return steps


def pycuda_is_there(rootfs: Rootfs) -> bool:
    """Whether the pinned PyCUDA is whole; its metadata is put there last."""
    return rootfs.path(f"{_site(rootfs)}/pycuda-{PYCUDA.partition('==')[2]}.dist-info/METADATA").is_file()


def missing_for_the_gpu(rootfs: Rootfs) -> list[str]:
    """What TensorRT on the GPU wants and is not there."""
    return [*(["TensorRT"] if _missing(rootfs, _TENSORRT) else []), *([] if pycuda_is_there(rootfs) else ["PyCUDA"])]


def _build_pycuda(rootfs: Rootfs, inside: Inside, jetpack: JetPack, wanted: Gpu) -> None:
    """Wheels of PyCUDA and of what it needs, built in a layer, unpacked into the root file system."""
    settings = {"OUT": f"{SHARED}/wheels"}
    for file in (_SCRIPTS / "pycuda_wheel.sh", _HERE / "pycuda.lock", _HERE / "pycuda_build.lock"):
        shutil.copyfile(file, inside.share / file.name)
    _share_numpy(rootfs, inside)
    if wanted.pycuda_from_wheels:
        shutil.copyfile(_HERE / f"cuda_headers_{jetpack.cuda.replace('-', '.')}.lock", inside.share / "cuda_headers.lock")
        settings |= {"LISTS": " ".join(readable_lists(rootfs, inside.share))}
        _in_a_layer(inside, "pycuda_from_wheels.sh", settings)
    else:
        lists = _nvidia(rootfs, inside, jetpack, wanted.board)
        settings |= {"CUDA_PACKAGES": " ".join(_headers(jetpack)), "LISTS": " ".join(lists)}
        _in_a_layer(inside, "pycuda.sh", settings)
    wheels = sorted((inside.share / "wheels").glob("*.whl"), key=lambda wheel: wheel.name.startswith("pycuda-"))
    if not wheels or not wheels[-1].name.startswith("pycuda-"):
        raise ImageError("the build ended well and left no wheel of PyCUDA")
    for wheel in wheels:  # PyCUDA last: what it needs is there when it is
        _unpack(wheel, rootfs.path(_site(rootfs)))


def _share_numpy(rootfs: Rootfs, inside: Inside) -> None:
    """The firmware's own as pip reads it: extensions are to be built against what they will stand beside."""
    pins = read_lock((_HERE.parents[1] / "appliance/requirements.lock").read_text(encoding="utf-8"))
    (pin,) = run_time_pins(pins, ["numpy"], Target("arm64", rootfs.python()))
    (inside.share / "numpy.txt").write_text(f"{pin.line()}\n", encoding="utf-8")


def _in_a_layer(inside: Inside, script: str, settings: dict[str, str]) -> None:
    shutil.copyfile(_SCRIPTS / script, inside.share / script)
    with inside.layer() as layer:
        layer.must(["sh", "-e", f"{SHARED}/{script}"], settings, _LONGEST_BUILD_S)


def _unpack(wheel: Path, site: Path) -> None:
    site.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(archive.namelist(), key=lambda name: name.endswith(".dist-info/METADATA"))
        for name in names:
            if ".data/" in name.split("/", 1)[0] + "/" and not name.endswith("/"):
                continue  # scripts and headers for developers
            archive.extract(name, site)


def _site(rootfs: Rootfs) -> str:
    """Where Debian's and Ubuntu's Python looks for what was installed by hand, whichever slot of ours runs."""
    return f"usr/local/lib/python{rootfs.python()}/dist-packages"


def _runtime(jetpack: JetPack) -> tuple[str, ...]:
    return (*_TENSORRT, f"cuda-cudart-{jetpack.cuda}", f"libcurand-{jetpack.cuda}")


def _headers(jetpack: JetPack) -> tuple[str, ...]:
    return tuple(f"{name}-{jetpack.cuda}" for name in ("cuda-nvcc", "cuda-cudart-dev", "libcurand-dev", "cuda-profiler-api"))


def _missing(rootfs: Rootfs, names: tuple[str, ...]) -> list[str]:
    there = rootfs.packages()
    return [name for name in names if name not in there or there[name].state != "installed"]


def _install(rootfs: Rootfs, inside: Inside, jetpack: JetPack, board: str) -> None:
    options = _nvidia(rootfs, inside, jetpack, board)
    inside.must(["apt-get", *options, "update"])
    inside.must(["apt-get", *options, "install", "--yes", "--no-install-recommends", *_missing(rootfs, _runtime(jetpack))])
    inside.must(["apt-get", "clean"])


def soc(jetpack: JetPack, board: str) -> str:
    """The chip's name in NVIDIA's lists. Raises ImageError where it is not known."""
    if jetpack.orin_only or "orin" in board:
        return _ORIN
    raise ImageError(f"nobody here knows what the chip of {board} is called in NVIDIA's lists: write its name in place of <SOC> "
                     "in rootfs/etc/apt/sources.list.d yourself, or take a board with orin in its name")  # fmt: skip


def filled_lists(rootfs: Rootfs, jetpack: JetPack, board: str) -> dict[str, str]:
    """All lists, NVIDIA's with the placeholder filled in as the first boot fills it."""
    left = any(PLACEHOLDER in text for text in nvidia_lists(rootfs, PLACEHOLDER).values())
    return nvidia_lists(rootfs, soc(jetpack, board) if left else PLACEHOLDER)


def _nvidia(rootfs: Rootfs, inside: Inside, jetpack: JetPack, board: str) -> list[str]:
    """apt's options for those."""
    folder = inside.share / "nvidia"
    folder.mkdir(exist_ok=True)
    for name, text in filled_lists(rootfs, jetpack, board).items():
        (folder / name).write_text(text, encoding="utf-8")
    return ["-o", f"Dir::Etc::sourceparts={SHARED}/nvidia"]


def _build_jetson(rootfs: Rootfs, inside: Inside, jetpack: JetPack, board: str) -> None:
    packages = " ".join((*_headers(jetpack), *(f"{name}-{jetpack.cuda}" for name in ("libnpp-dev", "libcublas-dev"))))
    lists = _nvidia(rootfs, inside, jetpack, board)
    shutil.copyfile(_SCRIPTS / "runtime_packages.sh", inside.share / "runtime_packages.sh")
    _share_numpy(rootfs, inside)
    _in_a_layer(inside, "jetson_inference.sh", {
        "SOURCE": jetson_utils.JETSON_SOURCE, "COMMIT": jetson_utils.JETSON_INFERENCE, "OUT": f"{SHARED}/jetson",
        "CUDA_PACKAGES": packages, "LISTS": " ".join(lists), "NUMPY": f"{SHARED}/numpy.txt", "PACKAGES": f"{SHARED}/packages",
    })  # fmt: skip
    jetson_utils.put_in(rootfs, inside, lists)
