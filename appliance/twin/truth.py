"""What really happened to each part, as the twin writes it down: one JSON line a part."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO, Literal, Optional

import msgspec

from appliance.twin.line import Fate


class Supplied(msgspec.Struct, frozen=True):
    """What a part is. ``kind``/``size``/``step`` as in parts.py; ``name``: the photograph it is, if it is one."""

    defective: bool
    kind: Optional[str] = None
    size: float = 0.0
    step: float = 1.0
    name: Optional[str] = None


class TruthRow(msgspec.Struct, frozen=True):
    """One part. ``part``: the twin's own number; ``edge_ns``: its front at the eye, monotonic.

    ``watched``: a live rejectd was told of the edge. ``bin`` ``belt``: it never came past the gate.
    ``gate_ns``: (opened, closed) of the stretch in reject that hit it; closed 0 = still open."""

    part: int
    edge_ns: int
    defective: bool
    kind: Optional[str]
    size: float
    step: float
    name: Optional[str]
    watched: bool
    bin: Literal["good", "reject", "belt"]
    arrive_ns: int
    leave_ns: int
    gate_ns: Optional[tuple[int, int]]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(TruthRow)


def row_of(fate: Fate, supplied: Supplied, watched: bool) -> TruthRow:
    """The row of a part whose fate is known."""
    return TruthRow(
        fate.part, fate.edge_ns, supplied.defective, supplied.kind, supplied.size, supplied.step, supplied.name, watched,
        fate.bin, fate.arrive_ns, fate.leave_ns, fate.gate_ns,
    )  # fmt: skip


def write_rows(file: IO[bytes], rows: Iterable[TruthRow]) -> None:
    """Append and flush. Raises OSError."""
    for row in rows:
        file.write(_encoder.encode(row) + b"\n")
    file.flush()


def read_rows(path: Path) -> list[TruthRow]:
    """All rows of a truth file. Raises OSError, msgspec.DecodeError."""
    return [_decoder.decode(line) for line in path.read_bytes().splitlines() if line]
