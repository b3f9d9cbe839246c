"""./build.sh image --selftest: the arm64 package in stand-ins of JetPack 6.2 and 7.2, every program under qemu-user.

Not in CI: fetching an arm64 Debian takes minutes once (kept in build/image), and so does judging 2,000 pictures by an
emulated processor. The root file system is Debian 12, whose Python is 3.11: Ubuntu's mirrors for arm64 cannot be relied
on, and the package for 3.10 or 3.12 differs in its wheels, not in its steps."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calibration.image.cuda import PYCUDA
from calibration.image.emulation import SHARED, Inside
from calibration.image.rootfs import tree_digest
from tests.box import image_checks, stand_in_l4t

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "image"
DEBIAN = KEPT / "bookworm-arm64.tar"
PACKAGES = (
    "systemd-sysv,udev,python3,dbus,kmod,ca-certificates,systemd-timesyncd,openssh-server,unattended-upgrades,bluez,sudo,"
    "iproute2,passwd,mosquitto"
)
PARTS = {"6.2": 1000, "7.2": 100}
FLASH = {
    "6.2": "sudo ./tools/kernel_flash/l4t_initrd_flash.sh --external-device nvme0n1p1 "
    '-c tools/kernel_flash/flash_l4t_t234_nvme.xml -p "-c bootloader/generic/cfg/flash_t234_qspi.xml" '
    "--erase-all --showlogs --network usb0 jetson-orin-nano-devkit-super internal",
    "7.2": "sudo ./l4t_initrd_flash.sh --erase-all jetson-orin-nano-devkit-super internal",
}

pytestmark = [
    pytest.mark.skipif("APPLIANCE_ARM64" not in os.environ, reason="./build.sh image --selftest runs it (some minutes)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a root file system is root's"),
    pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="no mmdebstrap"),
    pytest.mark.skipif(shutil.which("qemu-aarch64-static") is None, reason="no qemu-user-static"),
    pytest.mark.skipif(shutil.which("arch-test") is None, reason="no arch-test, which mmdebstrap asks before another processor"),
    pytest.mark.timeout(3600),
]


def told(text: str) -> None:
    print(text, flush=True)


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minimal arm64 Debian 12, unpacked."""
    if not DEBIAN.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        began, new = time.monotonic(), DEBIAN.with_name("new.tar")
        share = tmp_path_factory.mktemp("share")
        command = ["mmdebstrap", "--arch=arm64", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(new)]
        Inside(share, "aarch64", share).beside(command, KEPT)
        new.rename(DEBIAN)
        told(f"arm64 Debian made in {time.monotonic() - began:.0f} s")
    folder = tmp_path_factory.mktemp("debian")
    subprocess.run(["tar", "-C", str(folder), "-xf", str(DEBIAN)], check=True)
    return folder


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deb")
    command = [sys.executable, "-m", "calibration.package", "--arch", "arm64", "--python", "3.11", "--no-bundle"]
    subprocess.run([*command, "-o", str(folder)], cwd=ROOT, check=True)
    return next(folder.glob("*.deb"))


def image(l4t: Path, jetpack: str, deb: Path, *more: str) -> str:
    command = [sys.executable, "-m", "calibration.image", "--l4t", str(l4t), "--jetpack", jetpack, "--deb", str(deb)]
    done = subprocess.run([*command, "--any-python", *more], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=["6.2", "7.2"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, debian: Path, deb: Path) -> tuple[str, Path]:
    l4t = stand_in_l4t.make(tmp_path_factory.mktemp(f"jetpack-{request.param}"), debian, request.param)
    began = time.monotonic()
    said = image(l4t, request.param, deb, "--station", str(stand_in_l4t.gpio_station(l4t.parent)))
    told(f"JetPack {request.param}: image made in {time.monotonic() - began:.0f} s")
    assert "doing    package" in said
    return request.param, l4t


@pytest.fixture
def inside(made: tuple[str, Path], tmp_path: Path) -> Inside:
    return Inside(made[1] / "rootfs", "aarch64", tmp_path)


def test_nobody_gets_in_and_nothing_runs_that_is_not_needed(made: tuple[str, Path]) -> None:
    rootfs = made[1] / "rootfs"
    image_checks.nobody_gets_in(rootfs)
    image_checks.quiet(rootfs)
    image_checks.held(rootfs)


def test_units_are_enabled_and_right_for_the_systemd_in_there(made: tuple[str, Path], inside: Inside) -> None:
    rootfs = made[1] / "rootfs"
    ours = ("appliance", "rejectd", "inspectd", "reportd")
    units = sorted(path.name for path in (rootfs / "usr/lib/systemd/system").iterdir() if path.name.startswith(ours))
    assert {"appliance.target", "rejectd.service", "inspectd.service", "reportd.service"} <= set(units)
    assert image_checks.starts_by_itself(rootfs, "appliance.target")
    with inside.layer() as layer:
        said = layer.must(["systemd-analyze", "verify", "--man=no", *(unit.replace("@.", "@x.") for unit in units)])
    assert [line for line in said.splitlines() if "appliance" in line or "/usr/lib/systemd" in line] == []
    assert list((rootfs / "usr/lib/udev/rules.d").glob("*appliance.rules"))


# Everything at the top of the vendored packages that can be imported, each in its turn.
_IMPORTS = """
import importlib, pathlib, sys
folder = pathlib.Path("/usr/lib/appliance/packages")
sys.path[:0] = ["/usr/lib/appliance", str(folder)]
for path in sorted(folder.iterdir()):
    if (path / "__init__.py").is_file() or path.suffix in (".py", ".so"):
        importlib.import_module(path.name.split(".")[0])
        print("imported", path.name)
"""


def test_every_vendored_package_is_imported(inside: Inside, made: tuple[str, Path]) -> None:
    rootfs = made[1] / "rootfs"
    packages = list((rootfs / "usr/lib/appliance/packages").glob("*.dist-info"))
    began = time.monotonic()
    with inside.layer() as layer:
        said = layer.must(["python3", "-c", _IMPORTS])
    modules = [line for line in said.splitlines() if line.startswith("imported ")]
    told(f"{len(modules)} modules of {len(packages)} packages imported in {time.monotonic() - began:.0f} s")
    assert len(packages) >= 30 and len(modules) >= len(packages)


def test_the_station_is_checked_and_its_line_rehearsed(inside: Inside, made: tuple[str, Path]) -> None:
    (KEPT / "judged").mkdir(parents=True, exist_ok=True)
    shared = shutil.copytree(KEPT / "judged", inside.share / "cache")
    shipped = (made[1] / "rootfs/usr/share/appliance/station.yaml").read_text()
    (inside.share / "station.yaml").write_text(shipped + "\nengine: cpu\n")  # by its release this is a Jetson, without a GPU
    with inside.layer() as layer:
        said = layer.must(["appliance", "check", f"{SHARED}/station.yaml"])
        assert "valid, revision" in said
        began, parts = time.monotonic(), PARTS[made[0]]
        command = ["appliance", "rehearse", "--fast", "--parts", str(parts), "-c", f"{SHARED}/station.yaml"]
        said = layer.must(command, {"XDG_CACHE_HOME": f"{SHARED}/cache"})
    told(f"rehearsed {parts} parts in {time.monotonic() - began:.0f} s\n" + "\n".join(said.splitlines()[-20:]))
    shutil.copytree(shared, KEPT / "judged", dirs_exist_ok=True)  # the pictures are judged once for both releases
    assert "PASSED" in said and "escapes  0" in said and re.search(rf"closed, {parts} records", said)


def test_check_says_what_the_box_does_not_have(inside: Inside, made: tuple[str, Path]) -> None:
    shipped = (made[1] / "rootfs/usr/share/appliance/station.yaml").read_text()
    camera = "source: csi://0\n    exposure_us: auto\n    trigger: free-run"
    text = shipped.replace("source: twin://top", camera).replace("pixel: mono8", "pixel: auto")
    (inside.share / "station.yaml").write_text(text)
    with inside.layer() as layer:
        said = layer.run(["appliance", "check", f"{SHARED}/station.yaml"]).said
    release = {"6.2": "this box (L4T 36.4.7)", "7.2": "JetPack 7 (L4T 39.2.1)"}[made[0]]
    assert f"cameras.top.source: csi:// needs jetson-utils, which {release} does not have" in said


def test_flashing_is_nvidias_own_command(made: tuple[str, Path], deb: Path) -> None:
    jetpack, l4t = made
    text = (l4t / "appliance/FLASH.txt").read_text()
    (line,) = [one.strip() for one in text.splitlines() if one.strip().startswith("sudo ") and "flash.sh" in one]
    assert line == FLASH[jetpack]
    subprocess.run(["sh", "-c", line.removeprefix("sudo ")], cwd=l4t, check=True)
    assert (l4t / "calls.log").read_text().splitlines()[-1].startswith("l4t_initrd_flash.sh --e")


def test_a_second_run_changes_nothing(made: tuple[str, Path], deb: Path) -> None:
    jetpack, l4t = made
    before = tree_digest(l4t)
    said = image(l4t, jetpack, deb, "--station", str(stand_in_l4t.gpio_station(l4t.parent)))
    assert "nothing to do" in said and "doing" not in said
    assert tree_digest(l4t) == before


@pytest.mark.skipif(os.environ.get("APPLIANCE_ARM64") != "pycuda", reason="./build.sh image --selftest pycuda builds it (long)")
def test_pycuda_is_built_against_cudas_header_wheels_and_its_compiler_is_gone(
    made: tuple[str, Path], deb: Path, tmp_path: Path
) -> None:
    jetpack, l4t = made
    before = sorted(Inside(l4t / "rootfs", "aarch64", tmp_path).must(["dpkg-query", "-W"]).splitlines())
    wanted = ("--station", str(stand_in_l4t.gpio_station(l4t.parent)), "--pycuda-from-wheels")
    began = time.monotonic()
    assert f"build {PYCUDA}" in image(l4t, jetpack, deb, *wanted)
    told(f"JetPack {jetpack}: PyCUDA built in {time.monotonic() - began:.0f} s")
    inside = Inside(l4t / "rootfs", "aarch64", tmp_path)
    assert sorted(inside.must(["dpkg-query", "-W"]).splitlines()) == before, "the compiler went into the image"
    driver = next((l4t / "rootfs/usr/local/lib").glob("python3*/dist-packages/pycuda/_driver*.so"))
    assert struct.unpack_from("<H", driver.read_bytes(), 18) == (183,), "not for arm64"
    # All of it loads, beside the firmware's own numpy, but for NVIDIA's libraries, which JetPack brings.
    beside = "import sys; sys.path.append('/usr/lib/appliance/packages'); "
    said = inside.run(["python3", "-c", f"{beside}import pycuda.compiler, pycuda.driver"]).said
    lacking = re.findall(r"ImportError: (lib\S+?): cannot open", said)
    assert [name.split(".")[0] for name in lacking] in (["libcuda"], ["libcurand"]), said
    version = inside.must(["python3", "-c", "import pycuda; print(pycuda.VERSION_TEXT)"]).split()[-1]
    assert version == PYCUDA.partition("==")[2]
    assert "nothing to do" in image(l4t, jetpack, deb, *wanted)
