"""Names that are never used twice: ULIDs for runs; and how the running program calls itself."""

from __future__ import annotations

import os

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_ulid(wall_us: int, randomness: bytes) -> str:
    """26 characters: 48 bits of milliseconds, then 80 random bits (ULID specification). ``randomness``: 10 bytes."""
    value = ((wall_us // 1000) & (2**48 - 1)) << 80 | int.from_bytes(randomness[:10], "big")
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


def running_version() -> str:
    """By what a slot's program is known (the launcher says so); "" where it runs from a checkout."""
    return os.environ.get("APPLIANCE_VERSION", "")
