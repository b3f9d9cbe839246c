"""What changed from one configuration to the next, in words: ``recipes.cap-28mm.inspect[0].fail_at: 0.75 -> 0.6 (line 61)``.

Compared is what holds, defaults included, not how it is written. No password leaves this file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_LONGEST = 160  # characters of one value
# To the last @ of the word, for a password may hold any sign; too much is hidden rather than too little. Every repetition
# has its bound: what is searched may be a stranger's, and a search may not take the square of its length. What a camera is
# asked for is its maker's own, and some of them want the password there.
_USER = re.compile(r"(?<=://)\S{0,256}(?=@)")
_RTSP_QUERY = re.compile(r"(?i)(?<=rtsp)(s?://[^\s?]{0,256}\?)\S+")
_SECRET = re.compile(r"(?im)^([ \t]{0,64}[\w.-]{0,64}(?:password|passphrase|secret|token|private_key)\b[ \t]*[:=][ \t]*)\S.*$")
_HIDDEN = "***"
_NOTHING = ("integrity",)  # told as bundles whose files differ

Path = tuple[Any, ...]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], lines: Mapping[Path, int]) -> list[str]:
    """``old``, ``new``: two stations as plain JSON (``model_dump(mode="json")``); ``lines``: of the new file, by path."""
    return _mapping((), old, new, lines)


def plain(text: str) -> str:
    """``text`` without characters that steer a terminal, a log or the eye: control, direction and invisible ones become
    escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape", "backslashreplace").decode("ascii") for one in text)


def without_secrets(text: str) -> str:
    """User and password of addresses, queries of RTSP's, and values of settings that are called so, made invisible."""
    text = _RTSP_QUERY.sub(lambda found: found[1] + _HIDDEN, _USER.sub(_HIDDEN, text))
    return _SECRET.sub(lambda found: found[1] + _HIDDEN, text)


def _mapping(path: Path, old: Mapping[str, Any], new: Mapping[str, Any], lines: Mapping[Path, int]) -> list[str]:
    told: list[str] = []
    for key in [*new, *(key for key in old if key not in new)]:
        below = (*path, key)
        if below[0] not in _NOTHING:
            told += _value(below, old.get(key), new.get(key), lines)
    return told


def _value(path: Path, old: Any, new: Any, lines: Mapping[Path, int]) -> list[str]:
    if _same(old, new):
        return []
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return _mapping(path, old, new, lines)
    if _of_sections(old) and _of_sections(new):
        pairs = range(max(len(old), len(new)))
        return [line for at in pairs for line in _value((*path, at), _item(old, at), _item(new, at), lines)]
    name, line = spelt(path), _line(path, lines)
    if old is None:
        return [f"{name}: added: {shown(new)}{line}"]
    if new is None:
        return [f"{name}: taken out (it was {shown(old)})"]
    if shown(old) == shown(new):
        return [f"{name}: changed in what is not shown here{line}"]
    return [f"{name}: {shown(old)} -> {shown(new)}{line}"]


def _same(old: Any, new: Any) -> bool:
    """Also: true is not 1."""
    return bool(old == new) and isinstance(old, bool) == isinstance(new, bool)


def _of_sections(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(one, Mapping) for one in value)


def _item(values: Any, at: int) -> Any:
    return values[at] if at < len(values) else None


def spelt(path: Path) -> str:
    """``recipes.cap.inspect[0].fail_at``."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return plain(text.removeprefix("."))


def _line(path: Path, lines: Mapping[Path, int]) -> str:
    """Where the setting stands; "" where it does not and holds by default."""
    return f" (line {lines[path]})" if path in lines else ""


def shown(value: Any) -> str:
    """A value as YAML would have it on one line; secrets hidden, long ones cut."""
    text = without_secrets(plain(_flow(value)))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _flow(value: Any) -> str:
    """What stands at its default of nothing is left out."""
    if isinstance(value, Mapping):
        inner = (f"{key}: {_flow(one)}" for key, one in value.items() if one is not None and one != {} and one != [])
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value) if value != "" else '""'
