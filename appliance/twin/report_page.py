"""The page a demo leaves behind: the table and the JSON of one rehearsal, in one file without scripts."""

from __future__ import annotations

import html
import io
import json
from pathlib import Path

from appliance.twin.result import Result

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Rehearsal</title>
<style>body{{font:15px/1.5 system-ui;margin:2em;max-width:70em}}pre{{background:#f4f4f4;padding:1em;overflow:auto}}
.ok{{color:#0a6b2d}}.bad{{color:#a31515}}</style>
<h1 class="{look}">{word}</h1><p>A simulated line: every figure here is of the twin, not of a plant.</p>
<pre>{table}</pre><h2>The figures</h2><pre>{figures}</pre></html>
"""


def write_page(path: Path, result: Result) -> None:
    """Raises OSError."""
    table = io.StringIO()
    result.print_table(table)
    failed = bool(result.failures())
    path.write_text(
        _PAGE.format(
            look="bad" if failed else "ok",
            word="Not passed" if failed else "Passed",
            table=html.escape(table.getvalue()),
            figures=html.escape(json.dumps(result.as_json(), indent=1)),
        ),
        encoding="utf-8",
    )
