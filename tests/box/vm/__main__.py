"""Builds what a machine needs and is not there yet, and says what took how long: python -m tests.box.vm"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.box.vm.cache import NotHere
from tests.box.vm.kernel import kernel
from tests.box.vm.rootfs import appliance_deb, base_image, box_image


def main() -> int:
    """0; 2 with what is missing, in words."""
    steps: list[tuple[str, Callable[[], Path]]] = [
        ("kernel", kernel), ("Debian", base_image), ("package", appliance_deb), ("box", lambda: box_image(appliance_deb())),
    ]  # fmt: skip
    for what, build in steps:
        began = time.monotonic()
        try:
            place = build()
        except NotHere as why:
            print(f"build.sh box: {why}", file=sys.stderr)
            return 2
        except RuntimeError as why:
            print(f"build.sh box: the {what} could not be built: {why}", file=sys.stderr)
            return 1
        print(f"{what}: {place} ({time.monotonic() - began:.1f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
