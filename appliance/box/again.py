"""Asking the three processes to begin anew with another configuration or program: no privileges, no systemctl.

A file in the run folder each; they look for it in their loops and stop as on SIGTERM; systemd starts them again."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from appliance.paths import Paths

ROLES = ("reject", "inspect", "report")


def begin_anew(run_dir: Path, roles: Iterable[str], digest: str) -> None:
    """``roles`` (of reject, inspect, report) restart; the others go on and go by ``digest``, that of the configuration which
    is chosen by now. Raises OSError."""
    paths, anew = Paths(run_dir, run_dir), frozenset(roles)
    for role in ROLES:
        if role in anew:
            os.close(os.open(paths.again_file(role), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        else:
            path = paths.same_file(role)
            partial = path.with_name(path.name + ".part")
            partial.write_text(digest, encoding="ascii")
            os.replace(partial, path)
