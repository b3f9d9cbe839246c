"""From a station file to what its three processes are made of.

Vendor libraries are imported where a configuration names them, so that rejectd pulls in none of inspectd's.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from appliance.config import Address, Station, find_bundle
from appliance.config.schema import Modbus, Mqtt
from appliance.identity import running_version
from appliance.paths import Paths
from appliance.ports import BoxSensors, Clock, Input, Output
from appliance.reject.belt import Belt, ConstantBelt, EncoderBelt
from appliance.reject.daemon import RejectBuild
from appliance.reject.opening import OpenedLater
from appliance.reject.plan import AlarmPlan, EncoderPlan, GatePlan, Plan, Window

if TYPE_CHECKING:
    from appliance.inspect.daemon import InspectBuild, Loaded
    from appliance.inspect.inspector import Look
    from appliance.inspect.matching import Matcher
    from appliance.inspect.stamps import StampProof
    from appliance.ports import Camera, Frame
    from appliance.report.daemon import ReportBuild
    from appliance.wiring.machine import Machine, Progress

_MS = 1_000_000
_CONTACTS = ("clear", "air_ok", "bin_full", "gate_home", "running")
_CONTACT_MS = 10.0  # mechanical contacts bounce this long
_SILENT_BUILD_S = 1800.0  # as long as wiring/engines.py gives a build that says nothing
_READOUT_ALLOWANCE_NS = 250 * _MS  # a frame that has not arrived by then will not come


# --- rejectd ---------------------------------------------------------------------------------------------


def plan_of(station: Station) -> Plan:
    """rejectd's numbers."""
    reject, alarms, recipe = station.reject, station.alarms, station.recipe
    transport, divert = station.transport, station.divert
    cameras = [station.cameras[look.camera] for look in recipe.inspect]
    return Plan(
        speed_mm_s=transport.speed_mm_s or transport.max_speed_mm_s,
        part_mm=station.part_mm,
        gate=GatePlan(reject.kind, reject.energised_means, reject.distance_mm, reject.pulse_ms, reject.response_ms),
        deadline_ms=reject.deadline_ms,
        purge_mm=reject.purge_mm,
        on_late=reject.on_late,
        on_review=reject.on_review,
        trigger="frame" if station.trigger.input.scheme == "frame" else "input",
        rising=station.trigger.edge == "rising",
        debounce_ms=station.trigger.debounce_ms,
        min_pitch_mm=station.trigger.min_pitch_mm,
        max_part_mm=station.trigger.max_part_mm,
        blocked_mm=station.trigger.blocked_mm,
        frame_period_ms=1000 / min(frame_rate(camera) for camera in cameras),
        recipe=station.active,
        recipe_number=recipe.number,
        alarms=AlarmPlan(
            consecutive_rejects=alarms.consecutive_rejects,
            reject_rate=(alarms.reject_rate.over, alarms.reject_rate.of_last),
            missed=Window(alarms.missed.count, alarms.missed.of_last),
            blind=Window(alarms.blind.count, alarms.blind.of_last),
            late=Window(alarms.late.count, alarms.late.of_last),
            unconfirmed=alarms.unconfirmed,
            unexpected=alarms.unexpected,
            stops_line=frozenset(alarms.stops_line),
        ),
        line_stop_output=station.outputs.line_stop is not None,
        divert=None if divert is None else GatePlan(
            divert.kind, divert.energised_means, divert.distance_mm, divert.pulse_ms, divert.response_ms
        ),
        encoder=None if transport.encoder is None else EncoderPlan(
            transport.encoder.mm_per_pulse, transport.encoder.input_b is not None
        ),
        running_contact=transport.running is not None,
        stopped_after_ms=transport.stopped_after_ms,
        confirm_within_ms=reject.confirm.within_ms if reject.confirm else None,
        gate_eye=reject.gate_eye is not None,
    )  # fmt: skip


def belt_of(station: Station) -> Belt:
    """The belt as the configuration describes it."""
    transport = station.transport
    if transport.encoder is None:
        return ConstantBelt(transport.speed_mm_s or transport.max_speed_mm_s)
    return EncoderBelt(transport.encoder.mm_per_pulse, transport.max_speed_mm_s, transport.stopped_after_ms)


def inputs_of(station: Station) -> dict[str, Address]:
    """Digital inputs by role, the trigger's first."""
    transport, reject = station.transport, station.reject
    encoder = transport.encoder
    lines = {
        "trigger": None if station.trigger.input.scheme == "frame" else station.trigger.input,
        "encoder": encoder.input if encoder else None,
        "encoder_b": encoder.input_b if encoder else None,
        "running": transport.running,
        "confirm": reject.confirm.input if reject.confirm else None,
        "gate_eye": reject.gate_eye,
        **dict(station.inputs),
    }
    return {role: line for role, line in lines.items() if line is not None}


def frame_rate(camera: Any) -> float:
    """Frames per second of a camera: what the folder's address says, else the configuration."""
    return float(camera.source.option("fps") or camera.fps) if camera.source.scheme == "folder" else float(camera.fps)


def reject_build(station: Station, paths: Paths, clock: Clock) -> RejectBuild:
    """All that rejectd needs."""
    plan = plan_of(station)
    gate = plan.gate
    outputs = {"gate": _output("gate", station, station.reject.output, gate.reject_level, gate.longest_on_ms, paths, clock)}
    if station.divert and plan.divert:
        level, longest_ms = plan.divert.reject_level, plan.divert.longest_on_ms
        outputs["divert"] = _output("divert", station, station.divert.output, level, longest_ms, paths, clock)
    for name, address in station.outputs:
        if address is not None:
            outputs[name] = _output(name, station, address, False, None, paths, clock)
    inputs = {role: partial(input_of, role, line, paths, clock) for role, line in inputs_of(station).items()}
    return RejectBuild(
        plan, belt_of(station), outputs, inputs, configuration=station.digest, version=running_version()
    )  # fmt: skip


def acts_on_a_line(station: Station) -> bool:
    """Photographs alone: there is no line to act on."""
    return not all(camera.source.scheme == "folder" for camera in station.cameras.values())


def _output(
    name: str, station: Station, address: Address, start: bool, longest_on_ms: int | None, paths: Paths, clock: Clock
) -> Output:  # fmt: skip
    if not acts_on_a_line(station):
        from appliance.devices.output_nowhere import NowhereOutput

        return NowhereOutput(name, start, longest_on_ms, clock)
    return output_of(name, address, start, longest_on_ms, paths, clock)


def output_of(name: str, address: Address, start: bool, longest_on_ms: int | None, paths: Paths, clock: Clock) -> Output:
    """One digital output by its address. Raises OutputLost; a pin that cannot be had yet is opened when it can be."""
    if address.scheme == "gpio":
        from appliance.devices.output_gpio import GpioOutput

        opener = partial(GpioOutput, name, address, start, False, longest_on_ms, clock, _gpio_lines())
        return OpenedLater(name, start, False, longest_on_ms, opener)
    if address.scheme == "modbus":
        from appliance.devices.output_modbus import ModbusOutput

        return ModbusOutput(name, address, start, False, longest_on_ms, clock, _coupler(address.host, clock))
    from appliance.devices.output_twin import TwinOutput

    return TwinOutput(name, paths.twin_socket, address.name, start, False, longest_on_ms, clock)


@cache
def _gpio_lines() -> Any:
    """The one factory of this process: it holds every line until the end."""
    from appliance.devices.gpio import GpiodFactory

    return GpiodFactory()


@cache
def _coupler(host: str, clock: Clock) -> Any:
    """The process beside rejectd that talks to one remote I/O."""
    from appliance.devices.modbus_io import ModbusIo

    return ModbusIo(host, clock)


def input_of(name: str, address: Address, paths: Paths, clock: Clock) -> Input:
    """One digital input by its address. Raises InputLost."""
    if address.scheme == "gpio":
        from appliance.devices.input_gpio import GpioInput

        # In the kernel a debounce would delay each stamp: the photo-eye's bounces are told apart in reject/eye.py.
        return GpioInput(name, address, _CONTACT_MS if name in _CONTACTS else 0.0, _gpio_lines())
    if address.scheme == "modbus":
        from appliance.devices.input_modbus import ModbusInput

        return ModbusInput(name, address, _coupler(address.host, clock))
    from appliance.devices.input_twin import TwinInput

    return TwinInput(name, paths.twin_socket, address.name)


# --- inspectd --------------------------------------------------------------------------------------------


def inspect_build(station: Station, paths: Paths, clock: Clock) -> InspectBuild:
    """All that inspectd needs."""
    from appliance.inspect.daemon import InspectBuild

    looks = station.recipe.inspect
    used = {look.camera: station.cameras[look.camera] for look in looks}
    frame_trigger = looks[0].camera if station.trigger.input.scheme == "frame" else None
    return InspectBuild(
        load=partial(load_recipe, station, paths.data),
        cameras={name: camera_of(name, camera, station, paths, clock) for name, camera in used.items()},
        matchers={name: matcher_of(station, name) for name in used},
        stamps={name: stamp_proof_of(station, name) for name in used},
        slot_bytes=max(camera.size[0] * camera.size[1] * 3 for camera in used.values()),
        image_quota_bytes=round(station.storage.images.quota_gb * 1e9),
        frame_trigger=frame_trigger,
        load_still_s=_load_still_s(station, paths.data),
        configuration=station.digest,
        version=running_version(),
    )


def _load_still_s(station: Station, data_dir: Path) -> float:
    """How long loading may say nothing. jetson-inference builds its engine, for minutes, inside one silent call."""
    from appliance.inspect.daemon import LOAD_STILL_S
    from appliance.model.bundle import BundleError, load_bundle

    for look in station.recipe.inspect:
        folder = find_bundle(look.bundle, Path(station.file), data_dir)
        try:
            if folder and load_bundle(folder).runtime == "jetson-inference":
                return _SILENT_BUILD_S
        except BundleError:
            continue  # load_recipe reads it again, and refuses it in these words
    return LOAD_STILL_S


def load_recipe(station: Station, data_dir: Path | None, progress: Progress) -> Loaded:
    """The active recipe's engines, warm, golden vectors replayed. Raises BundleError, GoldenError, EngineError; then
    nothing is left on the GPU."""
    import hashlib

    from appliance.inspect.daemon import Loaded
    from appliance.inspect.golden_watch import GoldenWatch
    from appliance.inspect.inspector import RecipePlan
    from appliance.wiring.machine import machine_of

    looks, watches = [], []
    with ExitStack() as made:
        machine = machine_of(station.engine, data_dir)
        made.callback(machine.close)
        for number in range(len(station.recipe.inspect)):
            look, golden = look_of(station, number, data_dir, machine, progress)
            made.callback(look.network.close)
            looks.append(look)
            watches.append(GoldenWatch(look.network, look.bundle, golden, station.golden_every_h))  # type: ignore[arg-type]
        close = made.pop_all().close  # networks first, the machine last
    images = station.storage.images
    text = station.recipe.model_dump_json() + "".join(look.bundle.digest for look in looks)
    digest = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    plan = RecipePlan(
        station.active, station.recipe.number, digest, tuple(looks), frozenset(images.keep), images.passes_every
    )
    return Loaded(plan, watches, machine.memory, close, tuple(machine.told), tuple(sorted(machine.power_modes)))


def look_of(
    station: Station, number: int, data_dir: Path | None, machine: Machine, progress: Progress
) -> tuple[Look, Any]:  # fmt: skip
    """One look of the active recipe and its golden vectors. Raises BundleError, GoldenError, EngineError."""
    from appliance.inspect.image_health import HealthLimits
    from appliance.inspect.inspector import Look
    from appliance.inspect.judge import limits_of
    from appliance.model.bundle import BundleError, load_bundle
    from appliance.model.golden import replay_all

    given = station.recipe.inspect[number]
    folder = find_bundle(given.bundle, Path(station.file), data_dir)
    if folder is None:
        raise BundleError(f"no bundle {given.bundle}; see `appliance check`")
    bundle = load_bundle(folder)
    camera = station.cameras[given.camera]
    with ExitStack() as made:
        network = machine.network(bundle, camera.white_balance, progress)
        made.callback(network.close)
        golden = replay_all(network, bundle)
        if camera.pixel not in ("auto", "mjpeg") and not any_size(camera.source):
            network.warm(blank_frame(camera.size, camera.pixel), given.roi)
        classes = {name: (one.fail_at, one.min_area_px) for name, one in given.classes.items()}
        limits = limits_of(bundle, given.review_at, given.fail_at, classes)
        made.pop_all()
    health = station.recipe.image_health
    look = Look(
        camera=given.camera, size=camera.size, any_size=any_size(camera.source), roi=given.roi,
        bundle=bundle, network=network, limits=limits,
        health=HealthLimits(health.frozen, health.brightness, health.sharpness_min, health.saturated_max),
    )  # fmt: skip
    return look, golden


def bundle_remarks(station: Station, root: Path = Path("/")) -> list[str]:
    """What a person should know of the bundles and cameras that a station names: what refuses them, their limits, and what
    this box (below ``root``) does not have."""
    from appliance.box.jetson import l4t_release
    from appliance.model.bundle import BundleError, load_bundle
    from appliance.wiring.jetpack import not_there
    from appliance.wiring.jetson_inference import remarks

    found, on_jetson_inference = [], []
    for name in sorted({look.bundle for recipe in station.recipes.values() for look in recipe.inspect}):
        folder = find_bundle(name, Path(station.file))
        try:
            bundle = load_bundle(folder) if folder else None
        except BundleError as why:
            found.append(f"warning: {why}")
            continue
        if bundle and bundle.runtime == "jetson-inference":
            found += [f"warning: {one}" for one in remarks(bundle)]
            on_jetson_inference.append(name)
    release = root / "etc/nv_tegra_release"
    l4t = l4t_release(release.read_text(encoding="utf-8", errors="replace")) if release.is_file() else None
    return found + [f"warning: {one}" for one in not_there(station, l4t, on_jetson_inference)]


def blank_frame(size: tuple[int, int], pixel: str) -> Frame:
    """As a camera of that size and format would give it, black, and from no camera."""
    from appliance.model.pixels import bytes_per_row, frame_bytes
    from appliance.ports import Frame

    memory = memoryview(bytearray(frame_bytes(pixel, *size)))
    return Frame(memory, 0, bytes_per_row(pixel, size[0]), size, pixel, 0, 0, 0, lambda: None)


def matcher_of(station: Station, name: str) -> Matcher:
    """How one camera's frames find their parts."""
    from appliance.inspect.matching import Matcher

    camera = station.cameras[name]
    speed_mm_s = station.transport.speed_mm_s or station.transport.max_speed_mm_s
    travel_ns = round(camera.at_mm / speed_mm_s * 1e9)
    if station.trigger.input.scheme == "frame":
        return Matcher(0, 1, _READOUT_ALLOWANCE_NS, wait_for_second=False, most_waiting=2)
    shortest_ns = station.trigger.min_pitch_mm / speed_mm_s * 1e9
    widest_ns = shortest_ns / 4
    if camera.trigger == "free-run":  # the frames around it fit too: half a frame time leaves one
        widest_ns = min(widest_ns, 0.5e9 / frame_rate(camera))
    match_ns = widest_ns if camera.match_ms == "auto" else float(camera.match_ms) * _MS
    return Matcher(travel_ns + round(camera.offset_ms * _MS), round(match_ns), _READOUT_ALLOWANCE_NS)


def stamp_proof_of(station: Station, name: str) -> StampProof:
    """How one camera's stamps are proved."""
    from appliance.inspect.stamps import StampProof

    camera = station.cameras[name]
    speed_mm_s = station.transport.speed_mm_s or station.transport.max_speed_mm_s
    expected_ns = round(camera.offset_ms * _MS + camera.at_mm / speed_mm_s * 1e9)
    return StampProof(round(1e9 / frame_rate(camera)), camera.trigger == "hardware", expected_ns)


def camera_of(name: str, camera: Any, station: Station, paths: Paths, clock: Clock) -> Camera:
    """One camera by its section, not opened."""
    source: Address = camera.source
    if source.scheme == "folder":
        from appliance.devices.camera_folder import FolderCamera

        return FolderCamera(name, Path(source.host + source.path), frame_rate(camera), source.option("once") == "1", clock)
    if source.scheme == "twin":
        from appliance.devices.camera_twin import TwinCamera

        path = paths.twin_camera_socket(source.name)
        return TwinCamera(name, path, source.name, camera.size, any_size(source), clock)
    if source.scheme in ("csi", "rtsp"):
        from appliance.devices.camera_jetson import JetsonCamera

        return JetsonCamera(name, source.text, camera.size, camera.fps, source.option("flip", "none"), clock, camera.pixel)
    hardware, options = camera.trigger == "hardware", dict(source.query)
    if source.scheme == "gige":
        from appliance.devices.camera_gige import GigeCamera, GigeOptions

        return GigeCamera(
            name, source.name, camera.size, camera.fps, camera.pixel, camera.exposure_us, camera.gain, hardware,
            GigeOptions.from_query(options), clock,
        )  # fmt: skip
    from appliance.devices.camera_v4l2 import V4l2Camera

    return V4l2Camera(
        name, source.host + source.path, camera.size, camera.fps, camera.pixel, camera.exposure_us, camera.gain, hardware,
        options, clock,
    )  # fmt: skip


def any_size(source: Address) -> bool:
    """Photographs come as they are; a camera gives the size that is configured, or something is wrong."""
    return source.scheme == "folder" or source.option("photographs") == "1"


# --- reportd -----------------------------------------------------------------------------------------------


class Speaks(Protocol):
    """What of a station its broker's client needs: a name, the section, and the file beside which others lie."""

    @property
    def station(self) -> str: ...
    @property
    def mqtt(self) -> Mqtt | None: ...
    @property
    def file(self) -> str: ...


def report_build(station: Station, clock: Clock, generation: int | None = None, fallback: str = "") -> ReportBuild:
    """All that reportd needs. ``generation``: of the store; ``fallback``: why not the one that was chosen, "" = it is."""
    from appliance.report.daemon import ReportBuild

    commands = frozenset(station.mqtt.commands if station.mqtt else ())
    return ReportBuild(
        station.station, station.simulated, broker_maker(station, commands), commands, station.digest, station.crc32,
        plc_maker(station.modbus, clock), running_version(), station.revision, generation, fallback,
        box=partial(box_sensors, clock),
    )  # fmt: skip


def box_sensors(clock: Clock, data_dir: Path) -> BoxSensors:
    """The sensors of this machine."""
    from appliance.box.watch import BoxWatch

    return BoxWatch(clock, data_dir)


def broker_maker(station: Speaks, commands: frozenset[str]) -> Any:
    """How reportd's client is made; None without a broker."""
    return partial(publisher_of, station, "report", sorted(commands)) if station.mqtt else None


def plc_maker(modbus: Modbus | None, clock: Clock) -> Any:
    """How the PLC's server is made; None without one."""
    return partial(_plc_server, modbus, clock) if modbus else None


def _plc_server(modbus: Any, clock: Clock, registers: Any) -> Any:
    from appliance.devices.plc_server import PlcServer

    host, port = modbus.address
    return PlcServer(registers, clock, host, port, modbus.clients)


def publisher_of(station: Speaks, role: str, commands: list[str]) -> Any:
    """The MQTT client of a station."""
    from appliance.devices.publisher_mqtt import MqttPublisher

    topics = [f"{station.station}/cmd/{verb}" for verb in commands]
    return MqttPublisher(broker_of(station), f"{station.station.replace('/', '-')}-{role}", station.station, topics)


def broker_of(station: Speaks) -> Any:
    """Where the broker is, with the password read from its file. Raises OSError."""
    from appliance.devices.publisher_mqtt import Broker

    assert station.mqtt is not None
    mqtt, address = station.mqtt, station.mqtt.broker
    folder = Path(station.file).parent
    if address.scheme == "embedded":
        return Broker("127.0.0.1", 1883)
    host, _, port = address.host.partition(":")
    password = (folder / mqtt.password_file).read_text().strip() if mqtt.password_file else None
    files = [str(folder / name) if name else None for name in (mqtt.ca_file, mqtt.cert_file, mqtt.key_file)]
    tls = address.scheme == "mqtts"
    return Broker(host, int(port or (8883 if tls else 1883)), tls, mqtt.username, password, *files)
