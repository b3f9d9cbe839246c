"""The cubins for the Jetson's chips: made by the pinned compilers where they are at hand, and their headers checked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from appliance.model.kernel_images import SOURCES_FILE
from calibration.kernels import TARGETS, KernelError, Target, check_header, make, source_text, usage

NVRTC = Path(sys.prefix) / "nvrtc"
COMPILED = pytest.mark.skipif(not NVRTC.is_dir(), reason="NVRTC is not there; ./build.sh kernels fetches it (110 MB)")
KERNELS = 14


@COMPILED
def test_each_chip_gets_its_cubin_without_a_spill(tmp_path: Path) -> None:
    told = make(NVRTC, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {SOURCES_FILE, *(target.file for target in TARGETS)}
    for file, kernels in told.items():
        assert len(kernels) == KERNELS, file
        assert all(0 < used.registers <= 64 for used in kernels.values()), "at most 64, so that 1,024 threads fit"
        assert all(used.shared_bytes <= 36864 for used in kernels.values()), "four blocks fit into Orin's 164 KiB"
    ptx = next(path for path in tmp_path.iterdir() if path.suffix == ".ptx").read_text(errors="replace")
    assert ".target sm_80" in ptx and ptx.count(".entry") == KERNELS


@COMPILED
def test_a_fault_of_the_source_is_told_in_the_compilers_words(tmp_path: Path) -> None:
    source = source_text().replace("struct Sums {", "struct Sums { undeclared x;")
    with pytest.raises(KernelError, match="undeclared"):
        make(NVRTC, tmp_path, source)


@COMPILED
def test_a_spill_is_refused(tmp_path: Path) -> None:
    source = source_text().replace("__launch_bounds__(256, at_once)", "__maxnreg__(24)")
    with pytest.raises(KernelError, match="spill registers"):
        make(NVRTC, tmp_path, source)


def header(os_abi: int, abi_version: int, flags: int) -> bytes:
    image = bytearray(64)
    image[:4], image[7], image[8] = b"\x7fELF", os_abi, abi_version
    image[18:20] = (190).to_bytes(2, "little")
    image[48:52] = flags.to_bytes(4, "little")
    return bytes(image)


def test_a_cubin_of_another_chip_or_generation_is_refused() -> None:
    orin6, orin7 = Target("12.6", "sm_87", ""), Target("13.0", "sm_87", "")
    check_header(header(0x33, 7, 0x00570557), orin6)
    check_header(header(0x41, 8, 0x06005702), orin7)
    for wrong in (header(0x33, 7, 0x0058_0558), header(0x41, 8, 0x06005702), header(0x33, 8, 0x00570557), b"\0" * 64):
        with pytest.raises(KernelError, match="its header says"):
            check_header(wrong, orin6)


def test_the_assemblers_log_is_read() -> None:
    log = (
        "ptxas info    : Compiling entry function 'sample_u8' for 'sm_87'\n"
        "ptxas         .     0 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 48 registers, used 1 barriers, 16 bytes smem, 568 bytes cmem[0]\n"
        "ptxas info    : Compiling entry function 'gather_rgb8' for 'sm_87'\n"
        "ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 31 registers, used 1 barriers, 1032 bytes smem\n"
    )
    told = usage(log)
    assert (told["sample_u8"].spilled_bytes, told["gather_rgb8"].spilled_bytes) == (12, 0)
    assert (told["sample_u8"].registers, told["gather_rgb8"].shared_bytes) == (48, 1032)
