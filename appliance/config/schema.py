"""All that can be configured: the station's YAML as pydantic models. Units are in the names, ranges in the types."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Optional, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr

from appliance.config.addresses import (
    BrokerAddress,
    CameraAddress,
    ClientAddress,
    LineAddress,
    ListenAddress,
    TriggerAddress,
)

Share = Annotated[float, Field(ge=0, le=1, description="0 to 1")]
Mm = Annotated[float, Field(gt=0, le=100_000, description="millimetres")]
Ms = Annotated[float, Field(ge=0, le=60_000, description="milliseconds")]
Size = tuple[Annotated[int, Field(ge=16, le=16384)], Annotated[int, Field(ge=16, le=16384)]]
Box = tuple[
    Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Pixel = Literal[
    "auto", "mono8", "mono10", "mono12", "mono16", "rgb8", "bgr8", "nv12", "yuyv", "uyvy", "mjpeg",
    "bayer_rggb8", "bayer_bggr8", "bayer_grbg8", "bayer_gbrg8", "bayer_rggb10", "bayer_bggr10", "bayer_grbg10",
    "bayer_gbrg10", "bayer_rggb12", "bayer_bggr12", "bayer_grbg12", "bayer_gbrg12",
]  # fmt: skip


_BUNDLE_FILE = re.compile(r"bundles/[A-Za-z0-9][A-Za-z0-9_.-]{0,63}(/[A-Za-z0-9_][A-Za-z0-9 _.()+,=@-]{0,99}){1,6}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def _bundle_file(text: str) -> str:
    """Raises ValueError."""
    if not _BUNDLE_FILE.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is no file of a bundle; write for example bundles/cap-28mm/model.onnx")
    return text


def _digest(text: str) -> str:
    """Raises ValueError."""
    if not _DIGEST.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is no digest; write sha256: and 64 hex digits, as `appliance usb manifest` prints them")
    return text


def _remark(text: str) -> str:
    """Raises ValueError."""
    if len(text) > 200 or not text.isprintable():
        raise ValueError("this is no line of text; write at most 200 printable characters")
    return text


BundleFile = Annotated[str, AfterValidator(_bundle_file)]
Digest = Annotated[str, AfterValidator(_digest)]
Remark = Annotated[str, AfterValidator(_remark)]


class Section(BaseModel):
    """A section: unknown keys are errors, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Camera(Section):
    """One camera."""

    source: CameraAddress = Field(description="where its frames come from")
    size: Size = Field((1280, 960), description="width, height in pixels as delivered")
    fps: float = Field(120, gt=0, le=2000, description="frames per second, highest")
    pixel: Pixel = Field("auto", description="pixel format as delivered")
    white_balance: tuple[float, float, float] = Field((1.0, 1.0, 1.0), description="gains r, g, b")
    exposure_us: Union[Literal["auto"], Annotated[float, Field(gt=0, le=1_000_000)]] = Field(
        250, description="locked exposure; `auto` must be written"
    )
    gain: float = Field(2.0, ge=0, le=1000)
    trigger: Literal["hardware", "free-run"] = Field("hardware", description="photo-eye fires it, or it runs by itself")
    at_mm: float = Field(0, ge=0, le=100_000, description="belt travel from the trigger point to this camera")
    offset_ms: float = Field(0.0, ge=-1000, le=60_000, description="photo-eye edge to middle of exposure")
    match_ms: Union[Literal["auto"], Annotated[float, Field(gt=0, le=10_000)]] = Field(
        "auto", description="how far a frame may lie from its trigger; auto = a quarter of the shortest pitch"
    )
    strobe: Optional[LineAddress] = None


class TriggerInput(Section):
    """What makes a part."""

    input: TriggerAddress = Field(description="a digital input, modbus, or frame")
    edge: Literal["rising", "falling"] = "rising"
    debounce_ms: Ms = 2
    min_pitch_mm: Mm = Field(30, description="closer edges make no part; counted as double")
    max_part_mm: Mm = Field(60, description="beam covered for longer: two parts touch")
    blocked_mm: Mm = Field(200, description="beam covered for longer: the eye is stuck")


class Encoder(Section):
    """Belt encoder."""

    input: LineAddress
    input_b: Optional[LineAddress] = None
    mm_per_pulse: float = Field(gt=0, le=1000)


class Transport(Section):
    """The belt: exactly one of speed_mm_s and encoder."""

    speed_mm_s: Optional[Annotated[float, Field(gt=0, le=20_000)]] = None
    encoder: Optional[Encoder] = None
    max_speed_mm_s: float = Field(800, gt=0, le=20_000)
    running: Optional[LineAddress] = None
    stopped_after_ms: Ms = 200


class Confirm(Section):
    """Sensor that sees rejected parts."""

    input: LineAddress
    within_ms: Ms = 150


class Reject(Section):
    """The gate."""

    output: LineAddress
    kind: Literal["hold", "pulse"] = "hold"
    energised_means: Literal["accept", "reject"] = "accept"
    distance_mm: Mm = 420
    pulse_ms: Ms = 40
    response_ms: Ms = 12
    deadline_ms: Ms = 20
    on_late: Literal["reject", "stop", "accept"] = "reject"
    on_review: Literal["reject", "accept", "divert"] = "reject"
    confirm: Optional[Confirm] = None
    gate_eye: Optional[LineAddress] = None
    purge_mm: Mm = 600


class Divert(Section):
    """A second gate, for review parts."""

    output: LineAddress
    kind: Literal["hold", "pulse"] = "hold"
    energised_means: Literal["accept", "reject"] = Field("accept", description="accept: de-energised diverts")
    distance_mm: Mm = 700
    pulse_ms: Ms = 60
    response_ms: Ms = 12


class Outputs(Section):
    """Interlocks, energised when healthy."""

    ready: Optional[LineAddress] = None
    fault: Optional[LineAddress] = None
    line_stop: Optional[LineAddress] = None
    heartbeat: Optional[LineAddress] = None
    stick: Optional[LineAddress] = Field(
        None, description="lamp: on = a stick is read, slow = applied, fast = refused or unreadable; pull it then"
    )


class Inputs(Section):
    """Supervised inputs."""

    clear: Optional[LineAddress] = None
    air_ok: Optional[LineAddress] = None
    bin_full: Optional[LineAddress] = None
    gate_home: Optional[LineAddress] = None


class Rate(Section):
    """A share over the last parts."""

    over: Share = 0.20
    of_last: int = Field(200, ge=1, le=100_000)


class Count(Section):
    """A count over the last parts."""

    count: int = Field(3, ge=1, le=100_000)
    of_last: int = Field(100, ge=1, le=100_000)


AlarmName = Literal[
    "consecutive_rejects", "reject_rate", "missed", "blind", "late", "unconfirmed", "unexpected"
]  # fmt: skip


class Alarms(Section):
    """Limits over the parts."""

    consecutive_rejects: int = Field(5, ge=1, le=10_000)
    reject_rate: Rate = Rate()
    missed: Count = Count()
    blind: Count = Count()
    late: Count = Count(count=2, of_last=500)
    unconfirmed: int = Field(1, ge=1)
    unexpected: int = Field(1, ge=1)
    stops_line: tuple[AlarmName, ...] = ("unconfirmed", "unexpected", "consecutive_rejects")


class ClassLimits(Section):
    """One class's own limits."""

    fail_at: Optional[Share] = None
    min_area_px: Optional[Annotated[int, Field(ge=1)]] = None


class Inspect(Section):
    """One look: a camera, a bundle, where, and how strictly. Thresholds left out are the bundle's."""

    camera: str
    bundle: Name
    roi: Optional[Box] = None
    review_at: Optional[Share] = None
    fail_at: Optional[Share] = None
    classes: dict[str, ClassLimits] = {}


class ImageHealth(Section):
    """When a frame cannot be judged."""

    frozen: bool = True
    brightness: Optional[tuple[Annotated[float, Field(ge=0, le=255)], Annotated[float, Field(ge=0, le=255)]]] = None
    sharpness_min: Optional[Annotated[float, Field(ge=0)]] = None
    saturated_max: Optional[Share] = None


class Recipe(Section):
    """Everything that depends on the product."""

    number: int = Field(ge=1, le=4_294_967_295)
    inspect: tuple[Inspect, ...] = Field(min_length=1)
    image_health: ImageHealth = ImageHealth()


class Challenge(Section):
    """Test parts at intervals."""

    every_h: float = Field(4, gt=0)
    sequence: tuple[Literal["bad", "good"], ...] = ("bad", "good", "bad")
    overdue: Literal["warn", "stop"] = "warn"


class Mqtt(Section):
    """The broker above."""

    broker: BrokerAddress
    username: Optional[str] = None
    password_file: Optional[str] = None
    cert_file: Optional[str] = None
    key_file: Optional[str] = None
    ca_file: Optional[str] = None
    commands: tuple[Literal["recipe", "feedback", "challenge", "clear"], ...] = ()
    sparkplug: Optional[str] = None
    home_assistant: bool = False


class Modbus(Section):
    """PLC side server."""

    listen: ListenAddress = Field("127.0.0.1:1502", description="address of this box and port; 0.0.0.0 = all networks")
    clients: tuple[ClientAddress, ...] = Field((), description="IP addresses that may write; empty = any")

    @property
    def address(self) -> tuple[str, int]:
        """(host, port)."""
        host, _, port = self.listen.rpartition(":")
        return host, int(port)


class LedgerStore(Section):
    """The books on disk."""

    durable: Literal["group", "strict"] = "group"
    keep_days: int = Field(365, ge=1, le=36500)
    quota_gb: float = Field(20, gt=0)


class ImageStore(Section):
    """Kept images."""

    keep: tuple[Literal["pass", "fail", "review", "blind"], ...] = ("fail", "review", "blind")
    passes_every: int = Field(200, ge=0, description="keep one pass in so many; 0 = none")
    quota_gb: float = Field(20, gt=0)


class Storage(Section):
    """What is kept, and for how long."""

    ledger: LedgerStore = LedgerStore()
    images: ImageStore = ImageStore()


class Station(Section):
    """One box."""

    version: Literal[1]
    station: str = Field(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", max_length=200, description="MQTT topic prefix")
    revision: int = Field(0, ge=0)
    author: Remark = Field("", description="who made this revision; stands in the ledger when it is applied")
    reason: Remark = Field("", description="why; stands in the ledger when it is applied")
    cameras: dict[Name, Camera] = Field(min_length=1)
    trigger: TriggerInput
    transport: Transport
    part_mm: Mm = 40
    reject: Reject
    divert: Optional[Divert] = None
    outputs: Outputs = Outputs()
    inputs: Inputs = Inputs()
    alarms: Alarms = Alarms()
    recipes: dict[Name, Recipe] = Field(min_length=1)
    active: str
    challenge: Optional[Challenge] = None
    mqtt: Optional[Mqtt] = None
    modbus: Optional[Modbus] = None
    storage: Storage = Storage()
    golden_every_h: float = Field(1, gt=0, le=1000)
    engine: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="what judges: cuda = TensorRT on the GPU, cpu = this computer; auto = cuda on a Jetson, else cpu"
    )
    signature: Literal["off", "warn", "require"] = "warn"
    integrity: dict[BundleFile, Digest] = Field(
        {}, max_length=4096, description="SHA-256 of each file of each bundle, as `appliance usb manifest` prints them: what is "
        "signed with this file"
    )
    strict_start: bool = Field(
        False, description="true: end with exit 2 where this file cannot be used, instead of falling back or safe mode"
    )

    _file: str = PrivateAttr("")
    _digest: str = PrivateAttr("")
    _crc32: int = PrivateAttr(0)

    @property
    def file(self) -> str:
        """The file this was read from."""
        return self._file

    @property
    def digest(self) -> str:
        """``sha256:`` of the file's bytes."""
        return self._digest

    @property
    def crc32(self) -> int:
        """Of the file's bytes, for the PLC."""
        return self._crc32

    @property
    def recipe(self) -> Recipe:
        """The active recipe."""
        return self.recipes[self.active]

    @property
    def simulated(self) -> bool:
        """Frames or pins that are not of a real line (law 10)."""
        lines = [self.reject.output, self.trigger.input]
        cameras = [camera.source for camera in self.cameras.values()]
        return any(address.scheme in ("twin", "folder") for address in (*lines, *cameras))
