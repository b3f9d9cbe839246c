"""What ``appliance selftest`` needs of this machine: the product's own constructors. Knows devices/ through wiring."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, TextIO

from appliance.config import Station
from appliance.config.addresses import LINE, parse
from appliance.paths import Paths
from appliance.ports import CameraLost, Clock
from appliance.selftest import Bench
from appliance.wiring import station as wiring
from appliance.wiring.machine import machine_of, on_the_gpu, open_gpu_site


def bench_of(station: Station | None, choice: str, data_dir: Path, clock: Clock, root: Path = Path("/")) -> Bench:
    """``choice``: auto, cuda or cpu; ``root``: whose /etc, /proc and /sys are read."""
    return Bench(
        clock=clock, root=root, machine=partial(machine_of, choice, data_dir, root),
        camera=partial(_camera, station, data_dir, clock), line_pair=partial(_line_pair, data_dir, clock),
        licence=partial(_licence, data_dir) if on_the_gpu(choice, root) else None,
    )  # fmt: skip


def _camera(station: Station | None, data_dir: Path, clock: Clock, name: str, exposure_us: float | None) -> Any:
    assert station is not None
    given = station.cameras[name]
    if given.source.scheme == "twin":
        raise CameraLost(f"camera {name} is the twin's: there is nothing to test; name the sensor's address")
    if exposure_us is not None:
        given = given.model_copy(update={"exposure_us": exposure_us})
    return wiring.camera_of(name, given, station, Paths(data_dir, data_dir), clock)


def _line_pair(data_dir: Path, clock: Clock, output: str, line: str) -> tuple[Any, Any]:
    """Raises ValueError for what is no address, OutputLost, InputLost."""
    paths = Paths(data_dir, data_dir)
    given, seen = parse(output, "digital output", LINE), parse(line, "digital input", LINE)
    opened = wiring.output_of("loop", given, False, None, paths, clock)
    try:
        return opened, wiring.input_of("back", seen, paths, clock)
    except Exception:
        opened.close()
        raise


def _licence(data_dir: Path, bundle: Path, out: TextIO) -> int:
    from appliance.wiring.engine_verbs import engine_licence

    return engine_licence(bundle, data_dir, out, out, open_gpu_site)
