"""File systems that mail must not rely on: what is lost with the power, and what other machines write to as well."""

from __future__ import annotations

import re
from pathlib import Path

from maintd.errors import Problem, Problems

_MOUNTS = Path("/proc/self/mountinfo")
_IN_MEMORY = frozenset({"ramfs", "tmpfs"})
# Another machine may see the same files, and a lock may hold on one of them only.
_NETWORK = frozenset({"afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs"})
_CLUSTER = frozenset({"gfs2", "ocfs2"})
# `fuse` is `fuse.sshfs` and its like; `fuseblk` is a local disk.
_FOREIGN = frozenset({"9p", "fuse", "virtiofs"})
_LOCAL = frozenset({"fuse.fuse-overlayfs"})
_ESCAPED = re.compile(r"\\([0-7]{3})")


def refuse_volatile(directory: Path, *, mounts: str | None = None) -> None:
    """Refuses a state directory on a file system that does not keep it, or not for this machine alone.

    Args:
        directory: Which need not be there yet.
        mounts: See `file_system_of`. Where a system does not list them nothing is refused.

    Raises:
        Problems: It is on such a file system.
    """
    kind = file_system_of(directory.resolve(), mounts=mounts)
    why = _why_not(kind)
    if why:
        what = f"{directory} is on a file system of type {kind}, {why}; nothing is mailed from there"
        cure = "name a directory on a local disk, or set MAINTD_STATE_DIR_VOLATILE=allow if nothing depends on it"
        raise Problems([Problem(where="MAINTD_STATE_DIR", what=what, cure=cure)])


def file_system_of(path: Path, *, mounts: str | None = None) -> str:
    """The type of the file system of an absolute path; empty when that is not known.

    Args:
        path: Without links.
        mounts: In the form of `/proc/self/mountinfo` (proc_pid_mountinfo(5)), which is read if this is not given.
    """
    nearest, kind = 0, ""
    for line in (_mounted() if mounts is None else mounts).splitlines():
        # ID, parent, device, root, mount point, options, any number of tags, "-", type, ...
        left, separator, right = line.partition(" - ")
        if not separator:
            continue
        point = Path(_ESCAPED.sub(lambda match: chr(int(match[1], 8)), left.split(" ")[4]))
        # Of two on the same point the later one is seen.
        if path.is_relative_to(point) and len(point.parts) >= nearest:
            nearest, kind = len(point.parts), right.split(" ")[0]
    return kind


def _mounted() -> str:
    try:
        return _MOUNTS.read_text(errors="surrogateescape")
    except OSError:
        return ""


def _why_not(kind: str) -> str:
    if kind in _IN_MEMORY:
        return "which is lost when the machine stops"
    if kind.partition(".")[0] in _NETWORK | _CLUSTER | _FOREIGN and kind not in _LOCAL:
        return "which other machines may share"
    return ""
