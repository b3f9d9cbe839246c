"""The tiny bundle of a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.model.bundle import Bundle
from tests.model.tiny import tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "tiny")
