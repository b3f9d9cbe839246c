"""Whose files the station's are: what root does for the station, it does as the station's own user."""

from __future__ import annotations

import os
from pathlib import Path


def become_owner(folder: Path) -> None:
    """Root becomes who owns ``folder``: it would leave files there that the station's user cannot replace, and follow what that
    user put there. Anybody else stays who he is. Raises OSError."""
    owner = folder.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    os.setgroups([owner.st_gid])
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)
