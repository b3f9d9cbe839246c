"""Addresses of cameras, digital lines and brokers: URLs in the configuration, checked by the role they play."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema


@dataclass(frozen=True)
class Address:
    """scheme://host/path?query. ``text`` is what was written; ``name`` is host and path, without slashes around."""

    scheme: str
    host: str
    path: str
    query: tuple[tuple[str, str], ...]
    text: str

    @property
    def name(self) -> str:
        return (self.host + self.path).strip("/")

    def option(self, key: str, default: str = "") -> str:
        return dict(self.query).get(key, default)


_GPIO = {"active": ("high", "low"), "bias": ("none", "pull-up", "pull-down"), "drive": ("push-pull", "open-drain")}
_FLIP = ("none", "rotate-180", "horizontal", "vertical")
_WORDS = {
    **{("gpio", key): words for key, words in _GPIO.items()},
    ("csi", "flip"): _FLIP,
    **{(scheme, "stamp"): ("start", "middle", "end") for scheme in ("v4l2", "gige")},
    ("v4l2", "align"): ("top",),
    ("gige", "packet_socket"): ("0", "1"),
}
_NUMBERS = ("gain_unit", "exposure_unit_us", "packet_delay_us", "packet_bytes")
CAMERA: dict[str, tuple[str, ...] | None] = {
    "v4l2": ("serial", "trigger", "stamp", "align", "gain_unit", "exposure_unit_us"), "csi": ("flip",),
    "gige": ("trigger", "packet_delay_us", "packet_bytes", "stamp", "packet_socket"), "rtsp": None,
    "folder": ("fps", "once"), "twin": ("photographs",),
}  # fmt: skip
LINE: dict[str, tuple[str, ...] | None] = {"gpio": tuple(_GPIO), "modbus": ("unit", "watchdog_ms"), "twin": ()}


def parse(text: Any, role: str, schemes: Mapping[str, tuple[str, ...] | None]) -> Address:
    """``schemes``: the options of each (None: those of the far side, whatever they are). Raises ValueError: what is
    wrong; what to write instead."""
    forms = ", ".join(f"{scheme}://…" for scheme in schemes)
    if not isinstance(text, str) or "://" not in text:
        raise ValueError(f"{text!r} is no address of a {role}; write one of {forms}")
    parts = urlsplit(text)
    if parts.scheme not in schemes:
        raise ValueError(f"{parts.scheme}:// is no {role}; write one of {forms}")
    if not (parts.netloc + parts.path).strip("/"):
        raise ValueError(f"{text} names nothing behind {parts.scheme}://; write for example {parts.scheme}://NAME")
    query = tuple(parse_qsl(parts.query, keep_blank_values=True))
    options = schemes[parts.scheme]
    for key, value in query if options is not None else ():
        if key not in (options or ()):
            raise ValueError(f"{parts.scheme}:// has no option {key}; allowed: {', '.join(options or ()) or 'none'}")
        words = _WORDS.get((parts.scheme, key))
        if words and value not in words:
            raise ValueError(f"{key}={value} is not known; write one of {', '.join(words)}")
        if key in _NUMBERS and not _is_number(value):
            raise ValueError(f"{key}={value} is no number above 0; write for example {key}=10")
    path = parts.path if parts.scheme in ("v4l2", "folder") else parts.path.rstrip("/")
    return Address(parts.scheme, parts.netloc, path, query, text)


def _is_number(text: str) -> bool:
    try:
        return 0 < float(text) < 1e9
    except ValueError:
        return False


def _broker(text: Any) -> Address:
    if text == "embedded":
        return Address("embedded", "", "", (), "embedded")
    return parse(text, "broker (or the word embedded)", {"mqtt": (), "mqtts": ()})


def _trigger(text: Any) -> Address:
    if text in ("modbus", "frame"):
        return Address(str(text), "", "", (), str(text))
    return parse(text, "trigger input (or modbus, or frame)", LINE)


def _listen(text: Any) -> str:
    """Raises ValueError."""
    host, colon, port = str(text).rpartition(":")
    if not colon or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is no address and port; write for example 127.0.0.1:1502")
    return f"{_ip(host)}:{int(port)}"


def _ip(text: Any) -> str:
    """IPv4: what the PLC's server listens on. Raises ValueError."""
    try:
        return str(ipaddress.IPv4Address(str(text)))
    except ValueError:
        raise ValueError(f"{text!r} is no IPv4 address; write for example 192.168.0.10") from None


def _role(validate: Callable[[Any], Address]) -> tuple[PlainValidator, PlainSerializer, WithJsonSchema]:
    return PlainValidator(validate), PlainSerializer(lambda v: v.text), WithJsonSchema({"type": "string"})


_TEXT = WithJsonSchema({"type": "string"})
ListenAddress = Annotated[str, PlainValidator(_listen), _TEXT]
ClientAddress = Annotated[str, PlainValidator(_ip), _TEXT]
_CAMERA = _role(lambda v: parse(v, "camera", CAMERA))
_LINE = _role(lambda v: parse(v, "digital line", LINE))
CameraAddress = Annotated[Address, _CAMERA[0], _CAMERA[1], _CAMERA[2]]
LineAddress = Annotated[Address, _LINE[0], _LINE[1], _LINE[2]]
_BROKER, _TRIGGER = _role(_broker), _role(_trigger)
BrokerAddress = Annotated[Address, _BROKER[0], _BROKER[1], _BROKER[2]]
TriggerAddress = Annotated[Address, _TRIGGER[0], _TRIGGER[1], _TRIGGER[2]]
