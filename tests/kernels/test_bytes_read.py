"""The table of bytes read that `./build.sh kernels` prints."""

from __future__ import annotations

import pytest

from appliance.model.pixels import frame_bytes
from calibration import host_kernels, kernels
from calibration.host_kernels import bytes_read
from tests.kernels.host_library import host_library


def test_the_table_shows_that_the_roi_is_read_once() -> None:
    rows = {line.split()[0]: [int(word) for word in line.split()[1:]] for line in bytes_read(host_library())[2:]}
    assert len(rows) == 9
    for pixel, (frame, roi, of_roi, whole, not_halved) in rows.items():
        assert frame == frame_bytes(pixel, 1280, 960) == whole
        assert roi == frame_bytes(pixel, 960, 960) == of_roi
        assert not_halved == frame or pixel.startswith("bayer") and frame < not_halved < 1.07 * frame


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(host_kernels.shutil, "which", lambda name: None)
    kernels._tell_bytes_read()
    assert capsys.readouterr().out == "bytes read per frame: not counted, no C++ compiler (g++ or clang++) on this machine\n"
