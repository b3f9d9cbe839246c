"""The GPU kernels for every Jetson, made on any computer: NVRTC from pinned packages, no GPU and no toolkit.

    python -m calibration.kernels NVRTC_FOLDER -o FOLDER

``NVRTC_FOLDER`` holds the packages' trees, one folder a version (``./build.sh kernels`` puts them there). One cubin a
chip and driver generation: sm_87 by CUDA 12.6 for JetPack 6; sm_87 and sm_110 by 13.0 for JetPack 7.2; and PTX
compute_80 by 12.6 for any other GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.model.kernel_images import SOURCES_FILE, TARGETS, Target, sources_digest
from calibration.host_kernels import NoCompiler, bytes_read, host_library

SOURCES = Path(__file__).resolve().parents[1] / "appliance" / "kernels"
_FILES = ("preprocess.cu", "reduce.cu")  # one image, in this order
_FLAGS = ("--std=c++17", "--ptxas-options=-v")
_ELF, _CUDA_MACHINE = b"\x7fELF", 190
# What CUDA's ELF headers say (of the files that these very compilers make): e_ident's OS/ABI and ABI version, and
# where e_flags holds the chip.
_ABI = {"12.6": (0x33, 7, 0), "13.0": (0x41, 8, 8)}


@dataclass(frozen=True)
class Used:
    """What one kernel takes of the chip; ``spilled_bytes``: of variables in memory, not in registers."""

    registers: int
    shared_bytes: int
    spilled_bytes: int


class KernelError(Exception):
    """A kernel could not be made, and why."""


class Nvrtc:
    """libnvrtc of one version, by ctypes. Raises KernelError when the tree does not hold it."""

    def __init__(self, folder: Path, version: str) -> None:
        self.version = version
        libraries = sorted(path for path in folder.rglob("libnvrtc.so.*") if ".alt." not in path.name)
        builtins = sorted(path for path in folder.rglob("libnvrtc-builtins.so.*") if ".alt." not in path.name)
        if not libraries or not builtins:
            raise KernelError(f"{folder} holds no NVRTC {version}; run ./build.sh kernels, which puts it there")
        ctypes.CDLL(str(builtins[0]), ctypes.RTLD_GLOBAL)  # found by its name from then on, wherever the tree lies
        self._library = ctypes.CDLL(str(libraries[0]))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        if f"{major.value}.{minor.value}" != version:
            raise KernelError(f"{libraries[0]} is NVRTC {major.value}.{minor.value}, not {version}")

    def compile(self, source: str, arch: str) -> tuple[bytes, str]:
        """(cubin or PTX, the assembler's log). Raises KernelError with the compiler's words."""
        program = ctypes.c_void_p()
        self._call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"preprocess.cu", 0, None, None)
        flags = [flag.encode() for flag in (*_FLAGS, f"--gpu-architecture={arch}")]
        failed = self._library.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*flags))
        log = self._text(program, "nvrtcGetProgramLog").decode(errors="replace").rstrip("\0")
        if failed:
            raise KernelError(f"NVRTC {self.version} refuses the kernels for {arch}:\n{log}")
        what = "nvrtcGetCUBIN" if arch.startswith("sm_") else "nvrtcGetPTX"
        return self._text(program, what), log

    def _text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(what, program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise KernelError(f"{name} of NVRTC failed with {code}")


def check_header(cubin: bytes, target: Target) -> None:
    """The ELF header says the chip and the driver generation it was made for. Raises KernelError."""
    machine = int.from_bytes(cubin[18:20], "little")
    flags = int.from_bytes(cubin[48:52], "little")
    os_abi, abi_version, shift = _ABI[target.cuda]
    chip = flags >> shift & 0xFF
    told = (cubin[:4], machine, cubin[7], cubin[8], chip)
    wanted = (_ELF, _CUDA_MACHINE, os_abi, abi_version, int(target.arch[3:]))
    if told != wanted:
        raise KernelError(f"{target.file}: its header says {told}, not {wanted}")


def usage(log: str) -> dict[str, Used]:
    """Per kernel, of the assembler's log."""
    found: dict[str, Used] = {}
    for name, body in re.findall(r"Compiling entry function '(\w+)'.*?\n(.*?)(?=Compiling entry|\Z)", log, re.DOTALL):
        spilled = sum(int(number) for number in re.findall(r"(\d+) bytes (?:spill|stack frame)", body))
        registers, shared = re.search(r"Used (\d+) registers", body), re.search(r"(\d+) bytes smem", body)
        if registers is None:
            raise KernelError(f"the assembler does not say what {name} uses")
        found[name] = Used(int(registers[1]), int(shared[1]) if shared else 0, spilled)
    return found


def source_text() -> str:
    """What is compiled, each file's lines under its own name."""
    return "".join(f'#line 1 "{name}"\n{(SOURCES / name).read_text(encoding="utf-8")}' for name in _FILES)


def make(nvrtc: Path, out: Path, source: str | None = None) -> dict[str, dict[str, Used]]:
    """All targets into ``out``; returns what each kernel uses. Raises KernelError for a spill or a wrong header."""
    text = source_text() if source is None else source
    out.mkdir(parents=True, exist_ok=True)
    compilers = {version: Nvrtc(nvrtc / version, version) for version in sorted({one.cuda for one in TARGETS})}
    told = {}
    for target in TARGETS:
        image, log = compilers[target.cuda].compile(text, target.arch)
        if target.is_cubin:
            check_header(image, target)
            told[target.file] = usage(log)
            spilling = [name for name, used in told[target.file].items() if used.spilled_bytes]
            if spilling:
                raise KernelError(f"{target.file}: {', '.join(spilling)} spill registers to memory")
        (out / target.file).write_bytes(image)
    (out / SOURCES_FILE).write_text(sources_digest(SOURCES) + "\n", encoding="utf-8")
    return told


def _tell_bytes_read() -> None:
    try:
        with tempfile.TemporaryDirectory() as folder:
            lines = bytes_read(host_library(Path(folder)))
    except NoCompiler as why:
        sys.stdout.write(f"bytes read per frame: not counted, {why}\n")
        return
    sys.stdout.write("bytes read per frame, counted by the CPU run of the same source:\n")
    for line in lines:
        sys.stdout.write(f"  {line}\n")


def main() -> int:
    """Exit 0, 1 when a kernel cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m calibration.kernels", description=__doc__)
    parser.add_argument("nvrtc", type=Path)
    parser.add_argument("-o", dest="out", type=Path, required=True)
    options = parser.parse_args()
    try:
        told = make(options.nvrtc, options.out)
    except KernelError as why:
        sys.stderr.write(f"{why}\n")
        return 1
    for target in TARGETS:
        size = (options.out / target.file).stat().st_size
        sys.stdout.write(f"{target.file}: {size} bytes, for {target.says}\n")
        for name, used in sorted(told.get(target.file, {}).items()):
            sys.stdout.write(f"  {name:<16} {used.registers:>3} registers, {used.shared_bytes:>5} bytes shared, 0 spilled\n")
    _tell_bytes_read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
