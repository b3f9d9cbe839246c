"""The image's parts, each by itself, and the whole on an amd64 Debian, which needs no emulation.

test_image_emulated.py does the same with the real package for arm64; it is not for every day."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import threading
from functools import cache
from pathlib import Path

import pytest

from calibration.image import __main__ as verb
from calibration.image import accounts, cuda, jetson_utils
from calibration.image.cuda import PYCUDA, Gpu, filled_lists, gpu_steps, soc
from calibration.image.debian import find_deb, nvidia_lists, read_deb, readable_lists
from calibration.image.emulation import Inside
from calibration.image.flash import check_files, flash, flash_text
from calibration.image.jetpack import JETPACKS, JetPack, check_release
from calibration.image.pins import header, pads, pinmux_text
from calibration.image.quiet import NOT_NEEDED
from calibration.image.rootfs import ImageError, Rootfs, tree_digest
from calibration.image.step import Step, carry_out
from calibration.image.steps import Wanted, is_nvidias, plan
from calibration.package.deb import md5sums, write_deb
from calibration.package.lock import read_lock, run_time_pins
from calibration.package.target import Target
from calibration.package.tree import Entry
from tests.box import image_checks, stand_in_l4t

ROOT = Path(__file__).resolve().parents[2]
_LOCK = ROOT / "appliance/requirements.lock"
_EPOCH = 1_795_521_600
_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7Y5vJmG0cW5E1cZsY2k1m0sW5XJ0m2b8m0kq0s0m0s person@desk\n"
_HASH = "$6$salt$hash"


# ---- paths of another root ------------------------------------------------------------------------------------------


def test_a_link_to_the_root_stays_in_the_other_root(tmp_path: Path) -> None:
    rootfs = Rootfs(tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "etc/folder").symlink_to("/real")
    (tmp_path / "real/passwd").write_text("its own\n")
    (tmp_path / "etc/link").symlink_to("/etc/folder/../real/passwd")
    assert rootfs.text("etc/link") == "its own\n"
    assert rootfs.path("../../../etc/folder") == tmp_path / "real"


def test_links_in_a_circle_are_told(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("/a")
    with pytest.raises(ImageError, match="turn in a circle"):
        Rootfs(tmp_path).text("a")


def test_what_is_written_replaces_a_link_and_leaves_where_it_led(tmp_path: Path) -> None:
    host = tmp_path / "of-this-computer"
    host.write_text("mine\n")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/machine-id").symlink_to(host)
    Rootfs(root).write("etc/machine-id", "")
    assert host.read_text() == "mine\n" and (root / "etc/machine-id").read_text() == ""


def test_a_file_written_anew_keeps_who_may_read_it(tmp_path: Path) -> None:
    (tmp_path / "shadow").write_text("root:x\n")
    (tmp_path / "shadow").chmod(0o640)
    Rootfs(tmp_path).write("shadow", "root:!\n")
    assert (tmp_path / "shadow").stat().st_mode & 0o777 == 0o640


def test_packages_are_read_as_dpkg_keeps_them(tmp_path: Path) -> None:
    status = tmp_path / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    status.write_text(
        "Package: a\nStatus: hold ok installed\nVersion: 1\nArchitecture: arm64\nDescription: one\n Status: not this\n\n"
        "Package: b\nStatus: deinstall ok config-files\nVersion: 1\n\n"
        "Package: c\nStatus: install ok half-configured\nVersion: 2:3\nArchitecture: all\n"
    )
    found = Rootfs(tmp_path).packages()
    assert {name: (one.wanted, one.state, one.version) for name, one in found.items()} == {
        "a": ("hold", "installed", "1"), "c": ("install", "half-configured", "2:3"),
    }  # fmt: skip


# ---- who gets in ----------------------------------------------------------------------------------------------------


@pytest.fixture
def people(tmp_path: Path) -> Rootfs:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/usr/sbin/nologin\nold:abcdefghijklm:5:5::/:/bin/sh\n"
        "open::6:6::/:/bin/sh\nnvidia:x:1000:1000::/home/nvidia:/bin/bash\nservice:x:1001:1001::/home/service:/bin/bash\n"
        "nobody:x:65534:65534::/:/usr/sbin/nologin\nappliance:x:998:998::/:/bin/sh\n"
    )
    (tmp_path / "etc/shadow").write_text(
        f"root:{_HASH}:1:0:9:7:::\ndaemon:*:1:0:9:7:::\nempty::1:0:9:7:::\nlocked:!{_HASH}:1:0:9:7:::\nnone:!:1:0:9:7:::\n"
        "never:!*:1:0:9:7:::\n"
    )
    (tmp_path / "etc/shadow-").write_text(f"nvidia:{_HASH}:1:0:9:7:::\n")
    return Rootfs(tmp_path)


def test_every_way_to_a_password_is_seen(people: Rootfs) -> None:
    assert accounts.with_password(people) == ["empty", "locked", "nvidia", "old", "open", "root"]


def test_locked_passwords_are_gone_and_not_only_behind_a_mark(people: Rootfs) -> None:
    accounts.lock_passwords(people)
    assert accounts.with_password(people) == []
    assert _HASH not in (people.text("etc/shadow") or "") + (people.text("etc/shadow-") or "")
    assert "daemon:*:1:0:9:7:::\n" in (people.text("etc/shadow") or "")
    assert "open:x:6:6::/:/bin/sh\n" in (people.text("etc/passwd") or "")


def test_persons_lose_their_shells_and_nobody_else(people: Rootfs) -> None:
    assert accounts.people(people, "") == ["nvidia", "service"]
    assert accounts.people(people, "service") == ["nvidia"]
    accounts.take_shells(people, "service")
    assert accounts.people(people, "service") == []
    assert "root:x:0:0:root:/root:/bin/bash" in (people.text("etc/passwd") or "")


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("etc/systemd/system/getty@tty1.service.d/a.conf", "ExecStart=-/sbin/agetty --autologin nvidia %I", True),
        ("etc/systemd/system/serial-getty@ttyTCU0.service.d/a.conf", "ExecStart=-/sbin/agetty -a nvidia %I", True),
        ("etc/systemd/system/getty@tty1.service.d/a.conf", "ExecStart=-/sbin/agetty --noclear %I", False),
        ("etc/gdm3/custom.conf", "[daemon]\nAutomaticLoginEnable=True\nAutomaticLogin=nvidia\n", True),
        ("etc/gdm3/custom.conf", "[daemon]\n#AutomaticLoginEnable=True\n", False),
    ],
)
def test_logins_that_ask_nobody_are_found(tmp_path: Path, file: str, text: str, found: bool) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert accounts.automatic_logins(Rootfs(tmp_path)) == ([file] if found else [])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n", "is a private key; name its .pub file"),
        ("", "holds no SSH public key"),
        (_KEY + _KEY, "holds no SSH public key"),
        ('command="sh" ' + _KEY, "holds no SSH public key"),
        ("ssh-ed25519 AAAA\nroot ALL=(ALL) ALL\n", "holds no SSH public key"),
    ],
)
def test_what_is_no_public_key_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ImageError, match=re.escape(complaint)):
        accounts.public_key(text, "id.pub")


def test_a_public_key_is_taken_as_it_is() -> None:
    assert accounts.public_key(f"# mine\n{_KEY}", "id.pub") == _KEY


# ---- how it is flashed ----------------------------------------------------------------------------------------------

_NANO = "jetson-orin-nano-devkit-super"
_LEGACY = "./tools/kernel_flash/l4t_initrd_flash.sh --external-device"
_QSPI = '-p "-c bootloader/generic/cfg/flash_t234_qspi.xml" --erase-all --showlogs --network usb0'


@pytest.mark.parametrize(
    ("jetpack", "board", "ab", "line"),
    [
        ("6.2", _NANO, False, f"sudo {_LEGACY} nvme0n1p1 -c tools/kernel_flash/flash_l4t_t234_nvme.xml {_QSPI} {_NANO} internal"),
        ("6.2", _NANO, True, f"sudo ROOTFS_AB=1 ROOTFS_RETRY_COUNT_MAX=3 {_LEGACY} nvme0n1 "
                             f"-c tools/kernel_flash/flash_l4t_t234_nvme_rootfs_ab.xml {_QSPI} {_NANO} internal"),
        ("6.2", "jetson-agx-orin-devkit", False, f"sudo {_LEGACY} nvme0n1p1 -c tools/kernel_flash/flash_l4t_t234_nvme.xml "
                                                 "--erase-all --showlogs --network usb0 jetson-agx-orin-devkit external"),
        ("7.2", _NANO, False, f"sudo ./l4t_initrd_flash.sh --erase-all {_NANO} internal"),
        ("7.2", _NANO, True, f"sudo ROOTFS_AB=1 ROOTFS_RETRY_COUNT_MAX=3 ./l4t_initrd_flash.sh --erase-all {_NANO} internal"),
    ],
)  # fmt: skip
def test_the_flash_command_is_nvidias(jetpack: str, board: str, ab: bool, line: str) -> None:
    assert flash(JETPACKS[jetpack], board, ab).line == line


def test_a_tree_without_what_the_command_names_is_refused_with_the_boards_it_knows(tmp_path: Path) -> None:
    chosen = flash(JETPACKS["6.2"], "jetson-orin-nano-devkit-super", False)
    for file in chosen.files[:-1]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "jetson-agx-orin-devkit.conf").touch()
    with pytest.raises(ImageError, match=r"lacks jetson-orin-nano-devkit-super.conf.*Boards it knows: jetson-agx-orin-devkit\."):
        check_files(tmp_path, chosen)
    (tmp_path / "jetson-orin-nano-devkit-super.conf").touch()
    check_files(tmp_path, chosen)


@pytest.mark.parametrize("ab", [True, False])
def test_flash_text_says_whether_there_are_two_root_file_systems(ab: bool) -> None:
    text = flash_text(JETPACKS["7.2"], "39.2.1", flash(JETPACKS["7.2"], _NANO, ab), ["one"])
    assert ("yes (ROOTFS_AB=1" in text) == ab and "  - one\n" in text


@pytest.mark.parametrize(
    ("jetpack", "l4t", "python", "complaint"),
    [
        ("6.2", "39.2.1", "3.12", "write --jetpack 7.2"),
        ("7.2", "36.4.3", "3.10", "write --jetpack 6.2"),
        ("6.2", "36.3.0", "3.10", "it is none that is served"),
        ("7.2", "38.4.0", "3.12", "it is none that is served"),
        ("6.2", "36.5.0", "3.12", "JetPack 6.2 has 3.10"),
    ],
)
def test_a_tree_of_another_release_is_refused(jetpack: str, l4t: str, python: str, complaint: str) -> None:
    with pytest.raises(ImageError, match=re.escape(complaint)):
        check_release(JETPACKS[jetpack], l4t, python, any_python=False)


@pytest.mark.parametrize(("jetpack", "l4t"), [("6.2", "36.4.3"), ("6.2", "36.5.2"), ("7.2", "39.2.0"), ("7.2", "39.2.2")])
def test_a_tree_of_the_release_is_taken(jetpack: str, l4t: str) -> None:
    check_release(JETPACKS[jetpack], l4t, JETPACKS[jetpack].python, any_python=False)


# ---- which pads -----------------------------------------------------------------------------------------------------


def test_pads_of_a_configuration_are_listed_with_pin_and_direction(tmp_path: Path) -> None:
    lines = pinmux_text("station.yaml", verb._pads(stand_in_l4t.gpio_station(tmp_path)), _NANO, "36.5.0").splitlines()
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines if line.startswith("  ")]
    assert rows == [
        ["PAC.06", "input", "pin 7 of the 40-pin header", "trigger.input", "(active high, bias none)"],
        ["PZ.05", "output", "pin 19 of the 40-pin header", "reject.output", "(drive push-pull)"],
        ["tegra234-gpio/53", "output", "by chip and offset", "outputs.fault"],
    ]


def test_a_strobe_is_an_output_and_a_list_is_read_too() -> None:
    found = pads({"cameras": {"top": {"strobe": "gpio://PY.02"}}, "more": ["twin://x", {"input": "gpio://PQ.05"}]})
    assert [(one.where, one.output) for one in found] == [("cameras.top.strobe", True), ("more[1].input", False)]


def test_a_carrier_of_ones_own_has_its_own_map() -> None:
    assert header("acme-carrier") == {} and header("jetson-agx-thor-devkit")["PV.07"] == 40
    assert "see the carrier's own map" in pinmux_text("s", pads({"input": "gpio://PQ.05"}), "acme-carrier", "36.5.0")


def test_the_release_whose_lines_float_is_warned_of() -> None:
    assert "WARNING" in pinmux_text("", [], _NANO, "36.4.4")
    assert "WARNING" not in pinmux_text("", [], _NANO, "36.4.7")


# ---- what does not run ----------------------------------------------------------------------------------------------


def test_every_disabled_unit_has_its_reason_and_none_that_a_box_needs_is_among_them() -> None:
    assert [unit for unit, reason in NOT_NEEDED.items() if len(reason) < 8] == []
    needed = {"nvargus-daemon.service", "nvpmodel.service", "nvfancontrol.service", "nv_update_verifier.service", "ssh.service",
              "systemd-timesyncd.service", "NetworkManager.service", "systemd-udevd.service", "nvzramconfig.service",
              "nv-l4t-bootloader-config.service", "nvfb.service", "getty@tty1.service"}  # fmt: skip
    assert needed & set(NOT_NEEDED) == set()


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("nvidia-l4t-core", True), ("python3-libnvinfer", True), ("libnvinfer-plugin10", True), ("libnvonnxparsers10", True),
        ("libcudnn9-cuda-12", True), ("cuda-cudart-13-2", True), ("libcurand-12-6", True), ("libnpp-12-6", True),
        ("nvidia-jetpack", True), ("libcurl4", False), ("python3", False), ("linux-base", False), ("libcublas-13-2", True),
    ],
)  # fmt: skip
def test_what_is_of_one_nvidia_release_is_held(name: str, held: bool) -> None:
    assert is_nvidias(name) == held


def test_lists_of_a_chip_that_is_not_known_are_not_filled_in(tmp_path: Path) -> None:
    assert soc(JETPACKS["6.2"], "acme-carrier") == soc(JETPACKS["7.2"], "jetson-agx-orin-devkit") == "t234"
    lists = tmp_path / "etc/apt/sources.list.d"
    lists.mkdir(parents=True)
    (lists / "nvidia.list").write_text("deb https://repo.download.nvidia.com/jetson/t999 r39.2 main\n")
    assert filled_lists(Rootfs(tmp_path), JETPACKS["7.2"], "jetson-agx-thor-devkit")["nvidia.list"].endswith("t999 r39.2 main\n")
    (lists / "nvidia.list").write_text("deb https://repo.download.nvidia.com/jetson/<SOC> r39.2 main\n")
    with pytest.raises(ImageError, match=r"chip of jetson-agx-thor-devkit .* in place of <SOC>"):
        filled_lists(Rootfs(tmp_path), JETPACKS["7.2"], "jetson-agx-thor-devkit")


def test_jetson_utils_is_refused_where_it_does_not_build(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"does not build on JetPack 7\.2"):
        gpu_steps(JETPACKS["7.2"], Rootfs(tmp_path), lambda: pytest.fail("nothing is run"), Gpu(_NANO, jetson_utils=True))


def test_the_image_that_readme_makes_inspects_on_the_gpu() -> None:
    command, _, rest = (ROOT / "README.md").read_text().partition("./build.sh image ")[2].partition("`")
    options = verb._options(command.split())
    assert options.with_pycuda and "--with-jetson-utils" in rest.partition("**The stick**")[0]
    assert "`sudo ./build.sh image --l4t" in (ROOT / "README.md").read_text()


# ---- steps ----------------------------------------------------------------------------------------------------------


def test_a_step_that_did_not_take_is_no_step_done() -> None:
    with pytest.raises(ImageError, match="'one' .* is not done"):
        carry_out([Step("one", "it", "so", lambda: False, lambda: None)], lambda _line: None)


def test_done_steps_are_left_alone_and_a_dry_run_does_nothing() -> None:
    done: set[str] = {"a"}
    steps = [Step(name, "it", "so", lambda name=name: name in done, lambda name=name: done.add(name)) for name in "ab"]  # type: ignore[misc]
    told: list[str] = []
    assert carry_out(steps, told.append, dry_run=True) == 1 and done == {"a"}
    assert carry_out(steps, told.append) == 1 and done == {"a", "b"}
    assert carry_out(steps, told.append) == 0
    assert told[0] == "  ok       a" and told[1].startswith("  would do b: it  (so)")


# ---- the whole, on this computer's own processor --------------------------------------------------------------------

_UNITS = {
    "appliance.target": "[Unit]\nDescription=a\nWants=rejectd.service\n[Install]\nWantedBy=multi-user.target\n",
    "rejectd.service": "[Unit]\nDescription=b\n[Service]\nExecStart=/bin/true\n",
}
_PRESET = "enable appliance.target\n"
_CONTROL = "Package: appliance\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: t\nDescription: small\n"


def small_deb(folder: Path, version: str = "1.0", architecture: str = "amd64", presets: str = _PRESET) -> Path:
    """A package of the same name with two units, and of a few bytes."""
    data = [Entry(f"usr/lib/systemd/system/{name}", text.encode()) for name, text in _UNITS.items()]
    data += [Entry("usr/lib/systemd/system-preset/50-appliance.preset", presets.encode())] if presets else []
    data += [Entry("usr/lib/udev/rules.d/61-appliance.rules", b"# one\n")]
    text = _CONTROL.format(version=version, architecture=architecture)
    control = [Entry("control", text.encode()), Entry("md5sums", md5sums(data))]
    folder.mkdir(exist_ok=True)
    out = folder / f"appliance_{version}_{architecture}_py311.deb"
    write_deb(out, control, sorted(data, key=lambda one: one.path), _EPOCH)
    return out


def test_a_package_says_what_it_is(tmp_path: Path) -> None:
    deb = read_deb(small_deb(tmp_path))
    assert (deb.name, deb.version, deb.architecture) == ("appliance", "1.0", "amd64") and "rejectd.service" in deb.md5sums
    (tmp_path / "no.deb").write_bytes(b"!<arch>\nshort")
    with pytest.raises(ImageError, match="no Debian package that can be read"):
        read_deb(tmp_path / "no.deb")


def test_the_newest_fitting_package_is_found_or_its_command_told(tmp_path: Path) -> None:
    old, new = small_deb(tmp_path, "1.0"), small_deb(tmp_path, "0.9")
    os.utime(old, ns=(0, 0))
    assert find_deb(tmp_path, "amd64", "3.11") == new
    with pytest.raises(ImageError, match=r"\./build\.sh deb --arch arm64 --python 3\.10"):
        find_deb(tmp_path, "arm64", "3.10")


def test_a_list_with_nvidias_placeholder_is_left_out_and_the_others_are_kept(tmp_path: Path) -> None:
    lists, share = tmp_path / "root/etc/apt/sources.list.d", tmp_path / "share"
    lists.mkdir(parents=True)
    share.mkdir()
    (lists / "ubuntu.sources").write_text("Types: deb\n")
    assert readable_lists(Rootfs(tmp_path / "root"), share) == []
    (lists / "nvidia.list").write_text("deb https://repo.download.nvidia.com/jetson/<SOC> r36.4 main\n")
    assert readable_lists(Rootfs(tmp_path / "root"), share) == ["-o", "Dir::Etc::sourceparts=/tmp/shared/lists"]
    assert [one.name for one in (share / "lists").iterdir()] == ["ubuntu.sources"]
    assert "jetson/t234 r36.4" in nvidia_lists(Rootfs(tmp_path / "root"), "t234")["nvidia.list"]


def _why_not() -> str:
    if os.geteuid() != 0:
        return "a root file system is root's"
    if os.uname().machine != "x86_64":
        return "the Debian of this test is for amd64"
    return next((f"no {one}" for one in ("mmdebstrap", "systemctl", "unshare") if shutil.which(one) is None), "")


needs_root_and_tools = pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "all is here")
_INCLUDE = "systemd-sysv,udev,python3-minimal,systemd-timesyncd,openssh-server,dbus"


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = ROOT / "build" / "image" / "bookworm-amd64.tar"
    folder = tmp_path_factory.mktemp("debian")
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        new = folder / "new.tar"
        command = ["mmdebstrap", "--variant=minbase", f"--include={_INCLUDE}", "bookworm", str(new)]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"no Debian could be fetched: {made.stderr[-200:]}")
        shutil.move(new, kept)
    (folder / "root").mkdir()
    subprocess.run(["tar", "-C", str(folder / "root"), "-xf", str(kept)], check=True)
    return folder / "root"


def image(l4t: Path, deb: Path, *more: str) -> int:
    return verb.main(["--l4t", str(l4t), "--jetpack", "6.2", "--deb", str(deb), "--any-python", *more])


def stand_in(folder: Path, debian: Path, jetpack: str = "6.2") -> Path:
    l4t = stand_in_l4t.make(folder, debian, jetpack, "amd64")
    subprocess.run([str(l4t / "apply_binaries.sh")], check=True)
    return l4t


@needs_root_and_tools
@pytest.mark.timeout(300)
@pytest.mark.parametrize("jetpack", ["6.2", "7.2"])
def test_the_whole_image_and_a_second_run_that_changes_nothing(
    debian: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], jetpack: str
) -> None:
    l4t, deb = stand_in_l4t.make(tmp_path, debian, jetpack, "amd64"), small_deb(tmp_path / "deb")
    arguments = ["--l4t", str(l4t), "--jetpack", jetpack, "--deb", str(deb), "--any-python",
                 "--station", str(stand_in_l4t.gpio_station(tmp_path))]  # fmt: skip
    untouched = tree_digest(l4t)
    assert verb.main([*arguments, "--dry-run"]) == 0 and tree_digest(l4t) == untouched
    assert verb.main(arguments) == 0
    rootfs = l4t / "rootfs"
    image_checks.nobody_gets_in(rootfs)
    image_checks.quiet(rootfs)
    image_checks.held(rootfs)
    assert image_checks.starts_by_itself(rootfs, "appliance.target")
    assert "apply_binaries.sh \namd64\n" == (l4t / "calls.log").read_text()  # once, and it ran programs in there
    assert "pin 19" in (l4t / "appliance/PINMUX.txt").read_text()
    flash_file = (l4t / "appliance/FLASH.txt").read_text()
    assert "no TensorRT, no PyCUDA: only engine: cpu inspects" in flash_file
    assert "neither jetson-utils nor jetson-inference: csi:// and rtsp:// do not open" in flash_file
    made = tree_digest(l4t)
    capsys.readouterr()
    assert verb.main(arguments) == 0
    assert "nothing to do" in (said := capsys.readouterr().out) and "doing" not in said
    assert tree_digest(l4t) == made
    _flash_line_runs(l4t)


def _flash_line_runs(l4t: Path) -> None:
    (line,) = [one.strip() for one in (l4t / "appliance/FLASH.txt").read_text().splitlines() if "_flash.sh" in one]
    subprocess.run(["sh", "-ec", line.removeprefix("sudo ")], cwd=l4t, check=True)
    assert (l4t / "calls.log").read_text().splitlines()[-1].endswith(f"{_NANO} internal")


@needs_root_and_tools
@pytest.mark.timeout(300)
def test_a_run_cut_short_after_any_step_ends_as_one_that_was_not(debian: Path, tmp_path: Path) -> None:
    """Each turn plans anew and does one step of those that are not done, whichever the seed says (the package first)."""
    deb = read_deb(small_deb(tmp_path / "deb"))
    trees = [Rootfs(stand_in(tmp_path / name, debian) / "rootfs") for name in ("in-order", "cut-short")]
    for seed, rootfs in enumerate(trees):
        inside = cache(lambda root=rootfs.root: Inside(root, "x86_64", tmp_path))
        choice, turns = random.Random(seed), 0
        while todo := [step for step in plan(rootfs, Wanted(deb), inside) if not step.done()]:
            (todo[0] if seed == 0 or turns == 0 else choice.choice(todo)).do()
            turns += 1
            assert turns < 30, [step.name for step in todo]
    for rootfs in trees:
        for when_it_was_done in ("var/log", "var/cache/apt"):
            shutil.rmtree(rootfs.root / when_it_was_done)
    assert tree_digest(trees[0].root, times=False) == tree_digest(trees[1].root, times=False)


@pytest.fixture(scope="module")
def tree(debian: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tree for several tests: whatever was done to it before, the next run makes it as it is wanted."""
    return stand_in(tmp_path_factory.mktemp("tree"), debian)


_WRITES_ON = "setsid sh -c 'while :; do sleep 98765; done' > /dev/null 2>&1 & exec sleep 98765"


def _still_sleeping() -> list[str]:
    found = []
    for about in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [about.parent.name] if b"sleep 98765" in about.read_bytes().replace(b"\0", b" ") else []
        except OSError:  # it has ended meanwhile
            continue
    return found


@needs_root_and_tools
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_command_that_was_given_up_leaves_nobody_writing(debian: Path, tmp_path: Path, interrupted: bool) -> None:
    inside = Inside(debian, "x86_64", tmp_path)
    if interrupted:
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt if interrupted else ImageError):
        inside.run(["sh", "-c", _WRITES_ON], timeout_s=30 if interrupted else 1)
    assert _still_sleeping() == []


@needs_root_and_tools
def test_a_command_sees_itself_in_proc_and_systemd_sees_that_it_is_in_a_chroot(debian: Path, tmp_path: Path) -> None:
    ask = "readlink /proc/self/root; echo $$; cut -d ' ' -f 4 /proc/self/stat"
    root, number, parent_of_cut = Inside(debian, "x86_64", tmp_path).must(["sh", "-c", ask]).split()
    assert (root, number) == ("/", parent_of_cut)
    assert Inside(debian, "x86_64", tmp_path).run(["systemd-detect-virt", "--chroot"]).code == 0


_DBUS, _SYSTEMD = "/usr/lib/x86_64-linux-gnu/libdbus-1.so.3", "/usr/lib/x86_64-linux-gnu/libsystemd.so.0"


@needs_root_and_tools
def test_the_packages_that_built_libraries_are_linked_to_are_found(debian: Path, tmp_path: Path) -> None:
    script = shutil.copy(ROOT / "calibration/image/scripts/runtime_packages.sh", tmp_path)
    (tmp_path / "jetson").mkdir()
    with Inside(debian, "x86_64", tmp_path).layer() as layer:
        layer.must(["cp", _DBUS, "/tmp/shared/jetson/libone.so"])
        settings = {"OUT": "/tmp/shared/jetson", "PACKAGES": "/tmp/shared/packages"}
        layer.must(["sh", "-e", f"/tmp/shared/{Path(script).name}"], settings)
    assert {"libc6", "libsystemd0"} <= set((tmp_path / "packages").read_text().split())


@needs_root_and_tools
def test_a_library_that_would_not_load_on_the_box_is_told_by_what_it_lacks(debian: Path, tmp_path: Path) -> None:
    with Inside(debian, "x86_64", tmp_path).layer() as layer:
        assert jetson_utils.missing_libraries(layer, [_DBUS]) == []
        layer.must(["rm", _SYSTEMD])
        assert jetson_utils.missing_libraries(layer, [_DBUS]) == ["libsystemd.so.0"]
        layer.must(["sh", "-c", f"sed s/libsystemd.so.0/libnvbufss.so.0/ {_DBUS} > /root/libtwo.so"])
        assert jetson_utils.missing_libraries(layer, ["/root/libtwo.so"]) == []  # the driver's


@needs_root_and_tools
def test_what_was_built_leaves_the_folders_that_were_there_as_they_were(debian: Path, tmp_path: Path) -> None:
    library = tmp_path / "jetson/lib/libone.so"
    library.parent.mkdir(parents=True)
    library.touch()
    for path in (library, library.parent, tmp_path / "jetson"):
        path.chmod(0o700)
    with Inside(debian, "x86_64", tmp_path).layer() as layer:
        before = layer.must(["stat", "-c", "%a %n", "/", "/usr/lib", "/lib"])
        jetson_utils.copy_in(layer)
        assert layer.must(["stat", "-c", "%a %n", "/", "/usr/lib", "/lib"]) == before
        assert layer.must(["stat", "-c", "%a", "/usr/lib/libone.so"]) == "700\n"


def test_nothing_is_taken_from_the_package_index_but_by_its_digest() -> None:
    scripts = ROOT / "calibration/image/scripts"
    lines = [line for file in scripts.glob("*.sh") for line in file.read_text().replace("\\\n", " ").splitlines()]
    calls = [line for line in lines if re.search(r"pip (install|wheel|download)\b", line) and not line.startswith("#")]
    assert len(calls) >= 4
    assert re.fullmatch("[0-9a-f]{40}", jetson_utils.JETSON_INFERENCE), "fewer digits are soon another commit's too"
    for line in calls:
        assert ("--require-hashes" in line and "--only-binary :all:" in line and "--no-deps" in line), line


@pytest.mark.parametrize("jetpack", JETPACKS.values(), ids=lambda one: one.name)
def test_cudas_headers_are_pinned_for_each_jetpack(jetpack: JetPack) -> None:
    cuda = jetpack.cuda.replace("-", ".")
    pins = read_lock((ROOT / f"calibration/image/cuda_headers_{cuda}.lock").read_text())
    assert all(len(pin.digests) == 2 for pin in pins), "one for arm64, one for a stand-in"
    assert {pin.name.removesuffix("-cu12") for pin in pins} >= {"nvidia-cuda-runtime", "nvidia-curand"}
    (runtime,) = [pin for pin in pins if pin.name.startswith("nvidia-cuda-runtime")]
    assert runtime.version.startswith(f"{cuda}.")


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_pycudas_lock_pins_each_package_once_for_every_python(python: str) -> None:
    folder = ROOT / "calibration/image"
    built = run_time_pins(read_lock((folder / "pycuda.lock").read_text()), ["pycuda"], Target("arm64", python))
    assert [f"{pin.name}=={pin.version}" for pin in built if pin.name == "pycuda"] == [PYCUDA]
    assert {pin.name for pin in built} >= {"pycuda", "pytools", "mako", "markupsafe", "platformdirs", "siphash24"}
    builds = read_lock((folder / "pycuda_build.lock").read_text())
    builders = run_time_pins(builds, ["wheel", "setuptools"], Target("arm64", python))
    assert {pin.name for pin in builders} == {"wheel", "packaging", "setuptools"}


@needs_root_and_tools
def test_extensions_are_built_against_the_firmwares_own_numpy(debian: Path, tmp_path: Path) -> None:
    cuda._share_numpy(Rootfs(debian), Inside(debian, "x86_64", tmp_path))
    (ours,) = run_time_pins(read_lock(_LOCK.read_text()), ["numpy"], Target("arm64", "3.11"))
    assert (tmp_path / "numpy.txt").read_text() == f"{ours.line()}\n" and "--hash=sha256:" in ours.line()


@needs_root_and_tools
@pytest.mark.timeout(300)
def test_who_makes_the_image_may_be_as_strict_as_he_likes(tree: Path, tmp_path: Path) -> None:
    folder = tree / "rootfs/etc/systemd/system/ssh.service.d"
    shutil.rmtree(folder, ignore_errors=True)
    before = os.umask(0o077)
    try:
        assert image(tree, small_deb(tmp_path / "deb", "0.6")) == 0
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o755


@needs_root_and_tools
@pytest.mark.timeout(300)
def test_a_package_whose_installation_was_cut_short_is_installed(tree: Path, tmp_path: Path) -> None:
    deb = small_deb(tmp_path / "deb", "0.5")
    inside = Inside(tree / "rootfs", "x86_64", tmp_path / "deb")
    inside.must(["dpkg", "--unpack", f"/tmp/shared/{deb.name}"])
    assert Rootfs(tree / "rootfs").packages()["appliance"].state == "unpacked"
    assert image(tree, deb) == 0
    assert Rootfs(tree / "rootfs").packages()["appliance"].state == "installed"


@needs_root_and_tools
@pytest.mark.timeout(300)
def test_a_key_opens_the_door_and_taking_it_away_shuts_it(tree: Path, tmp_path: Path) -> None:
    deb, rootfs = small_deb(tmp_path / "deb"), tree / "rootfs"
    (tmp_path / "id.pub").write_text(_KEY)
    assert image(tree, deb, "--ssh-key", str(tmp_path / "id.pub")) == 0
    keys = rootfs / "home/service/.ssh/authorized_keys"
    owner = next(line.split(":") for line in (rootfs / "etc/passwd").read_text().splitlines() if line.startswith("service:"))
    assert keys.read_text() == _KEY and (keys.stat().st_mode & 0o777, str(keys.stat().st_uid)) == (0o600, owner[2])
    assert image_checks.starts_by_itself(rootfs, "ssh.service")
    with Inside(rootfs, "x86_64", tmp_path).layer() as layer:
        said = layer.must(["sh", "-ec", "ssh-keygen -A > /dev/null; mkdir -p /run/sshd; sshd -T -C user=nvidia,host=x,addr=::1"])
    assert {"passwordauthentication no", "permitrootlogin no", "allowusers service"} <= set(said.splitlines())
    image_checks.held(rootfs)
    assert image(tree, deb) == 0
    image_checks.nobody_gets_in(rootfs)
    image_checks.quiet(rootfs)
    assert not keys.exists() and not (rootfs / "etc/sudoers.d/appliance-service").exists()


@needs_root_and_tools
@pytest.mark.timeout(300)
def test_sshd_starts_on_a_box_that_has_no_host_keys_yet(tree: Path, tmp_path: Path) -> None:
    assert image(tree, small_deb(tmp_path / "deb")) == 0
    drop_in = (tree / "rootfs/etc/systemd/system/ssh.service.d/appliance.conf").read_text().splitlines()
    before = [line.partition("=")[2] for line in drop_in if line.startswith("ExecStartPre=")]
    assert before[0] == ""  # the distribution's own, which is only the last of these, is not run before them
    with Inside(tree / "rootfs", "x86_64", tmp_path).layer() as layer:
        assert layer.run(["sh", "-ec", "mkdir -p /run/sshd; /usr/sbin/sshd -t"]).code != 0
    with Inside(tree / "rootfs", "x86_64", tmp_path).layer() as layer:
        layer.must(["sh", "-ec", "; ".join(["mkdir -p /run/sshd", *before[1:]])])


@needs_root_and_tools
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        (lambda l4t, tmp: ["--deb", str(small_deb(tmp / "none", "2.0", presets=""))], "names no unit that a box starts"),
        (lambda l4t, tmp: ["--deb", str(small_deb(tmp / "arm", "3.0", architecture="arm64"))], "is for arm64, which"),
        (lambda l4t, tmp: ["--board", "acme"], "lacks acme.conf"),
        (lambda l4t, tmp: ["--jetpack", "7.2"], "write --jetpack 6.2"),
        (lambda l4t, tmp: ["--l4t", str(tmp)], "has no rootfs/"),
        (lambda l4t, tmp: ["--ssh-key", str(tmp / "none.pub")], "none.pub"),
        (lambda l4t, tmp: ["--station", str(tmp / "none.yaml")], "--station cannot be read"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], break_it: object, complaint: str
) -> None:
    assert image(tree, small_deb(tmp_path / "deb"), *break_it(tree, tmp_path)) == 2  # type: ignore[operator]
    assert complaint in capsys.readouterr().err
