"""Where a station keeps its files: ``run`` (sockets, parts in flight; may vanish at power-off) and ``data``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

BOX_DATA, BOX_RUN = Path("/var/lib/appliance"), Path("/run/appliance")


@dataclass(frozen=True)
class Paths:
    """Both folders exist once ``make`` was called."""

    run: Path
    data: Path

    def make(self) -> Paths:
        """Create what is missing. Raises OSError."""
        self.run.mkdir(parents=True, exist_ok=True)
        self.data.mkdir(parents=True, exist_ok=True)
        return self

    def begin(self, roles: Iterable[str]) -> None:
        """These processes start: call it before their configuration is read, so that who asks for a new start while it is
        read is heard. Raises OSError."""
        for role in roles:
            self.again_file(role).unlink(missing_ok=True)
            self.same_file(role).unlink(missing_ok=True)

    @property
    def reject_socket(self) -> Path:
        return self.run / "reject.sock"

    @property
    def report_socket(self) -> Path:
        return self.run / "report.sock"

    @property
    def twin_socket(self) -> Path:
        return self.run / "twin.sock"

    def twin_camera_socket(self, name: str) -> Path:
        return self.run / f"twin-{name}.sock"

    @property
    def parts_file(self) -> Path:
        return self.run / "parts.state"

    @property
    def ledger_file(self) -> Path:
        return self.data / "ledger.sqlite"

    @property
    def image_dir(self) -> Path:
        return self.data / "images"

    @property
    def part_ceiling(self) -> Path:
        return self.data / "part-ceiling"

    @property
    def cache_dir(self) -> Path:
        return self.data / "cache"

    @property
    def spool_dir(self) -> Path:
        """Events for the ledger, of processes that come and go."""
        return self.data / "spool"

    @property
    def state_file(self) -> Path:
        """How the three processes stand, written by reportd."""
        return self.run / "state.json"

    @property
    def stick_file(self) -> Path:
        """What reportd last told of a stick: lamp and alarms stand over its own restart, not over the box's."""
        return self.run / "stick.json"

    def again_file(self, role: str) -> Path:
        """Where it lies, that process stops in order and is started again: it removes it before it reads its configuration."""
        return self.run / f"again-{role}"

    def same_file(self, role: str) -> Path:
        """Holds the digest of a configuration that changes nothing for that process: it goes on, and goes by that name."""
        return self.run / f"same-{role}"


def box_folders(data: Path | None, run: Path | None, box: tuple[Path, Path] = (BOX_DATA, BOX_RUN)) -> tuple[Path, Path]:
    """(data, run) of the verbs that act on the box itself, also when a person calls them: as told, as systemd names them,
    the box's own where the package is installed, else below the user's home."""
    home = Path.home() / ".local/state/appliance/box"
    here = box if box[0].is_dir() else (home / "data", home / "run")
    return (
        data or Path(os.environ.get("STATE_DIRECTORY") or here[0]),
        run or Path(os.environ.get("RUNTIME_DIRECTORY") or here[1]),
    )
