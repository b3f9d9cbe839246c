"""What no single setting can tell: contradictions between settings, and what a person should know. Pure."""

from __future__ import annotations

from typing import Any

from appliance.config.schema import Station

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
    if (station.reject.kind == "pulse" or station.reject.energised_means == "reject") and not station.outputs.line_stop:
        found.append((("reject",), "a gate that does not fall to reject by itself needs a line stop", "write outputs.line_stop"))
    for name, camera in station.cameras.items():
        if station.reject.distance_mm <= camera.at_mm:
            instead = f"write more than {camera.at_mm:g}"
            found.append((("reject", "distance_mm"), f"the gate lies before camera {name}", instead))
    if station.trigger.max_part_mm <= station.part_mm:
        instead = f"write more than {station.part_mm:g}"
        found.append((("trigger", "max_part_mm"), "one part alone covers the eye for longer", instead))
    return found


def _cameras(station: Station) -> list[Found]:
    found: list[Found] = []
    for name, camera in station.cameras.items():
        if camera.source.scheme in ("csi", "rtsp") and (camera.exposure_us != "auto" or camera.trigger != "free-run"):
            text = f"{camera.source.scheme}:// holds neither exposure_us, gain nor trigger: hardware"
            instead = "write exposure_us: auto and trigger: free-run, or the v4l2:// node of the same sensor"
            found.append((("cameras", name, "source"), text, instead))
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
    lines = {"trigger.input": station.trigger.input, "reject.output": station.reject.output}
    lines |= {f"outputs.{name}": line for name, line in station.outputs if line}
    lines |= {f"inputs.{name}": line for name, line in station.inputs if line}
    for path, address in lines.items():
        key = address.text.split("?")[0]
        if key in used and address.scheme not in ("modbus", "frame"):
            found.append((tuple(path.split(".")), f"{key} is used by {used[key]} already", "give each its own line"))
        used[key] = path
    if station.reject.output.scheme == "modbus" and not station.reject.output.option("watchdog_ms"):
        instead = "write ?watchdog_ms=500 as the coupler is set"
        found.append((("reject", "output"), "a Modbus gate needs the coupler's watchdog", instead))
    return found
