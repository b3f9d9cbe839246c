"""Whether the belt can be believed: encoder, drive's contact and triggers are held against each other. Pure.

What cannot be true together is a lost encoder: where the parts are is unknown (law 6), and a person looks.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.messages import Edge
from appliance.reject.belt import Belt, ConstantBelt, EncoderBelt, Quadrature
from appliance.reject.plan import MS, Plan

BELT_INPUTS = ("encoder", "encoder_b", "running")
_PULSES_WATCHED, _PULSE_FAULTS = 1000, 5  # so many of these are not a good encoder


class BeltWatch:
    """``lost``: why the belt is not believed, None while it is. ``on_lost`` is told each loss that a person must see."""

    def __init__(self, plan: Plan, belt: Belt, on_lost: Callable[[str, int], None]) -> None:
        self._plan, self._belt, self._on_lost = plan, belt, on_lost
        self._quadrature = Quadrature(plan.encoder is not None and plan.encoder.two_channels)
        self._seen: set[str] = set()
        self._missing: set[str] = set()
        self._runs: bool | None = None
        self._runs_since_ns = 0
        self._pulses_at_edge = -1
        self._edge_ns = 0
        self._pulses_watched = self._faults_watched = 0
        self.lost: str | None = None
        self.edges_lost = 0
        self.noisy = False
        """Too many pulses of late were missing or made up."""

    # --- inputs ------------------------------------------------------------------------------------------------------

    def input_lost(self, role: str, why: str, now_ns: int) -> None:
        """An input of the belt gives no more edges. At start, not there yet, nothing was lost that a person must see."""
        self._missing.add(role)
        if role in self._seen:
            self.lose(f"{role}: {why}", now_ns)
        elif self.lost is None:
            self.lost = f"{role}: {why}"

    def input_back(self, role: str) -> None:
        """It answers, for the first time or again; its level comes anew."""
        self._seen.add(role)
        self._missing.discard(role)
        self._quadrature = Quadrature(self._quadrature.two_channels)

    @property
    def complete(self) -> bool:
        """Every input of the belt answers."""
        return not self._missing

    def encoder_edge(self, role: str, edge: Edge, now_ns: int) -> int:
        """+1 or -1 for a pulse, 0 for none."""
        channel = "a" if role == "encoder" else "b"
        if gap := self._quadrature.gap(channel, edge.sequence):
            self.edges_lost += gap
            self.lose(f"{gap} edges were not read", now_ns)
        return self._quadrature.edge(channel, edge.level)

    def running(self, edge: Edge) -> bool:
        """The drive's contact. True: a belt that is not counted stopped, and nobody knows how far it coasted."""
        if edge.level == self._runs:
            return False
        stopped = self._runs is True
        self._runs, self._runs_since_ns = edge.level, edge.time_ns
        if isinstance(self._belt, (ConstantBelt, EncoderBelt)):
            self._belt.run(edge.level, edge.time_ns)
        return stopped and not isinstance(self._belt, EncoderBelt)

    def trigger(self, edge_ns: int, now_ns: int) -> None:
        """The eye was covered: since the last time there must have been a pulse.

        A drive that stood meanwhile explains it: the part trembled in the beam as the belt came to rest."""
        belt = self._belt
        if not isinstance(belt, EncoderBelt):
            return
        before, self._pulses_at_edge = self._pulses_at_edge, belt.pulses
        stood_ns, self._edge_ns = self._edge_ns, edge_ns
        explained = self._runs is not None and not (self._runs and self._runs_since_ns < stood_ns)
        if before == belt.pulses and not explained:
            self.lose("two triggers without a pulse between them", now_ns)

    # --- time ----------------------------------------------------------------------------------------------------------

    def step(self, now_ns: int) -> dict[str, int]:
        """Look whether pulses come as they must; returns what is counted of them."""
        belt = self._belt
        if not isinstance(belt, EncoderBelt):
            return {}
        since_ns = max(belt.pulse_ns or 0, self._runs_since_ns)
        if self._runs and now_ns - since_ns > self._plan.stopped_after_ms * MS:
            self.lose("the drive runs and no pulse comes", now_ns)
        elif belt.behind_mm > self._plan.purge_distance_mm(self._plan.gate):
            self.lose(f"the belt ran back {belt.behind_mm:.0f} mm; if it did not, swap input and input_b", now_ns)
        faults = belt.missing + belt.noise + self._quadrature.lost
        over = belt.pulses - self._pulses_watched >= _PULSES_WATCHED
        self.noisy = faults - self._faults_watched >= _PULSE_FAULTS or (self.noisy and not over)
        if over:
            self._pulses_watched, self._faults_watched = belt.pulses, faults
        return {
            "encoder_missing": belt.missing, "encoder_noise": belt.noise + self._quadrature.lost,
            "encoder_edges_lost": self.edges_lost,
        }  # fmt: skip

    # --- losing and finding ------------------------------------------------------------------------------------------

    def lose(self, why: str, now_ns: int) -> None:
        """Told once, until the belt is believed again."""
        if self.lost is None:
            self.lost = why
            self._on_lost(why, now_ns)

    def believe(self, now_ns: int) -> None:
        """A person cleared, or the inputs came at last. On a line that stands no pulse can prove the encoder sound:
        it is believed, and the next loss told anew."""
        self.lost = None
        if isinstance(self._belt, EncoderBelt):
            self._belt.begin_anew()
        self._runs_since_ns = now_ns
        self._pulses_at_edge = -1
