"""Names that are never used twice: ULIDs for runs."""

from __future__ import annotations

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_ulid(wall_us: int, randomness: bytes) -> str:
    """26 characters: 48 bits of milliseconds, then 80 random bits (ULID specification). ``randomness``: 10 bytes."""
    value = ((wall_us // 1000) & (2**48 - 1)) << 80 | int.from_bytes(randomness[:10], "big")
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))
