"""What differs between the two JetPack releases that are served."""

from __future__ import annotations

from dataclasses import dataclass

from calibration.image.rootfs import ImageError


@dataclass(frozen=True)
class JetPack:
    """``l4t``: how its L4T releases begin; ``cuda``: as its packages are called; ``jetson_utils``: whether it builds
    there; ``orin_only``: whether it is for no other chip."""

    name: str
    l4t: tuple[str, ...]
    python: str
    cuda: str
    jetson_utils: bool
    orin_only: bool


JETPACKS = {
    "6.2": JetPack("6.2", ("36.4.", "36.5."), "3.10", "12-6", True, True),
    "7.2": JetPack("7.2", ("39.2.",), "3.12", "13-2", False, False),
}


def check_release(jetpack: JetPack, l4t: str, python: str, any_python: bool) -> None:
    """Raises ImageError when the root file system is of another release; ``any_python``: a stand-in's may differ."""
    if not l4t.startswith(jetpack.l4t):
        told = " or ".join(f"R{one}x" for one in jetpack.l4t)
        other = next((one.name for one in JETPACKS.values() if l4t.startswith(one.l4t)), None)
        raise ImageError(
            f"its root file system is L4T {l4t}, and JetPack {jetpack.name} is {told}; "
            + (f"write --jetpack {other}" if other else "it is none that is served")
        )
    if python != jetpack.python and not any_python:
        raise ImageError(
            f"its root file system has Python {python}; JetPack {jetpack.name} has {jetpack.python}. "
            "Is it NVIDIA's own? --any-python takes it as it is"
        )
