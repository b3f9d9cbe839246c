"""Which compiled image a GPU gets, and the words when it gets none."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.model.kernel_images import (
    SOURCES_FILE,
    TARGETS,
    KernelImageMissing,
    check_sources,
    choose_image,
    find_image,
    sources_digest,
)

ORIN_6, ORIN_7, THOR, OTHER = (target.file for target in TARGETS)
ALL = {ORIN_6, ORIN_7, THOR, OTHER}


def test_the_names_say_version_and_chip() -> None:
    assert ALL == {
        "preprocess-cuda12.6-sm_87.cubin", "preprocess-cuda13.0-sm_87.cubin", "preprocess-cuda13.0-sm_110.cubin",
        "preprocess-cuda12.6-compute_80.ptx",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("available", "driver", "capability", "chosen"),
    [
        (ALL, 12060, (8, 7), ORIN_6),
        (ALL, 12090, (8, 7), ORIN_6),
        (ALL, 13000, (8, 7), ORIN_7),
        (ALL, 13020, (8, 7), ORIN_7),
        (ALL - {ORIN_7}, 13020, (8, 7), ORIN_6),
        ({OTHER}, 12060, (8, 7), OTHER),
        (ALL, 13000, (11, 0), THOR),
        (ALL - {THOR}, 13000, (11, 0), OTHER),
        (ALL, 12080, (11, 0), OTHER),
        (ALL, 12060, (8, 0), OTHER),
        (ALL, 13000, (8, 6), OTHER),
        (ALL, 13000, (9, 0), OTHER),
        (ALL, 13000, (12, 1), OTHER),
        (ALL | {"preprocess-cuda99.0-sm_87.cubin", "notes.txt"}, 13000, (8, 7), ORIN_7),
    ],
)
def test_the_newest_cubin_of_the_chip_then_ptx(available: set[str], driver: int, capability: tuple[int, int], chosen: str):
    assert choose_image(available, driver, capability) == chosen


@pytest.mark.parametrize(
    ("available", "driver", "capability", "said"),
    [
        (set(), 12060, (8, 7), r"compute capability 8\.7 whose driver is for CUDA 12\.6: there is none\. Make preprocess-cuda12"),
        ({THOR}, 12060, (8, 7), r"there is preprocess-cuda13\.0-sm_110\.cubin\. Make .*sm_87.* with \./build\.sh kernels"),
        ({ORIN_7}, 12060, (8, 7), "Make preprocess-cuda12.6-sm_87.cubin or preprocess-cuda12.6-compute_80.ptx with"),
        (ALL, 12020, (8, 7), r"CUDA 12\.2: there is .*, and the oldest that fits needs CUDA 12\.6\. Update the GPU's driver"),
        (ALL, 13000, (7, 2), r"capability 7\.2 .* none can be made for GPUs below 8\.0"),
    ],
)
def test_what_is_missing_is_said_in_words(available: set[str], driver: int, capability: tuple[int, int], said: str) -> None:
    with pytest.raises(KernelImageMissing, match=said):
        choose_image(available, driver, capability)


def test_files_are_found_in_any_of_the_folders(tmp_path: Path) -> None:
    one, other, absent = tmp_path / "one", tmp_path / "other", tmp_path / "absent"
    for folder, names in ((one, [ORIN_6]), (other, [ORIN_6, THOR])):
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"")
    assert find_image([absent, one, other], 13000, (8, 7)) == one / ORIN_6
    assert find_image([one, other], 13000, (11, 0)) == other / THOR
    with pytest.raises(KernelImageMissing, match=f"Looked in {one}, {absent}"):
        find_image([one, absent], 13000, (9, 0))


def test_an_image_of_other_sources_is_refused(tmp_path: Path) -> None:
    sources, image = tmp_path / "sources", tmp_path / ORIN_6
    sources.mkdir()
    (sources / "preprocess.cu").write_text("struct Plan { int a; };")
    (tmp_path / SOURCES_FILE).write_text(sources_digest(sources) + "\n")
    check_sources(image, sources)
    (sources / "preprocess.cu").write_text("struct Plan { int a, b; };")
    with pytest.raises(KernelImageMissing, match="made of other sources"):
        check_sources(image, sources)
    (tmp_path / SOURCES_FILE).unlink()
    with pytest.raises(KernelImageMissing, match="made of other sources"):
        check_sources(image, sources)
