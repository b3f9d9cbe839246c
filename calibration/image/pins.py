"""PINMUX.txt: which pads must be GPIO, because no program can make them so.

Since JetPack 6 a pad that the pinmux does not give to GPIO takes every request and moves nothing: a gate that never
fires, without an error. The pinmux is flashed with the board, so this is a matter of the image."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

FLOATING_RELEASE = "36.4.4"  # its pin controller lets a line float when a program lets go of it (mended in 36.5)

# 40-pin headers of the developer kits, by line name (NVIDIA/jetson-gpio). A carrier of one's own has its own map.
_ORIN_NANO = (
    "7 PAC.06, 11 PR.04, 12 PH.07, 13 PY.00, 15 PN.01, 16 PY.04, 18 PY.03, 19 PZ.05, 21 PZ.04, 22 PY.01, 23 PZ.03, 24 PZ.06, "
    "26 PZ.07, 29 PQ.05, 31 PQ.06, 32 PG.06, 33 PH.00, 35 PI.02, 36 PR.05, 37 PY.02, 38 PI.01, 40 PI.00"
)
_AGX_ORIN = (
    "7 PQ.06, 11 PR.04, 12 PH.07, 13 PR.00, 15 PN.01, 16 PBB.01, 18 PH.00, 19 PZ.05, 21 PZ.04, 22 PP.04, 23 PZ.03, 24 PZ.06, "
    "26 PZ.07, 29 PAA.01, 31 PAA.00, 32 PBB.00, 33 PAA.02, 35 PI.02, 36 PR.05, 37 PAA.03, 38 PI.01, 40 PI.00"
)
_THOR = (
    "7 PL.06, 11 PM.04, 12 PV.06, 13 PM.00, 15 PF.07, 16 PDD.03, 18 PU.07, 19 PK.01, 21 PK.00, 22 PU.00, 23 PJ.07, 24 PK.02, "
    "26 PK.03, 29 PAD.01, 31 PAD.00, 32 PDD.04, 33 PAE.00, 35 PW.01, 36 PM.05, 37 PAE.01, 38 PW.00, 40 PV.07"
)
_LINE = re.compile(r"^P([A-Z]{1,2})\.(\d{2})$")


@dataclass(frozen=True)
class Pad:
    """One line that a configuration uses. ``where``: the setting's path; ``line``: as the address names it."""

    where: str
    line: str
    output: bool
    options: str


def pads(configuration: Any) -> list[Pad]:
    """Every ``gpio://`` address of a configuration as YAML gives it, in its order."""
    return [_pad(where, text) for where, text in _texts(configuration, "") if text.startswith("gpio://")]


def header(board: str) -> dict[str, int]:
    """Line name -> pin of the developer kit's 40-pin header; empty for a carrier that is not NVIDIA's."""
    kits = {"jetson-orin-nano-devkit": _ORIN_NANO, "jetson-agx-orin-devkit": _AGX_ORIN, "jetson-agx-thor-devkit": _THOR}
    for begins, table in kits.items():
        if board.startswith(begins):
            return {line: int(pin) for pin, line in (one.split() for one in table.split(", "))}
    return {}


def pinmux_text(station: str, found: Iterable[Pad], board: str, release: str) -> str:
    """PINMUX.txt. ``station``: which file was read, empty for none."""
    pins, rows = header(board), list(found)
    lines = [
        "Pads that the pinmux must give to GPIO, before flashing",
        "",
        "Since JetPack 6 a request for a line whose pad belongs to another function succeeds, reads back what was written,",
        "and moves nothing at the connector. Set each pad below in NVIDIA's pinmux spreadsheet for your carrier (customer",
        "usage GPIO, direction as below, outputs initially 0, inputs without pull or as the sensor needs). Put the .dtsi files",
        "that it makes where the board's .conf names them under bootloader/, and flash. Then prove each output at its",
        "connector, with a meter or a wire to an input: reading an output back proves nothing.",
        "",
    ]
    if not station:
        lines.append("No configuration was given (--station FILE): its gpio:// lines are the pads to set.")
    elif not rows:
        lines.append(f"{station} names no gpio:// line: nothing to set.")
    for row in rows:
        pin = f"pin {pins[row.line]} of the 40-pin header" if row.line in pins else _other(row.line, bool(pins))
        direction = "output" if row.output else "input"
        lines.append(f"  {row.line:<20} {direction:<7} {pin:<34} {row.where}{f'  ({row.options})' if row.options else ''}")
    if release == FLOATING_RELEASE:
        lines += [
            "",
            f"WARNING: in L4T {FLOATING_RELEASE} a line floats as soon as its program lets go of it (3.3 V was seen on outputs).",
            "A valve may fire when rejectd is started anew. Take L4T 36.5 (JetPack 6.2.2), and pull lines down in hardware.",
        ]
    return "\n".join([*lines, ""])


def _other(line: str, devkit: bool) -> str:
    if not devkit:
        return "see the carrier's own map"
    return "not on the 40-pin header" if _LINE.match(line) else "by chip and offset"


def _texts(value: Any, where: str) -> Iterable[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _texts(one, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for at, one in enumerate(value):
            yield from _texts(one, f"{where}[{at}]")


def _pad(where: str, address: str) -> Pad:
    parts = urlsplit(address)
    options = ", ".join(f"{key} {value[0]}" for key, value in parse_qs(parts.query).items())
    output = where.startswith("outputs.") or where.rpartition(".")[2] in ("output", "strobe")
    return Pad(where, f"{parts.netloc}{parts.path}".strip("/"), output, options)
