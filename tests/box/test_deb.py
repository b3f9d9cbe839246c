"""The package: what is in it, for which machine, and that two builds give the same bytes. Built of a copy of this tree."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from appliance.box import slots
from appliance.box.app_bundle import verify
from appliance.config.schema import Modbus, Mqtt, Station
from appliance.model.kernel_images import SOURCES_FILE, sources_digest
from calibration.package import elf
from calibration.package.__main__ import kernel_images, validate, vendored
from calibration.package.content import EXAMPLE, maintainer, system_libraries
from calibration.package.lock import LEFT_OUT, Pin, holds, read_lock, run_time_pins
from calibration.package.source import read_source
from calibration.package.target import MACHINES, SYSTEMS, PackageError, Target, target
from calibration.package.tree import Entry, in_order
from calibration.package.wheels import closure, fetch, unpacked
from tests.box.debs import EPOCH, HERE, ROOT, WHEELS, Build, commit, copy_tree, field_of, files_of, start

VALIDATOR = ROOT / ".venv/bench/cyclonedx"  # where ./build.sh deb --validate puts it
ARCH = "amd64" if platform.machine() == "x86_64" else "arm64"
DEPENDENCIES = read_source(ROOT).project["dependencies"]
HOME = "./usr/lib/appliance"
LOCK_FILE = ROOT / "appliance/requirements.lock"

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="reads packages with dpkg-deb: apt install dpkg"),
    pytest.mark.skipif(shutil.which("git") is None, reason="builds of a repository: apt install git"),
]


def reachable(why: PackageError) -> None:
    """Wheels that cannot be fetched leave a test dark; everything else is a fault."""
    if "could not be fetched" in str(why) or "did not come" in str(why):
        pytest.skip(f"no way to the package index: {why}")
    raise why


@pytest.fixture(scope="session")
def here() -> Target:
    to = target(None, HERE)
    try:
        vendored(read_source(ROOT), to, WHEELS)
    except PackageError as why:
        reachable(why)
    return to


@pytest.fixture(scope="session")
def two_builds(here: Target, tmp_path_factory: pytest.TempPathFactory) -> tuple[Build, Build]:
    """Of equal trees, in folders of other names and lengths, by users with other habits, at the same time."""
    if here.arch == "arm64" and not (ROOT / "build/kernels/sources.sha256").is_file():
        pytest.skip("the GPU's kernels belong to it: ./build.sh kernels")
    folder = tmp_path_factory.mktemp("deb")
    trees = [copy_tree(folder / "one"), copy_tree(folder / "another/place/whose name is longer")]
    if here.arch == "arm64":
        for tree in trees:
            shutil.copytree(ROOT / "build/kernels", tree / "build/kernels")
    careful = start(trees[0], folder / "out1", umask=0o077, TZ="Asia/Tokyo", LC_ALL="C", PYTHONHASHSEED="1")
    careless = start(trees[1], folder / "out2", umask=0o000, TZ="America/Lima", LC_ALL="C.UTF-8", PYTHONHASHSEED="2")
    return careful.wait(), careless.wait()


@pytest.fixture(scope="session")
def deb(two_builds: tuple[Build, Build]) -> Path:
    return two_builds[0].file(".deb")


@pytest.fixture(scope="session")
def content(deb: Path) -> Iterator[tarfile.TarFile]:
    with files_of(deb) as tar:
        yield tar


@pytest.fixture(scope="session")
def installed(content: tarfile.TarFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked, not installed: the folder that would be /."""
    root = tmp_path_factory.mktemp("root")
    content.extractall(root, **({"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}))
    return root


def data(content: tarfile.TarFile, name: str) -> bytes:
    stream = content.extractfile(name)
    assert stream is not None
    return stream.read()


# --- two builds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".deb", ".cdx.json", ".bundle"])
def test_two_builds_elsewhere_by_others_give_the_same_bytes(two_builds: tuple[Build, Build], suffix: str) -> None:
    one, other = (build.file(suffix) for build in two_builds)
    assert one.name == other.name
    assert hashlib.sha256(one.read_bytes()).hexdigest() == hashlib.sha256(other.read_bytes()).hexdigest()


def test_a_build_says_what_it_left_and_its_version_is_of_the_commit(two_builds: tuple[Build, Build], deb: Path) -> None:
    said = two_builds[0].said
    assert hashlib.sha256(deb.read_bytes()).hexdigest() in said and "dirty" not in said
    version = field_of(deb, "Version")
    assert re.fullmatch(r"[0-9.]+~git20261124\.1\.[0-9a-f]{10}", version)
    assert deb.name == f"appliance_{version}_{ARCH}_py{HERE.replace('.', '')}.deb"


def test_nothing_names_the_place_where_it_was_built(two_builds: tuple[Build, Build], content: tarfile.TarFile) -> None:
    place = str(two_builds[0].out.parent).encode()
    assert [one.name for one in content if one.isfile() and place in data(content, one.name)] == []


# --- what is in it -----------------------------------------------------------------------------------------


def test_every_file_is_roots_with_modes_that_no_umask_touched(content: tarfile.TarFile) -> None:
    for one in content:
        assert (one.uid, one.gid, one.uname, one.gname, one.mtime) == (0, 0, "root", "root", EPOCH), one.name
        if one.isdir():
            assert one.mode == 0o755, one.name
        elif one.issym():
            assert one.name == "./usr/bin/appliance" and one.linkname == "../lib/appliance/bin/appliance"
        else:
            assert one.isreg() and one.mode == (0o755 if one.name == f"{HOME}/bin/appliance" else 0o644), one.name


def test_it_writes_only_where_a_package_of_ours_may(content: tarfile.TarFile) -> None:
    allowed = re.compile(
        r"\./usr/(bin/appliance"
        r"|lib/appliance/(appliance|models|packages)/.+|lib/appliance/(VERSION|bin/appliance)"
        r"|lib/systemd/system/[^/]+|lib/systemd/(journald|system)\.conf\.d/appliance\.conf|lib/systemd/system-preset/[^/]+"
        r"|lib/udev/rules\.d/61-appliance\.rules|lib/(sysusers|tmpfiles|modules-load|sysctl)\.d/appliance\.conf"
        r"|share/doc/appliance/.+|share/appliance/station\.yaml)"
    )
    assert [one.name for one in content if not one.isdir() and not allowed.fullmatch(one.name)] == []


def test_it_holds_the_whole_firmware_and_no_tests_tools_or_caches(
    two_builds: tuple[Build, Build], content: tarfile.TarFile
) -> None:
    names = {one.name for one in content}
    for name in read_source(two_builds[0].tree).files:
        if name.startswith(("appliance/", "systemd/")) and not name.endswith(".md"):
            end = name if name.startswith("appliance/") else Path(name).name
            assert any(one.endswith(f"/{end}") for one in names), name
    assert f"{HOME}/models/cap-28mm/model.onnx" in names
    wrong = r"/(tests?|__pycache__|pytest|mypy|ruff|pip|setuptools|torch|train|calibration)(/|$)|\.(pyc|pyi|so\.debug)$|/RECORD$"
    strangers = {one for one in names if re.search(wrong, one) and not one.startswith(f"{HOME}/packages/numpy/_core/tests")}
    assert strangers == set()


def test_the_jetsons_kernels_are_in_the_package_for_its_processor_alone(content: tarfile.TarFile) -> None:
    images = [one.name for one in content if "/kernels/images/" in one.name and one.isfile()]
    assert bool(images) == (ARCH == "arm64")


def test_every_library_is_for_the_packages_processor(content: tarfile.TarFile) -> None:
    files = (data(content, one.name) for one in content if one.isfile())
    found = [elf.machine(one) for one in files if one[:4] == elf.MAGIC]
    assert len(found) > 30 and set(found) == {MACHINES[ARCH][1]}


def test_dpkg_can_check_every_file(installed: Path, deb: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "-e", str(deb), str(tmp_path / "control")], check=True, timeout=60)
    done = subprocess.run(["md5sum", "-c", "--quiet", str(tmp_path / "control/md5sums")], cwd=installed, capture_output=True)
    assert done.returncode == 0, done.stderr
    listed = {line.split("  ", 1)[1] for line in (tmp_path / "control/md5sums").read_text().splitlines()}
    assert listed == {str(one.relative_to(installed)) for one in installed.rglob("*") if one.is_file() and not one.is_symlink()}
    size = sum(-(-one.stat().st_size // 1024) for one in installed.rglob("*") if one.is_file())
    assert abs(int(field_of(deb, "Installed-Size")) - size) < 0.05 * size
    for script in ("postinst", "prerm", "postrm"):
        path = tmp_path / "control" / script
        assert path.stat().st_mode & 0o777 == 0o755 and "@" not in path.read_text().replace('"$@"', "")
        assert subprocess.run(["sh", "-n", str(path)]).returncode == 0
        assert not re.search(r"^\s*systemctl.* (start|restart|try-restart|--now)\b", path.read_text(), re.MULTILINE)


def test_the_change_log_carries_no_time_of_the_build(content: tarfile.TarFile) -> None:
    packed = data(content, "./usr/share/doc/appliance/changelog.gz")
    assert packed[4:8] == bytes(4)  # gzip's own time stamp: two builds in one second would agree all the same
    assert packed[9] == 255  # its system, which some Pythons write and some do not
    assert b"Tue, 24 Nov 2026 12:00:00 +0000" in gzip.decompress(packed)


def test_it_asks_for_its_python_and_for_what_its_libraries_need(deb: Path) -> None:
    minor = int(HERE.split(".")[1])
    asked = field_of(deb, "Depends").split(", ")
    assert {f"python3 (>= 3.{minor})", f"python3 (<< 3.{minor + 1})", "libstdc++6", "systemd (>= 249)", "udev"} <= set(asked)
    (libc,) = (one for one in asked if one.startswith("libc6 "))
    assert int(re.findall(r"2\.(\d+)", libc)[0]) <= SYSTEMS[HERE][1]


LINTIAN_MAY_SAY = {
    # Wheels stand as their makers built them: another byte, and their digest is no longer the lock's.
    "unstripped-binary-or-object", "embedded-library", "shared-library-lacks-prerequisites", "library-not-linked-against-libc",
    "unusual-interpreter",
    # /usr/bin/python3.X, because python3 may be another one day; systemctl, because no debhelper is there.
    "command-with-path-in-maintainer-script", "maintainer-script-calls-systemctl",
    "no-manual-page",  # `appliance --help`
}  # fmt: skip


@pytest.mark.skipif(shutil.which("lintian") is None, reason="apt install lintian")
def test_lintian_finds_nothing_that_has_no_reason(deb: Path) -> None:
    done = subprocess.run(
        ["lintian", "--no-tag-display-limit", "--fail-on", "none", str(deb)], capture_output=True, text=True, timeout=300
    )
    found = re.findall(r"^([EW]): \S+?: (\S+)(.*)$", done.stdout, re.MULTILINE)
    assert "appliance" in done.stdout, done.stderr
    assert [one for one in found if one[1] not in LINTIAN_MAY_SAY] == []


# --- it runs -----------------------------------------------------------------------------------------------

IMPORTS = """
import importlib, pkgutil, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/packages"]
import appliance
for one in pkgutil.walk_packages(appliance.__path__, "appliance."):
    if not one.name.endswith("__main__"):
        importlib.import_module(one.name)
for name in ("amqtt.broker", "pymodbus.client", "pymodbus.server", "gpiozero", "gpiod", "paho.mqtt.client", "numpy.testing",
             "cryptography.hazmat.primitives.asymmetric.ed25519", "onnxruntime", "onnx.checker", "cv2"):
    importlib.import_module(name)
strangers = [name for name, module in sys.modules.items() if "site-packages" in (getattr(module, "__file__", None) or "")]
print(len(sys.modules), strangers)
"""

RUN = """
import sys
tree = sys.argv.pop(1)
sys.path[:0] = [tree, tree + "/packages"]
from appliance.__main__ import main
sys.exit(main())
"""


def python_of_it(installed: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """This Python with nothing but the package: no site-packages, no tree of ours."""
    command = [sys.executable, "-I", "-S", "-B", "-c", code, str(installed / "usr/lib/appliance"), *arguments]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=300)


def test_all_that_the_firmware_imports_is_vendored(installed: Path) -> None:
    done = python_of_it(installed, IMPORTS)
    assert done.returncode == 0, done.stderr[-3000:]
    count, strangers = done.stdout.strip().split(" ", 1)
    assert int(count) > 500 and strangers == "[]"


def test_the_shipped_station_is_valid_and_runs_out_of_the_package(installed: Path) -> None:
    checked = python_of_it(installed, RUN, "check", str(installed / EXAMPLE))
    assert checked.returncode == 0 and "valid" in checked.stdout + checked.stderr


def test_the_launcher_becomes_the_packaged_application(installed: Path) -> None:
    launcher = installed / "usr/lib/appliance/bin/appliance"
    if Path("/usr/bin/python3").resolve().name != f"python{HERE}":
        pytest.skip(f"/usr/bin/python3 is not {HERE}, for which the package was built")
    done = subprocess.run([str(launcher), "check", str(installed / EXAMPLE)], cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_bundle_beside_it_is_whole_and_holds_the_same_program(two_builds: tuple[Build, Build], installed: Path) -> None:
    manifest = verify(two_builds[0].file(".bundle"))
    assert (manifest.arch, manifest.python) == (ARCH, HERE)
    home = installed / "usr/lib/appliance"
    assert {one.path for one in manifest.files} == {str(one.relative_to(home)) for one in home.rglob("*") if one.is_file()}
    told = {one.path: one.sha256 for one in manifest.files}
    for path in ("VERSION", "appliance/__main__.py", "models/cap-28mm/model.onnx"):
        assert told[path] == hashlib.sha256((home / path).read_bytes()).hexdigest()


# --- the parts list ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def parts(two_builds: tuple[Build, Build]) -> dict:
    return json.loads(two_builds[0].file(".cdx.json").read_bytes())


def test_the_parts_list_names_each_vendored_package_with_its_digest_and_licence(parts: dict, installed: Path) -> None:
    folders = (installed / "usr/lib/appliance/packages").glob("*.dist-info")
    there = {canonicalize_name(name): version for name, version in (one.name[:-10].rsplit("-", 1) for one in folders)}
    told = {one["name"]: one for one in parts["components"] if one.get("purl", "").startswith("pkg:pypi/")}
    assert {name: one["version"] for name, one in told.items()} == there and len(there) > 30
    locked = {digest for pin in read_lock(LOCK_FILE.read_text()) for digest in pin.digests}
    for name, one in told.items():
        assert one["hashes"][0]["content"] in locked, name
        assert one["licenses"] and "not told" not in json.dumps(one["licenses"]), name
        assert one["purl"] == f"pkg:pypi/{name}@{one['version']}"


def test_the_parts_list_names_the_libraries_inside_wheels_and_what_comes_from_jetpack(parts: dict) -> None:
    (opencv,) = (one for one in parts["components"] if one["name"] == "opencv-python-headless")
    inside = {one["name"]: one.get("version") for one in opencv["components"]}
    assert inside["libavcodec"] and inside["libcrypto"] and all("-" not in name for name in inside)
    not_in_it = {"name": "appliance:contained", "value": "no"}
    outside = {one["name"] for one in parts["components"] if not_in_it in one.get("properties", [])}
    assert {"PyCUDA", "jetson-utils", "systemd"} <= outside
    assert parts["metadata"]["component"]["version"].replace("+", "%2B") in parts["metadata"]["component"]["purl"]


def test_every_dependency_in_the_parts_list_leads_to_a_part(parts: dict) -> None:
    known = {one["bom-ref"] for one in parts["components"]} | {parts["metadata"]["component"]["bom-ref"]}
    edges = {one["ref"]: set(one["dependsOn"]) for one in parts["dependencies"]}
    assert set(edges) <= known and set().union(*edges.values()) <= known
    reached, waiting = set(), [parts["metadata"]["component"]["bom-ref"]]
    while waiting:
        one = waiting.pop()
        reached.add(one)
        waiting += edges[one] - reached
    assert {ref for ref in edges if "argon2" not in ref} <= reached  # argon2 comes by an extra, which a graph cannot name


@pytest.mark.skipif(not (VALIDATOR / "ready").is_file(), reason="./build.sh deb --validate fetches CycloneDX's validator")
def test_the_parts_list_is_cyclonedx_and_a_broken_one_is_found(
    two_builds: tuple[Build, Build], parts: dict, tmp_path: Path
) -> None:
    validate(two_builds[0].file(".cdx.json"), VALIDATOR)
    broken = tmp_path / "broken.cdx.json"
    broken.write_text(json.dumps({**parts, "components": [{"name": "without a type"}]}))
    with pytest.raises(PackageError, match="no CycloneDX"):
        validate(broken, VALIDATOR)


def test_the_package_carries_its_own_parts_list(two_builds: tuple[Build, Build], installed: Path) -> None:
    assert (installed / "usr/share/doc/appliance/appliance.cdx.json").read_bytes() == two_builds[0].file(".cdx.json").read_bytes()


# --- other targets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("python", ["3.10", "3.12"])
def test_a_jetsons_packages_are_all_for_its_processor_and_are_what_the_requirements_pin(python: str) -> None:
    to, source = Target("arm64", python), read_source(ROOT)
    try:
        wheels, files = vendored(source, to, WHEELS)
    except PackageError as why:
        reachable(why)
    machines = {elf.machine(one.data) for entries in files.values() for one in entries if one.data[:4] == elf.MAGIC}
    assert machines == {183}
    tags = f"cp{python.replace('.', '')}"
    for wheel in wheels:
        assert re.search(rf"-(py3|py2\.py3)-none-any\.whl$|-{tags}-|-cp3\d+-abi3-", wheel.file.name), wheel.file.name
        assert not re.search(r"x86_64|win|macos", wheel.file.name)
    versions = {wheel.name: wheel.version for wheel in wheels}
    for name, version in jetpack_pins(to).items():
        assert versions[name] == version
    asked = system_libraries([one for entries in files.values() for one in entries])
    assert asked <= {"libc6", "libstdc++6", "libgcc-s1", "zlib1g"}


def jetpack_pins(to: Target) -> dict[str, str]:
    """What jetpack-requirements.txt says for one of its Pythons."""
    lines = (ROOT / "jetpack-requirements.txt").read_text().splitlines()
    asked = [Requirement(line.split("#")[0]) for line in lines if re.match(r"[a-z]", line)]
    return {canonicalize_name(one.name): str(one.specifier)[2:] for one in asked if holds(one, to)}


@pytest.mark.parametrize("python", ["3.10", "3.12"])
def test_the_requirements_of_a_jetson_name_every_dependency_once_as_locked_with_a_reason(python: str) -> None:
    to = Target("arm64", python)
    locked = {pin.name: pin.version for pin in run_time_pins(read_lock(LOCK_FILE.read_text()), DEPENDENCIES, to)}
    direct = [canonicalize_name(Requirement(one).name) for one in DEPENDENCIES]
    assert jetpack_pins(to) == {name: locked[name] for name in direct}
    for line in (ROOT / "jetpack-requirements.txt").read_text().splitlines():
        assert not re.match(r"[a-z]", line) or re.search(r"# \S{3,}", line), f"without a reason: {line}"


# --- the lock for another machine --------------------------------------------------------------------------

LOCK = """# made by hand
alpha==1.0 ; python_full_version < '3.11' \\
    --hash=sha256:aa
    # via appliance (pyproject.toml)
alpha==2.0 ; python_full_version >= '3.11' \\
    --hash=sha256:ab \\
    --hash=sha256:ac
    # via appliance (pyproject.toml)
beta==1.5 \\
    --hash=sha256:ba
    # via
    #   alpha
    #   pytest
gamma==3.0 ; platform_machine == 'aarch64' \\
    --hash=sha256:ca
    # via beta
pytest==9.0 \\
    --hash=sha256:da
    # via appliance (pyproject.toml)
pluggy==1.0 \\
    --hash=sha256:ea
    # via pytest
"""


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        (Target("amd64", "3.10"), ["alpha==1.0", "beta==1.5"]),
        (Target("amd64", "3.12"), ["alpha==2.0", "beta==1.5"]),
        (Target("arm64", "3.12"), ["alpha==2.0", "beta==1.5", "gamma==3.0"]),
    ],
)
def test_the_lock_is_read_for_the_target_and_not_for_this_machine(to: Target, expected: list[str]) -> None:
    pins = run_time_pins(read_lock(LOCK), ["alpha"], to)
    assert [f"{pin.name}=={pin.version}" for pin in pins] == expected


def test_no_marker_of_the_lock_asks_this_machine() -> None:
    """Each variable of PEP 508 is the target's: else packaging fills in what it finds here."""
    from packaging.markers import default_environment

    assert set(default_environment()) | {"extra"} == set(Target("arm64", "3.10").markers())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("alpha>=1.0 \\\n    --hash=sha256:aa\n", "not pinned"),
        ("alpha==1.0\n", "not pinned to one version with digests"),
        ("alpha==1.0 \\\n    --hash=sha256:aa\nalpha==1.1 \\\n    --hash=sha256:ab\n", "two versions"),
        ("beta==1.0 \\\n    --hash=sha256:aa\n", "nothing for alpha"),
        ("alpha==1.0 \\\n    --index-url=x\n", ":2: not read"),
    ],
)
def test_a_lock_that_cannot_be_right_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(PackageError, match=complaint):
        run_time_pins(read_lock(text), ["alpha"], Target("amd64", "3.12"))


# --- wheels, by real pip, of a folder instead of the index -------------------------------------------------


def make_wheel(
    folder: Path, name: str, files: dict[str, bytes], requires: tuple[str, ...] = (), tag: str = "py3-none-any"
) -> Pin:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-{tag}.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + "".join(f"Requires-Dist: {one}\n" for one in requires)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}-1.0.dist-info/METADATA", metadata)
        archive.writestr(f"{name}-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
        for inside, content in files.items():
            archive.writestr(inside, content)
    return Pin(name, "1.0", "", (hashlib.sha256(path.read_bytes()).hexdigest(),), frozenset())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip asks this folder and nobody else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return tmp_path / "index"


TO = Target("arm64", "3.12")


def test_fetched_wheels_are_kept_and_the_index_is_not_asked_twice(index: Path, tmp_path: Path) -> None:
    pin = make_wheel(index, "alpha", {"alpha/__init__.py": b"x = 1\n"})
    fetch([pin], TO, tmp_path / "cache")
    shutil.rmtree(index)
    (wheel,) = fetch([pin], TO, tmp_path / "cache")
    assert wheel.file.parent == tmp_path / "cache/arm64_py312" and wheel.digest == pin.digests[0]


def test_a_kept_wheel_that_was_changed_is_fetched_anew(index: Path, tmp_path: Path) -> None:
    pin = make_wheel(index, "alpha", {"alpha/__init__.py": b"x = 1\n"})
    (wheel,) = fetch([pin], TO, tmp_path / "cache")
    wheel.file.write_bytes(wheel.file.read_bytes()[:-1] + b"!")
    (again,) = fetch([pin], TO, tmp_path / "cache")
    assert hashlib.sha256(again.file.read_bytes()).hexdigest() == pin.digests[0]


def test_a_wheel_without_the_locks_digest_is_refused_and_not_kept(index: Path, tmp_path: Path) -> None:
    make_wheel(index, "alpha", {"alpha/__init__.py": b"x = 1\n"})
    with pytest.raises(PackageError, match="nothing was kept"):
        fetch([Pin("alpha", "1.0", "", ("0" * 64,), frozenset())], TO, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wheel_for_another_processor_or_python_is_never_chosen(index: Path, tmp_path: Path) -> None:
    for tag in ("cp312-cp312-manylinux_2_17_x86_64", "cp311-cp311-manylinux_2_17_aarch64", "cp312-cp312-manylinux_2_40_aarch64"):
        pin = make_wheel(index, "alpha", {"alpha/__init__.py": b""}, tag=tag)
        with pytest.raises(PackageError, match="could not be fetched"):
            fetch([pin], TO, tmp_path / "cache")
        shutil.rmtree(index)
    pin = make_wheel(index, "alpha", {"alpha/__init__.py": b""}, tag="cp312-cp312-manylinux_2_39_aarch64")
    assert fetch([pin], TO, tmp_path / "cache")


def test_only_what_a_box_runs_is_unpacked(index: Path, tmp_path: Path) -> None:
    files = {"alpha/__init__.py": b"", "alpha/tests/test_a.py": b"", "alpha/a.pyi": b"", "alpha-1.0.data/scripts/alpha": b"#!",
             "alpha-1.0.data/purelib/beta.py": b"b"}  # fmt: skip
    (wheel,) = fetch([make_wheel(index, "alpha", files)], TO, tmp_path / "cache")
    places = sorted(one.path for one in unpacked(wheel, TO))
    assert places == ["alpha-1.0.dist-info/METADATA", "alpha-1.0.dist-info/WHEEL", "alpha/__init__.py", "beta.py"]


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil.py", "alpha/../../evil.py", "alpha\\..\\evil.py"])
def test_a_name_that_leads_out_of_its_folder_is_refused(index: Path, tmp_path: Path, name: str) -> None:
    pin = make_wheel(index, "alpha", {"alpha/__init__.py": b"", name: b""})
    (wheel,) = fetch([pin], TO, tmp_path / "cache")
    with pytest.raises(PackageError, match="leads out"):
        list(unpacked(wheel, TO))


def test_a_library_of_this_machine_in_a_jetsons_wheel_is_refused(index: Path, tmp_path: Path) -> None:
    host = next(Path(sys.prefix).rglob("*.so")).read_bytes()
    other = Target(next(arch for arch in MACHINES if arch != ARCH), "3.12")
    (wheel,) = fetch([make_wheel(index, "alpha", {"alpha/native.so": host})], other, tmp_path / "cache")
    with pytest.raises(PackageError, match=r"alpha/native\.so: is for ELF machine"):
        list(unpacked(wheel, other))


def test_a_wheels_own_words_say_what_comes_along_extras_too(index: Path, tmp_path: Path) -> None:
    pins = [
        make_wheel(index, "alpha", {}, ("beta[fast]", "never; sys_platform == 'win32'", "never2; extra == 'x'")),
        make_wheel(index, "beta", {}, ("gamma; extra == 'fast'", "delta; extra == 'slow'")),
        make_wheel(index, "gamma", {}),
        make_wheel(index, "delta", {}),
    ]
    wheels = fetch(pins, TO, tmp_path / "cache")
    assert [one.name for one in closure(wheels, ["beta", "alpha"], TO)] == ["alpha", "beta", "gamma"]
    with pytest.raises(PackageError, match="beta needs gamma"):
        closure([one for one in wheels if one.name != "gamma"], ["alpha"], TO)


def test_a_library_that_nobody_brings_is_refused() -> None:
    usual = {"libstdc++.so.6", "libc.so.6", "libm.so.6", "libgcc_s.so.1", "libpthread.so.0"}
    libraries = (one.read_bytes() for one in Path(sys.prefix).rglob("*.so"))
    host = next(one for one in libraries if {"libstdc++.so.6"} <= set(elf.needed(one)) <= usual)
    strange = host.replace(b"libstdc++.so.6", b"libstrange.so1")
    assert "libstdc++6" in system_libraries([Entry("a/one.so", host)])
    with pytest.raises(PackageError, match=r"libstrange\.so1"):
        system_libraries([Entry("a/one.so", strange)])


def test_two_that_bring_the_same_file_must_agree() -> None:
    assert len(in_order([Entry("a/x", b"1"), Entry("a/x", b"1")])) == 1
    with pytest.raises(PackageError, match="/a/x"):
        in_order([Entry("a/x", b"1"), Entry("a/x", b"2")])


@pytest.mark.parametrize("made_of", [None, "0" * 64])
def test_a_jetsons_package_without_kernels_of_these_sources_is_refused(tmp_path: Path, made_of: str | None) -> None:
    shutil.copytree(ROOT / "appliance/kernels", tmp_path / "appliance/kernels")
    folder = tmp_path / "build/kernels"
    folder.mkdir(parents=True)
    if made_of:
        (folder / SOURCES_FILE).write_text(made_of + "\n")
    with pytest.raises(PackageError, match=r"\./build\.sh kernels"):
        kernel_images(tmp_path, Target("arm64", "3.10"))
    assert kernel_images(tmp_path, Target("amd64", "3.10")) is None
    (folder / SOURCES_FILE).write_text(sources_digest(tmp_path / "appliance/kernels") + "\n")
    assert kernel_images(tmp_path, Target("arm64", "3.10")) == folder


# --- the tree ----------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "appliance").mkdir(parents=True)
    (tree / "pyproject.toml").write_text('[project]\nname = "appliance"\nversion = "1.2.3"\n')
    (tree / ".gitignore").write_text("build/\n")
    (tree / "appliance/one.py").write_text("")
    return tree


def test_a_version_tells_release_commit_and_change(small: Path) -> None:
    commit(small)
    assert re.fullmatch(r"1\.2\.3~git20261124\.1\.[0-9a-f]{10}", read_source(small).version)
    subprocess.run(["git", "-C", str(small), "tag", "v1.2.3"], check=True, timeout=60)
    assert read_source(small).version == "1.2.3" and read_source(small).epoch == EPOCH
    (small / "appliance/two.py").write_text("")
    changed = read_source(small)
    assert changed.version.endswith(".dirty") and changed.changed == ("appliance/two.py",)
    (small / "build").mkdir()
    (small / "build/left.py").write_text("")
    assert read_source(small).files == (".gitignore", "appliance/one.py", "appliance/two.py", "pyproject.toml")


def test_a_release_is_newer_than_what_led_to_it_and_older_than_what_came_after(small: Path) -> None:
    commit(small)
    versions = [read_source(small).version]
    subprocess.run(["git", "-C", str(small), "tag", "v1.2.3"], check=True, timeout=60)
    versions.append(read_source(small).version)
    (small / "appliance/two.py").write_text("")
    versions.append(read_source(small).version)
    commit(small)
    versions.append(read_source(small).version)
    assert versions[1] == "1.2.3" and versions[3].startswith("1.2.3+git")
    assert sorted(versions, key=slots.order) == versions
    for older, newer in zip(versions, versions[1:]):
        if shutil.which("dpkg"):
            subprocess.run(["dpkg", "--compare-versions", older, "lt", newer], check=True, timeout=60)


def test_a_tree_without_git_has_the_same_version_and_date_everywhere(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    one = read_source(small)
    assert (one.version, one.commit, one.epoch) == ("1.2.3", None, 1_767_225_600)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert read_source(small).epoch == 1_700_000_000
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(PackageError, match="seconds since 1970"):
        read_source(small)


def test_nothing_that_is_left_out_of_the_package_is_imported_by_the_firmware() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "appliance").rglob("*.py"))
    assert [name for name in LEFT_OUT if re.search(rf"^\s*(import|from) {name}\b", text, re.MULTILINE)] == []


def test_security_md_tells_the_defaults_as_the_configuration_has_them() -> None:
    told = (ROOT / "SECURITY.md").read_text()
    modbus, mqtt = Modbus.model_fields, Mqtt.model_fields
    assert modbus["listen"].default == "127.0.0.1:1502" and "127.0.0.1:1502" in told
    assert modbus["clients"].default == () and "name in `clients` who may write" in told
    assert mqtt["commands"].default == () and "commands from it are refused" in told
    assert Station.model_fields["signature"].default == "warn" and "The default is `warn`" in told
    assert maintainer().partition("<")[2][:-1] in told


def test_the_firmware_never_opens_a_video_with_opencv() -> None:
    """Its wheel brings FFmpeg and an OpenSSL that nobody mends any more; SECURITY.md says that nothing reaches them."""
    text = "\n".join(path.read_text() for path in (ROOT / "appliance").rglob("*.py"))
    assert not re.search(r"VideoCapture|VideoWriter|videoio", text)
