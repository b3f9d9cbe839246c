"""The guest's kernel: User Mode Linux from Debian's own source, by ``kernel.config``.

User Mode Linux is an ordinary program: it needs neither KVM nor root, and has gpio-sim, vivid and dummy_hcd, which Debian's
packaged one lacks. Two cores build it from nothing in about four minutes; it is kept by source, configuration and compiler.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.box.vm.cache import HERE, NotHere, cached, digest, needs, run_tool

PACKAGES = "linux-source flex bison bc libelf-dev gcc make xz-utils"
_SOURCES = Path("/usr/src")
# a third of the source that this kernel never reads
_LEAVE = (
    "Documentation/*/*", "tools/testing", "tools/perf", "arch/*/boot/dts",
    *(f"{room}/*.[chS]" for room in (
        "drivers/gpu", "drivers/net/ethernet", "drivers/net/wireless", "sound", "arch/arm*", "arch/powerpc", "arch/mips",
    )),
)  # fmt: skip


def kernel() -> Path:
    """The program ``linux``. Raises NotHere, RuntimeError."""
    needs(("flex", "bison", "bc", "gcc", "make", "xz"), PACKAGES)
    source = _source()
    compiler = subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout
    size = source.stat()
    key = digest(source.name, f"{size.st_size} {int(size.st_mtime)}", compiler, _config().read_bytes())
    return _that_runs(cached("linux", key, lambda scratch: _build(source, scratch)))


def _that_runs(linux: Path) -> Path:
    """It asks ptrace(2) for much, which not every computer lets a program have. Raises NotHere."""
    command = [linux, "mem=64M", "root=/dev/none", "con=null", "con0=null,fd:1", "panic=1"]
    try:
        said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60).stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as why:
        said = (why.stdout or b"").decode(errors="replace")
    if "Linux version" not in said:
        raise NotHere(f"this computer does not let User Mode Linux run: {' '.join(said.split()[-30:])}")
    return linux


def _config() -> Path:
    return HERE / "kernel.config"


def _source() -> Path:
    """The newest of Debian's kernel sources."""
    found = sorted(_SOURCES.glob("linux-source-*.tar.xz"), key=lambda one: [int(n) for n in re.findall(r"\d+", one.name)])
    if not found:
        raise NotHere(f"no kernel source in {_SOURCES}: sudo apt-get install --no-install-recommends {PACKAGES}")
    return found[-1]


def _build(source: Path, scratch: Path) -> Path:
    log = scratch / "log"
    name = source.name.removesuffix(".tar.xz")
    leave = [f"--exclude={name}/{one}" for one in _LEAVE]
    run_tool(["tar", "-C", scratch, *leave, "-xf", source], log)
    tree, out = scratch / name, scratch / "out"
    make: list[str | Path] = ["nice", "make", "-C", tree, "ARCH=um", f"O={out}"]
    run_tool([*make, "allnoconfig", f"KCONFIG_ALLCONFIG={_config()}"], log)
    dropped = _dropped((out / ".config").read_text())
    if dropped:
        raise RuntimeError(f"this kernel's rules dropped {', '.join(dropped)}; correct {_config()}")
    run_tool([*make, f"-j{(os.cpu_count() or 1) + 1}", "linux"], log)
    run_tool(["strip", out / "linux"], log)
    return out / "linux"


def _dropped(made: str) -> list[str]:
    """What was asked for and is not in the configuration that came out."""
    lines = made.splitlines()
    on = {line.partition("=")[0] for line in lines if line.startswith("CONFIG_")}
    asked = [line for line in _config().read_text().splitlines() if line.startswith("CONFIG_")]
    return [line for line in asked if (line[:-2] in on if line.endswith("=n") else line not in lines)]
