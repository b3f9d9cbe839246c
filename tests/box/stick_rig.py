"""A box for sticks: a store, keys, a spool, and a stand-in of the running station that behaves: it begins anew when it is asked,
chooses from the store as the real one does, and writes how it stands."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.box.again import ROLES
from appliance.box.stick import Source
from appliance.box.store import Generation, Store, file_digest, tree_digest
from appliance.clock import VirtualClock
from appliance.paths import Paths
from appliance.report.dialogue import Dialogue
from appliance.wiring.stick import serve
from appliance.wiring.stick_box import Box
from appliance.wiring.store import load_chosen
from tests.box.sticks import Maker

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "models" / "cap-28mm"
SHIPPED = (ROOT / "appliance/twin/station.yaml").read_text()


def yaml(revision: int, signature: str = "warn", fail_at: float = 0.6) -> str:
    """The shipped station, as a stick would bring it."""
    text = SHIPPED.replace("revision: 1\n", f"revision: {revision}\nauthor: Ada\nreason: fewer false rejects\n", 1)
    text = text.replace('signature: "off"', f'signature: "{signature}"')
    look = "        bundle: cap-28mm\n"
    return text.replace(look, f"{look}        fail_at: {fail_at}\n        review_at: 0.3\n", 1)


@lru_cache
def key() -> Ed25519PrivateKey:
    """The one that is enrolled; the same in every run."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"a key for tests").digest())


def pem(private: Ed25519PrivateKey) -> bytes:
    """Its public half."""
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@dataclass
class Rig:
    """``serve(folder)`` is a stick plugged in. ``station``: None = no station runs here, as on a laptop."""

    base: Path
    clock: VirtualClock = field(default_factory=VirtualClock)
    station: StandIn | None = None
    said: str = ""

    @property
    def data(self) -> Path:
        return self.base / "data"

    @property
    def run(self) -> Path:
        return self.base / "run"

    @property
    def store(self) -> Store:
        return Store(self.data / "config")

    @property
    def box(self) -> Box:
        return Box(self.store, self.run, self.data, self.clock, wait=self.wait)

    def wait(self, duration_ns: int) -> None:
        """Time goes by, and the station goes on meanwhile."""
        self.clock.advance_to(self.clock.now_ns() + duration_ns)
        if self.station:
            self.station.step()

    def with_station(self) -> Rig:
        """A station runs from now on."""
        self.run.mkdir(parents=True, exist_ok=True)
        self.station = StandIn(self)
        self.station.step()
        return self

    def serve(self, folder: Path, box: Box | None = None, **how: Any) -> int:
        """Exit code of `usb apply`."""
        out = io.StringIO()
        code = serve(Source(folder), box or self.box, out, **how)
        self.said = out.getvalue()
        return code

    def give_first(self, text: str, folder: Path, keys: bool = False) -> Generation:
        """The configuration that is there before the stick under test."""
        folder.mkdir(parents=True)
        maker = Maker(text, BUNDLE, key() if keys else None)
        maker.write(folder)
        if keys:
            (folder / "enrol").mkdir()
            (folder / "enrol" / "ada.pub").write_bytes(pem(key()))
        assert self.serve(folder) == 0, self.said
        good = self.store.good
        assert good is not None
        return good

    def events(self) -> list[dict[str, Any]]:
        """In the spool, oldest first."""
        return [json.loads(path.read_bytes()) for path in sorted((self.data / "spool").glob("*.json"))]

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events()]

    def lamps(self) -> list[str]:
        """Its pattern after each event, as reportd has it."""
        told = [Dialogue()]
        for event in self.events():
            told.append(told[-1].heard(event["kind"], event["data"], ""))
        return [one.lamp for one in told[1:]]

    def forget_events(self) -> None:
        shutil.rmtree(self.data / "spool", ignore_errors=True)

    def state(self) -> dict[str, Any]:
        """All that a refused stick must leave alone: what is chosen, every generation's bytes, the keys."""
        store = self.store
        chosen = store.choose().generation
        held = {one.number: (file_digest(one.file), tree_digest(one.folder / "bundles")) for one in store.generations()}
        keys = {path.name: path.read_bytes() for path in sorted((self.data / "keys").glob("*"))}
        return {"chosen": chosen and chosen.number, "good": store.good and store.good.number, "trial": store.trial,
                "held": held, "keys": keys, "essentials": store.essentials()}  # fmt: skip


def result(folder: Path) -> str:
    """RESULT.txt as a person reads it."""
    return (folder / "RESULT.txt").read_bytes().decode("utf-8").replace("\r\n", "\n")


class StandIn:
    """The three processes, one step at a time. ``sick``: by digest, why inspectd is not ready with that configuration."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._paths = Paths(rig.run, rig.data)
        self.sick: dict[str, str] = {}
        self.runs: dict[str, str] = {}
        self.restarts: list[str] = []
        self.silent = False
        self.each_step: Callable[[], None] = lambda: None
        for role in ROLES:
            self._begin(role)
        self.restarts.clear()

    def step(self) -> None:
        self.each_step()
        for role in ROLES:
            again, same = self._paths.again_file(role), self._paths.same_file(role)
            if again.exists():
                again.unlink()
                self._begin(role)
            if same.exists():
                self.runs[role] = same.read_text()
                same.unlink()
        if not self.silent:
            self._tell()

    def _begin(self, role: str) -> None:
        self.restarts.append(role)
        station = load_chosen(self._rig.store, self._rig.data).station
        self.runs[role] = station.digest if station else ""

    def _tell(self) -> None:
        why = self.sick.get(self.runs["inspect"], "")
        state = {
            "written_ns": self._rig.clock.now_ns(),
            "reject": {"state": "running", "reason": "", "configuration": self.runs["reject"], "version": ""},
            "inspect": {"state": "fault" if why else "ready", "reason": why, "progress": 1.0,
                        "configuration": self.runs["inspect"], "version": ""},
            "report": {"configuration": self.runs["report"], "version": ""},
        }  # fmt: skip
        self._paths.state_file.write_text(json.dumps(state))


def copy_of(rig: Rig, base: Path) -> Rig:
    """The same box, on its own disk; hard links, for nothing that stands is ever written into."""
    shutil.copytree(rig.base, base)
    return replace(rig, base=base)
