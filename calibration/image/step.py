"""A step of the image, and the little that carries steps out.

A step that is done is not touched: a second run changes nothing, and a run that was cut short goes on where it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from calibration.image.rootfs import ImageError

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """``what``: what it does here, in words, for the list; ``why``: the reason. ``done`` only looks."""

    name: str
    what: str
    why: str
    done: Callable[[], bool]
    do: Callable[[], object]


def carry_out(steps: list[Step], tell: Tell, dry_run: bool = False) -> int:
    """How many steps were not done (and are now, unless ``dry_run``). Raises ImageError where one did not take."""
    changed = 0
    for step in steps:
        if step.done():
            tell(f"  ok       {step.name}")
            continue
        changed += 1
        tell(f"  {'would do' if dry_run else 'doing   '} {step.name}: {step.what}  ({step.why})")
        if not dry_run:
            step.do()
            if not step.done():
                raise ImageError(f"step '{step.name}' ({step.what}) was carried out and is not done")
    return changed
