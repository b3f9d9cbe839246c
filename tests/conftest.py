"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every machine, and no test that fails because a neighbour took the processor.
settings.register_profile("steady", deadline=None, derandomize=True)
# What `./build.sh check` takes its time for.
settings.register_profile("thorough", deadline=None, derandomize=True, max_examples=20_000, stateful_step_count=20)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of real photographs (never committed): APPLIANCE_DATA says where."""
    named = os.environ.get("APPLIANCE_DATA")
    if not named:
        pytest.skip("APPLIANCE_DATA unset")
    folder = Path(named)
    assert folder.is_dir(), f"APPLIANCE_DATA names {folder}, which is no folder"
    return folder
