"""The lamp that tells a person of the stick: patterns over rejectd's ticks of 100 ms. Pure."""

from __future__ import annotations

LAMP = "stick"  # the output's role

_PATTERNS: dict[str, tuple[bool, ...]] = {
    "off": (False,),
    "on": (True,),
    "slow": (True,) * 10 + (False,) * 10,
    "fast": (True, True, False, False),
}


def known(pattern: str) -> bool:
    """Whether there is such a pattern: off, on, slow or fast."""
    return pattern in _PATTERNS


def lit(pattern: str, tick: int) -> bool:
    """Whether it is lit in the ``tick``-th tick. Raises KeyError."""
    levels = _PATTERNS[pattern]
    return levels[tick % len(levels)]
