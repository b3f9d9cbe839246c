"""Machines for the tests that boot one. They run with ``./build.sh box``, which builds what they need; elsewhere they skip."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.box.vm import rootfs
from tests.box.vm.cache import NotHere
from tests.box.vm.machine import Machine

VERB = "./build.sh box"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"machine: boots a virtual machine; run by {VERB}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A machine takes more than a test's two minutes when its computer is busy."""
    for item in items:
        if item.get_closest_marker("machine") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def base_image() -> Path:
    """Debian and the agent, without the appliance."""
    return _or_skip(rootfs.base_image)


@pytest.fixture(scope="session")
def box_image() -> Path:
    """The same Debian with this tree's package installed; or APPLIANCE_BOX_IMAGE, one that was built before."""
    given = os.environ.get("APPLIANCE_BOX_IMAGE")
    return _or_skip(lambda: Path(given) if given else rootfs.box_image(rootfs.appliance_deb()))


@pytest.fixture
def machine_of(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    """Makes machines (not booted); all are off in the end."""
    made: list[Machine] = []

    def make(image: Path, **how: object) -> Machine:
        made.append(Machine(image, tmp_path / f"vm{len(made)}", **how))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for machine in made:
        machine.cut_power()


def _or_skip(build: Callable[[], Path]) -> Path:
    if not os.environ.get("APPLIANCE_BOX"):
        pytest.skip(f"boots a virtual machine: {VERB} builds and runs it")
    try:
        return build()
    except NotHere as why:
        pytest.skip(str(why))
