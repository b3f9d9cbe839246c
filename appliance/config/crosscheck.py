"""What no single setting can tell: contradictions between settings, and what a person should know. Pure."""

from __future__ import annotations

from typing import Any

from appliance.config.addresses import Address
from appliance.config.schema import Camera, Station

MOST_PULSES_PER_S = 2000
_GAIN = Camera.model_fields["gain"].default  # as where nobody wrote one
Found = tuple[tuple[Any, ...], str, str]


def crosscheck(station: Station) -> list[Found]:
    """(path, what is wrong, what to write instead) of every contradiction."""
    return [*_transport(station), *_gate(station), *_cameras(station), *_recipes(station), *_lines(station)]


def fastest_mm_s(station: Station) -> float:
    """The belt's highest speed."""
    return station.transport.speed_mm_s or station.transport.max_speed_mm_s


def window_mm(station: Station) -> float:
    """Belt travel during which the gate is taken by one rejected part: its own length or the pulse, whichever is longer."""
    pulse_mm = (station.reject.pulse_ms - station.reject.response_ms) / 1000 * fastest_mm_s(station)
    return max(station.part_mm, pulse_mm)


def highest_ppm(station: Station) -> float:
    """Parts a minute at which a rejected part's window still ends before its neighbour arrives."""
    return 60 * fastest_mm_s(station) / max(window_mm(station), station.part_mm, station.trigger.min_pitch_mm)


def remarks(station: Station) -> list[str]:
    """What a person should know of a configuration that is valid."""
    told = [f"this gate serves at most {highest_ppm(station):.0f} parts/min at {fastest_mm_s(station):g} mm/s"]
    if station.reject.on_late == "accept":
        told.append("warning: on_late: accept lets parts pass that nobody judged")
    if station.transport.speed_mm_s and station.transport.running is None:
        told.append("warning: without transport.running a stop of the belt is not seen")
    if station.transport.encoder and station.transport.encoder.input_b is None:
        told.append("warning: without transport.encoder.input_b a belt that runs back is counted forward")
    if station.transport.encoder and station.transport.running is None:
        told.append("warning: without transport.running an encoder that died while no part came is not found at once")
    if station.divert and station.reject.on_review != "divert":
        told.append("warning: divert takes nothing: reject.on_review is not divert")
    if station.outputs.heartbeat is None:
        told.append("warning: without outputs.heartbeat and a watchdog relay a dead box is not fail-safe")
    if station.simulated:
        told.append("simulated: cameras or pins are not of a real line; every record says so")
    return told


def _transport(station: Station) -> list[Found]:
    transport = station.transport
    if (transport.speed_mm_s is None) == (transport.encoder is None):
        return [(("transport",), "exactly one of speed_mm_s and encoder is needed", "write speed_mm_s: 500, or an encoder")]
    reject = station.reject
    if encoder := transport.encoder:
        per_s = transport.max_speed_mm_s / encoder.mm_per_pulse
        if per_s > MOST_PULSES_PER_S:
            needed = transport.max_speed_mm_s / MOST_PULSES_PER_S
            text = f"{per_s:.0f} pulses/s at {transport.max_speed_mm_s:g} mm/s; {MOST_PULSES_PER_S} can be counted"
            return [(("transport", "encoder", "mm_per_pulse"), text, f"use a coarser encoder: at least {needed:g}")]
        if encoder.mm_per_pulse > station.trigger.min_pitch_mm / 2:
            text = f"too coarse to tell parts {station.trigger.min_pitch_mm:g} mm apart"
            instead = f"write at most {station.trigger.min_pitch_mm / 2:g}"
            return [(("transport", "encoder", "mm_per_pulse"), text, instead)]
    free_ms = reject.distance_mm / fastest_mm_s(station) * 1000 - reject.response_ms - reject.deadline_ms
    if free_ms <= 0:
        return [
            (
                ("reject", "distance_mm"),
                f"at {fastest_mm_s(station):g} mm/s the deadline lies {-free_ms:.1f} ms before the trigger",
                "put the gate further away, or lower response_ms or deadline_ms",
            )
        ]
    return []


def _gate(station: Station) -> list[Found]:
    found: list[Found] = []
    for name, gate in (("reject", station.reject), ("divert", station.divert)):
        falls = gate is None or (gate.kind == "hold" and gate.energised_means == "accept")
        if not falls and not station.outputs.line_stop:
            text = "a gate that does not fall to reject by itself needs a line stop"
            found.append(((name,), text, "write outputs.line_stop"))
    if station.reject.on_review == "divert" and station.divert is None:
        found.append((("reject", "on_review"), "there is no second gate", "write a section divert, or reject or accept"))
    if station.divert and station.divert.distance_mm < station.reject.distance_mm + station.part_mm:
        least = station.reject.distance_mm + station.part_mm
        found.append((("divert", "distance_mm"), "a part at the first gate would reach the second", f"write {least:g} or more"))
    for name, camera in station.cameras.items():
        if station.reject.distance_mm <= camera.at_mm:
            instead = f"write more than {camera.at_mm:g}"
            found.append((("reject", "distance_mm"), f"the gate lies before camera {name}", instead))
    if station.trigger.blocked_mm >= station.reject.distance_mm:
        text = "a part may pass the gate before its covered eye is noticed"
        found.append((("trigger", "blocked_mm"), text, f"write less than {station.reject.distance_mm:g}"))
    if station.trigger.max_part_mm <= station.part_mm:
        instead = f"write more than {station.part_mm:g}"
        found.append((("trigger", "max_part_mm"), "one part alone covers the eye for longer", instead))
    return found


def _cameras(station: Station) -> list[Found]:
    found: list[Found] = []
    for name, camera in station.cameras.items():
        if camera.source.scheme in ("csi", "rtsp") and (
            camera.exposure_us != "auto" or camera.gain != _GAIN or camera.trigger != "free-run"
        ):
            text = f"{camera.source.scheme}:// holds neither exposure_us, gain nor trigger: hardware"
            instead = "write exposure_us: auto, no gain and trigger: free-run, or the v4l2:// node of the same sensor"
            found.append((("cameras", name, "source"), text, instead))
        if camera.source.scheme in ("csi", "rtsp") and camera.pixel not in ("auto", "rgb8"):
            text = f"{camera.source.scheme}:// is converted to rgb8 by its library"
            found.append((("cameras", name, "pixel"), text, "write auto"))
        if camera.source.scheme == "csi" and camera.fps != int(camera.fps):
            found.append((("cameras", name, "fps"), "csi:// takes whole frames a second", f"write {int(camera.fps)}"))
        if station.transport.encoder and camera.at_mm:
            text = "not built yet with an encoder: nobody knows when a part reaches a camera down a belt that changes its speed"
            found.append((("cameras", name, "at_mm"), text, "put the camera at the trigger: at_mm: 0"))
        if camera.trigger == "free-run" and camera.match_ms != "auto" and camera.match_ms > 500 / camera.fps:
            text = f"at {camera.fps:g} frames/s two frames lie within it, and each part is ambiguous"
            found.append((("cameras", name, "match_ms"), text, f"write auto, or at most {500 / camera.fps:.1f}"))
    return found


def _recipes(station: Station) -> list[Found]:
    found: list[Found] = []
    if station.active not in station.recipes:
        found.append((("active",), f"no recipe {station.active}", f"write one of {', '.join(station.recipes)}"))
    numbers: dict[int, str] = {}
    for name, recipe in station.recipes.items():
        if recipe.number in numbers:
            taken = f"{recipe.number} is {numbers[recipe.number]}'s"
            found.append((("recipes", name, "number"), taken, "give each recipe its own number"))
        numbers[recipe.number] = name
        for index, look in enumerate(recipe.inspect):
            found += _look(station, ("recipes", name, "inspect", index), look)
    return found


def _look(station: Station, path: tuple[Any, ...], look: Any) -> list[Found]:
    found: list[Found] = []
    camera = station.cameras.get(look.camera)
    if camera is None:
        return [((*path, "camera"), f"no camera {look.camera}", f"write one of {', '.join(station.cameras)}")]
    if look.roi and (look.roi[0] + look.roi[2] > camera.size[0] or look.roi[1] + look.roi[3] > camera.size[1]):
        beyond = f"reaches beyond the camera's {camera.size[0]} x {camera.size[1]}"
        found.append(((*path, "roi"), beyond, "keep x + width and y + height within it"))
    limits = {"fail_at": look.fail_at, **{f"classes.{name}.fail_at": one.fail_at for name, one in look.classes.items()}}
    for name, fail_at in limits.items():
        if look.review_at is not None and fail_at is not None and look.review_at > fail_at:
            found.append(((*path, "review_at"), f"{look.review_at} lies above {name} {fail_at}", f"write at most {fail_at}"))
    return found


def _lines(station: Station) -> list[Found]:
    found: list[Found] = []
    used: dict[str, str] = {}
    lines: dict[str, Address | None] = {"trigger.input": station.trigger.input, "reject.output": station.reject.output}
    encoder, confirm = station.transport.encoder, station.reject.confirm
    lines |= {"transport.encoder.input": encoder.input, "transport.encoder.input_b": encoder.input_b} if encoder else {}
    lines |= {"reject.confirm.input": confirm.input} if confirm else {}
    lines |= {"divert.output": station.divert.output} if station.divert else {}
    lines |= {"transport.running": station.transport.running, "reject.gate_eye": station.reject.gate_eye}
    lines |= {f"outputs.{name}": line for name, line in station.outputs if line}
    lines |= {f"inputs.{name}": line for name, line in station.inputs if line}
    for path, address in lines.items():
        if address is None:
            continue
        key = address.text.split("?")[0]
        if key in used and address.scheme not in ("modbus", "frame"):
            found.append((tuple(path.split(".")), f"{key} is used by {used[key]} already", "give each its own line"))
        used[key] = path
    return [*found, *_couplers(lines)]


def _couplers(lines: dict[str, Address | None]) -> list[Found]:
    """Remote I/O: what each place may be, and the watchdog without which a dead box leaves a coil as it was."""
    found: list[Found] = []
    for path, address in lines.items():
        if address is None or address.scheme != "modbus":
            continue
        at, kind = tuple(path.split(".")), address.path.strip("/").partition("/")[0]
        output = path.endswith("output") or path.startswith("outputs.")
        watchdog = address.option("watchdog_ms")
        if kind not in (("coil",) if output else ("coil", "discrete")):
            text = f"{address.text} names no coil" + ("" if output else " and no discrete")
            found.append((at, text, "write modbus://HOST:PORT/coil/0"))
        elif output and (not watchdog.isdecimal() or int(watchdog) <= 100):
            instead = "set the coupler's watchdog so that its coils fall, and write it: ?watchdog_ms=500 (more than 100)"
            found.append((at, "an output of a coupler needs the coupler's own watchdog", instead))
        elif path.startswith("transport.encoder"):
            found.append((at, "a coupler is asked every 5 ms: it cannot count pulses", "wire the encoder to gpio://LINE"))
    return found
