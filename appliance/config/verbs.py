"""``appliance check`` and ``appliance schema``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from appliance.config.crosscheck import remarks
from appliance.config.load import ConfigError, load
from appliance.config.schema import Station


def check(path: Path, out: TextIO, more: Callable[[Station], list[str]] = lambda station: []) -> int:
    """Every error, or what a person should know (``more``: of what this room does not know, as bundles). Exit 0, or 2 for
    an invalid file."""
    try:
        station = load(path)
    except ConfigError as why:
        out.write(f"{why}\n{path}: {len(why.problems)} to correct; nothing was changed\n")
        return 2
    for remark in (*remarks(station), *more(station)):
        out.write(f"{path}: {remark}\n")
    out.write(f"{path}: valid, revision {station.revision}, recipe {station.active}, {station.digest}\n")
    return 0


def schema(out: TextIO) -> int:
    """JSON Schema of the configuration, for editors."""
    json.dump(Station.model_json_schema(mode="serialization"), out, indent=1)
    out.write("\n")
    return 0
