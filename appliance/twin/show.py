"""``appliance twin``: the simulated line by itself, parts without end, for a box that shows its station without a line.

It plays the outside of a station whose configuration names ``twin://`` devices; the daemons run as they always do."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import msgspec

from appliance.config import ConfigError, Station
from appliance.notify import Notifier
from appliance.paths import Paths
from appliance.twin.derive import pitch_and_speed
from appliance.twin.line import CameraPlace
from appliance.twin.process import World
from appliance.twin.scenarios import SCENARIOS, shape_of

log = logging.getLogger("appliance.twin.show")

WITHOUT_END = 1_000_000_000  # parts: three years at 600 a minute
LOOK_S = 1.0


def scenario_of(station: Station | None, paths: Paths, ppm: float, seed: int) -> dict[str, Any]:
    """What the twin's process is told: the station's own line, one speed. ``ppm``: parts a minute. Raises ValueError where
    its gate does not serve so many at the station's speed, or it is not a station of ``twin://`` cameras."""
    if station is None or any(camera.source.scheme != "twin" for camera in station.cameras.values()):
        raise ValueError("its cameras are not twin://; the simulated line is not wanted")
    pitch_mm, speed_mm_s, raised = pitch_and_speed(station, ppm)
    if raised:
        raise ValueError(f"{ppm:g} parts/min do not fit on this belt at the station's speed; write a lower --ppm")
    shape = shape_of(station, SCENARIOS["steady"], pitch_mm, speed_mm_s)
    cameras = tuple(
        CameraPlace(camera.source.name, camera.at_mm, round(camera.offset_ms * 1e6)) for camera in station.cameras.values()
    )
    return {
        "run_dir": str(paths.run), "truth_file": os.devnull, "seed": seed, "hard": False, "good": None, "bad": None,
        "shape": msgspec.to_builtins(replace(shape, cameras=cameras, quarters=shape.encoder_mm > 0)),
        "covered_level": station.trigger.edge == "rising",
    }  # fmt: skip


class Played:
    """Whether what is played is still what is wanted. Another configuration of the same line changes nothing outside of the
    box: a line that went away at each new threshold would be outputs lost, which a person clears."""

    def __init__(
        self, scenario: dict[str, Any], digest: str, chosen: Callable[[str], str], anew: Callable[[], dict[str, Any]]
    ) -> None:
        """``chosen``: the digest of what is chosen now, given the last one; ``anew``: its scenario, raising ConfigError,
        ValueError or OSError where there is none."""
        self._scenario, self._digest, self._chosen, self._anew = scenario, digest, chosen, anew

    def is_over(self) -> bool:
        """Asked every second."""
        digest = self._chosen(self._digest)
        if digest != self._digest:
            self._digest = digest
            try:
                return self._anew() != self._scenario
            except (ConfigError, ValueError, OSError) as why:
                log.info("the simulated line ends: %s", why)
                return True
        return False


def show(scenario: dict[str, Any], over: Callable[[], bool], notifier: Notifier) -> int:
    """Until SIGTERM, or until ``over`` says (asked every second) that another line is wanted. Exit 0."""
    cv2.setNumThreads(1)
    world = World(scenario)

    def stop(_signal: int, _frame: object) -> None:
        world.stopping = True

    def look(_signal: int, _frame: object) -> None:
        world.stopping = world.stopping or over()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, LOOK_S, LOOK_S)
    world.feed(WITHOUT_END)
    notifier.ready("the simulated line runs")
    try:
        world.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        world.close()
    return 0
