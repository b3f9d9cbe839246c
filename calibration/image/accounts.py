"""Who can log in: nobody, or one person with a key."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from calibration.image.rootfs import ImageError, Rootfs

SERVICE = "service"
AUTHORIZED = f"home/{SERVICE}/.ssh/authorized_keys"
SUDOERS = "etc/sudoers.d/appliance-service"
SUDOERS_TEXT = f"# A key opened the door; there is no password to ask for.\n{SERVICE} ALL=(ALL:ALL) NOPASSWD: ALL\n"
SSHD = "etc/ssh/sshd_config.d/00-appliance.conf"  # sshd takes the first value it reads
SSHD_TEXT = f"""# Keys only, and only for the one user who has one. sshd runs only if the image was made with a key.
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
PermitEmptyPasswords no
AllowUsers {SERVICE}
"""
# Each box makes its own host keys at its first start. sshd's own check (-t) fails without them, so it comes after.
SSH_KEYS = "etc/systemd/system/ssh.service.d/appliance.conf"
SSH_KEYS_TEXT = """[Service]
ExecStartPre=
ExecStartPre=/usr/bin/ssh-keygen -A
ExecStartPre=/usr/sbin/sshd -t
"""
_PEOPLE = range(1000, 60000)  # what adduser gives to persons
_SHELLS = ("nologin", "false")
_KEY = re.compile(r"^(ssh-ed25519|ecdsa-sha2-\S+|ssh-rsa|sk-\S+) [A-Za-z0-9+/=]+( .*)?$")


def with_password(rootfs: Rootfs) -> list[str]:
    """Accounts whose password, or lack of one, lets somebody in. An empty field is the worst: any password does."""
    return sorted({name for file in ("etc/shadow", "etc/shadow-", "etc/passwd", "etc/passwd-") for name in _open(rootfs, file)})


def lock_passwords(rootfs: Rootfs) -> None:
    """No account has a password afterwards, and no backup of the files holds one: what an account had is thrown away,
    not kept behind a ! that takes it back."""
    for file in ("etc/shadow", "etc/shadow-", "etc/passwd", "etc/passwd-"):
        names = _open(rootfs, file)
        if names:
            lines = [_with_field(line, 1, "!" if "shadow" in file else "x") if line.split(":")[0] in names else line
                     for line in (rootfs.text(file) or "").splitlines()]  # fmt: skip
            rootfs.write(file, "\n".join(lines) + "\n")


def people(rootfs: Rootfs, welcome: str) -> list[str]:
    """Persons' accounts that have a shell, but ``welcome``: of somebody's first boot, or NVIDIA's default user."""
    return [line.split(":")[0] for line in (rootfs.text("etc/passwd") or "").splitlines() if _is_person(line, welcome)]


def take_shells(rootfs: Rootfs, welcome: str) -> None:
    """Persons' accounts stay (files belong to them), and nobody gets in by them: no key, no password, no su."""
    lines = [_with_field(line, 6, "/usr/sbin/nologin") if _is_person(line, welcome) else line
             for line in (rootfs.text("etc/passwd") or "").splitlines()]  # fmt: skip
    rootfs.write("etc/passwd", "\n".join(lines) + "\n")


def automatic_logins(rootfs: Rootfs) -> list[str]:
    """Files that log somebody in without being asked, on a console or a desktop."""
    found = []
    units = rootfs.path("etc/systemd/system")
    for path in sorted(units.glob("*getty@*.d/*.conf")) if units.is_dir() else ():
        inside = str(PurePosixPath(path.relative_to(rootfs.root)))
        if re.search(r"(--autologin|\s-a)\s", rootfs.text(inside) or ""):
            found.append(inside)
    for desktop in ("etc/gdm3/custom.conf", "etc/lightdm/lightdm.conf.d/50-nvidia.conf"):
        if re.search(r"(?mi)^\s*(AutomaticLoginEnable\s*=\s*true|autologin-user\s*=)", rootfs.text(desktop) or ""):
            found.append(desktop)
    return found


def host_keys(rootfs: Rootfs) -> list[str]:
    """SSH host keys that every box of this image would share."""
    folder = rootfs.path("etc/ssh")
    return [f"etc/ssh/{path.name}" for path in sorted(folder.glob("ssh_host_*"))] if folder.is_dir() else []


def public_key(text: str, file: str) -> str:
    """The one key in a .pub file. Raises ImageError for anything else, a private key first of all."""
    if "PRIVATE KEY" in text:
        raise ImageError(f"{file} is a private key; name its .pub file")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) != 1 or not _KEY.match(lines[0]):
        raise ImageError(f"{file} holds no SSH public key; one line as ssh-keygen writes it into id_ed25519.pub is wanted")
    return lines[0] + "\n"


def _open(rootfs: Rootfs, file: str) -> list[str]:
    harmless = ("*", "!", "!!", "x") if "passwd" in file else ("*", "!", "!!", "!*")
    rows = [line.split(":") for line in (rootfs.text(file) or "").splitlines() if line.count(":") >= 2]
    return [row[0] for row in rows if row[1] not in harmless]


def _is_person(line: str, welcome: str) -> bool:
    row = line.split(":")
    if len(row) != 7 or not row[2].isdigit() or row[0] == welcome:
        return False
    return int(row[2]) in _PEOPLE and PurePosixPath(row[6]).name not in _SHELLS


def _with_field(line: str, index: int, value: str) -> str:
    row = line.split(":")
    return ":".join([*row[:index], value, *row[index + 1 :]])
