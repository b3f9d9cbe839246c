"""jetson-utils and jetson-inference for JetPack 6.2: built in a layer, then put into the image with all that they load."""

from __future__ import annotations

import re
from collections.abc import Iterable

from calibration.image.emulation import SHARED, Inside
from calibration.image.rootfs import ImageError, Rootfs

# jetson-inference brings jetson-utils as its submodule, at the commit that it was last changed for.
JETSON_INFERENCE = "45da40a8f3c180191b269f57f736caaa025b8a69"  # of 2025-10-16
JETSON_SOURCE = "https://github.com/dusty-nv/jetson-inference"
_STAMP = "usr/local/share/jetson-inference/built"
# What jetson-utils' Python part imports beside numpy; and the plugins that its pipelines name, to which nothing is linked.
_IMPORTED = ("termcolor", "tabulate", "docker")
_LOADED = (*(f"python3-{name}" for name in _IMPORTED), *(f"gstreamer1.0-plugins-{name}" for name in ("base", "good", "bad")))
# The driver's libraries look for the GPU when they are loaded, so under emulation they are not asked for.
_DRIVER = re.compile(r"libcuda\.so|libnv(?!infer|onnx)")
_NOT_FOUND = re.compile(r"^\s*(\S+) => not found", re.MULTILINE)


def is_there(rootfs: Rootfs) -> bool:
    """Whether both are whole, of the pinned commit; their stamp is put there last."""
    return rootfs.path(f"{_STAMP}-{JETSON_INFERENCE}").is_file()


def put_in(rootfs: Rootfs, inside: Inside, lists: list[str]) -> None:
    """What was built, from ``inside.share``, with the packages it needs. ``lists``: apt's options. Raises ImageError where
    it would not load on the box."""
    built = inside.share / "jetson"
    linked = (inside.share / "packages").read_text(encoding="utf-8").split()
    there = rootfs.packages()
    wanted = sorted(name for name in {*linked, *_LOADED} if name not in there or there[name].state != "installed")
    if wanted:
        inside.must(["apt-get", *lists, "update"])
        inside.must(["apt-get", *lists, "install", "--yes", "--no-install-recommends", *wanted])
        inside.must(["apt-get", "clean"])
    copy_in(inside)
    inside.must(["ldconfig"])
    lacking = missing_libraries(inside, [f"/{file.relative_to(built)}" for file in sorted(built.rglob("*.so*"))])
    if lacking:
        raise ImageError(f"jetson-utils was built and would not load on the box: there is no {', no '.join(lacking)}")
    inside.must(["python3", "-c", f"import {', '.join(_IMPORTED)}"])
    rootfs.write(f"{_STAMP}-{JETSON_INFERENCE}", f"{JETSON_SOURCE} {JETSON_INFERENCE}\n")


def copy_in(inside: Inside) -> None:
    """Files as they are; folders and links to folders that stand there already keep who may enter them."""
    inside.must(["sh", "-ec", f"cd {SHARED}/jetson; tar -cf - . | tar -C / --no-overwrite-dir --keep-directory-symlink -xpf -"])


def missing_libraries(inside: Inside, files: Iterable[str]) -> list[str]:
    """What ``files`` are linked to and is not there, but for the driver's."""
    said = inside.run(["sh", "-c", 'for file; do ldd "$file"; done', "each", *files]).said
    return sorted({name for name in _NOT_FOUND.findall(said) if not _DRIVER.match(name)})
