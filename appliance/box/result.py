"""RESULT.txt: what a person reads who pulls the stick and opens it on any computer. Lines end as Notepad wants them."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Literal

from appliance.box.words import plain, without_secrets

Outcome = Literal["applied", "unchanged", "served", "refused", "returned"]
_HEADS: dict[Outcome, str] = {
    "applied": "APPLIED - the new configuration is running",
    "unchanged": "NOTHING TO CHANGE - the box has this configuration already",
    "served": "DONE - no configuration was asked for; see below",
    "refused": "REFUSED - nothing was changed",
    "returned": "RETURNED - the new configuration did not work here; the box went back to the one before",
}
_MOST_LINES = 200  # in one section
_WIDTH = 110
_LONGEST_LINE = 600


@dataclass(frozen=True)
class Report:
    """Lines by section; an empty section is left out. ``text``: the one sentence that also goes to ledger and broker;
    ``head`` stands in the outcome's own place."""

    outcome: Outcome
    text: str
    when: str
    box: str
    found: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    head: str = ""


def compose(report: Report) -> bytes:
    """The file."""
    lines = [f"Result: {report.head or _HEADS[report.outcome]}", "", *_wrapped(report.text, ""), ""]
    lines += [f"Box:  {_clean(report.box)}", f"Time: {_clean(report.when)}"]
    for title, section in (
        ("WHAT IS WRONG", report.wrong), ("WHAT CHANGED", report.changed), ("WHAT TO KNOW", report.notes),
        ("WHAT WAS FOUND ON THE STICK", report.found), ("WHAT IS RUNNING NOW", report.running),
    ):  # fmt: skip
        if section:
            lines += ["", f"{title} ({len(section)})" if title in ("WHAT IS WRONG", "WHAT CHANGED") else title]
            lines += [line for one in section[:_MOST_LINES] for line in _wrapped(one, "  ")]
            if len(section) > _MOST_LINES:
                lines.append(f"  ... and {len(section) - _MOST_LINES} more; correct these first")
    return "".join(line.rstrip() + "\r\n" for line in lines).encode("utf-8", "backslashreplace")


def _clean(text: str) -> str:
    return without_secrets(plain(text[:_LONGEST_LINE]))


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        _clean(text), _WIDTH, initial_indent=indent, subsequent_indent=indent + "    " * bool(indent),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
