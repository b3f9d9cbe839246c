"""JetPack's own libraries, and what has to be compiled against them: PyCUDA; for 6.2 jetson-utils and jetson-inference.

The compilers never enter the image. They are installed, and everything is built, in a layer over the root file system
that is thrown away; what comes out of it is a folder of finished files, and those are copied in."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from calibration.image.debian import nvidia_lists
from calibration.image.emulation import SHARED, Inside
from calibration.image.jetpack import JetPack
from calibration.image.rootfs import ImageError, Rootfs
from calibration.image.step import Step

PYCUDA = "pycuda==2026.1"  # 2025.1.2 or later is needed for CUDA 13; no wheel of any version exists
# jetson-inference brings jetson-utils as its submodule, at the commit that it was last changed for.
JETSON_INFERENCE = "45da40a8"
_JETSON_SOURCE = "https://github.com/dusty-nv/jetson-inference"
_SCRIPTS = Path(__file__).parent / "scripts"
_SOC = {"6.2": "t234", "7.2": "t234"}
# Built for hours where a Jetson takes minutes: every instruction of the compiler is emulated.
_LONGEST_BUILD_S = 6 * 3600


def gpu_steps(jetpack: JetPack, rootfs: Rootfs, inside: Callable[[], Inside], pycuda: bool, jetson_utils: bool) -> list[Step]:
    """The steps that were asked for. Raises ImageError for jetson-utils on 7.2, whose compiler refuses its list of GPUs."""
    if jetson_utils and not jetpack.jetson_utils:
        raise ImageError(f"jetson-utils does not build on JetPack {jetpack.name} (its CUDA refuses the old GPUs on its list): "
                         "leave --with-jetson-utils out; cameras by v4l2:// and gige:// need neither")  # fmt: skip
    steps = []
    if pycuda or jetson_utils:
        steps.append(
            Step("JetPack", f"install {', '.join(_runtime(jetpack))}", "the engine, and what it runs on; one release together",
                 lambda: not _missing(rootfs, _runtime(jetpack)), lambda: _install(rootfs, inside(), jetpack))
        )  # fmt: skip
        steps.append(
            Step("PyCUDA", f"build {PYCUDA} against CUDA {jetpack.cuda}", "there is no wheel of it",
                 lambda: pycuda_is_there(rootfs),
                 lambda: build_pycuda(rootfs, inside(), _SCRIPTS / "pycuda.sh", {"CUDA_PACKAGES": " ".join(_headers(jetpack))},
                                      nvidia_lists(rootfs, _SOC[jetpack.name])))
        )  # fmt: skip
    if jetson_utils:
        steps.append(
            Step("jetson-utils", f"build jetson-inference {JETSON_INFERENCE} and its jetson-utils", "csi:// and rtsp:// need it",
                 lambda: rootfs.path(_jetson_extension(rootfs)).is_file(), lambda: _build_jetson(rootfs, inside(), jetpack))
        )  # fmt: skip
    return steps


def pycuda_is_there(rootfs: Rootfs) -> bool:
    """Whether the pinned PyCUDA is whole; its metadata is put there last."""
    return rootfs.path(f"{_site(rootfs)}/pycuda-{PYCUDA.partition('==')[2]}.dist-info/METADATA").is_file()


def build_pycuda(rootfs: Rootfs, inside: Inside, script: Path, settings: dict[str, str], lists: dict[str, str]) -> list[Path]:
    """Wheels of PyCUDA and what it needs beside numpy, built in a layer and unpacked into the root file system."""
    shutil.copyfile(script, inside.share / script.name)
    out = inside.share / "wheels"
    out.mkdir(exist_ok=True)
    with inside.layer() as layer:
        for name, text in lists.items():
            (inside.share / name).write_text(text, encoding="utf-8")
        environment = {"REQUIREMENT": PYCUDA, "OUT": f"{SHARED}/wheels", **settings}
        layer.must(["sh", "-e", f"{SHARED}/{script.name}"], environment, _LONGEST_BUILD_S)
    wheels = sorted(out.glob("*.whl"), key=lambda wheel: wheel.name.startswith("pycuda-"))
    if not wheels or not wheels[-1].name.startswith("pycuda-"):
        raise ImageError(f"{script.name} ended well and left no wheel of PyCUDA")
    for wheel in wheels:
        _unpack(wheel, rootfs.path(_site(rootfs)))
    return wheels


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
    return ("python3-libnvinfer", f"cuda-cudart-{jetpack.cuda}", f"libcurand-{jetpack.cuda}")


def _headers(jetpack: JetPack) -> tuple[str, ...]:
    return tuple(f"{name}-{jetpack.cuda}" for name in ("cuda-nvcc", "cuda-cudart-dev", "libcurand-dev", "cuda-profiler-api"))


def _missing(rootfs: Rootfs, names: tuple[str, ...]) -> list[str]:
    there = rootfs.packages()
    return [name for name in names if name not in there or there[name].state != "installed"]


def _install(rootfs: Rootfs, inside: Inside, jetpack: JetPack) -> None:
    options = _options(inside, nvidia_lists(rootfs, _SOC[jetpack.name]))
    inside.must(["apt-get", *options, "update"])
    inside.must(["apt-get", *options, "install", "--yes", "--no-install-recommends", *_missing(rootfs, _runtime(jetpack))])
    inside.must(["apt-get", "clean"])


def _options(inside: Inside, lists: dict[str, str]) -> list[str]:
    folder = inside.share / "nvidia"
    folder.mkdir(exist_ok=True)
    for name, text in lists.items():
        (folder / name).write_text(text, encoding="utf-8")
    return ["-o", f"Dir::Etc::sourceparts={SHARED}/nvidia"]


def _jetson_extension(rootfs: Rootfs) -> str:
    return f"usr/lib/python{rootfs.python()}/dist-packages/jetson_inference_python.so"


def _build_jetson(rootfs: Rootfs, inside: Inside, jetpack: JetPack) -> None:
    raise ImageError("not yet")
