from __future__ import annotations

import sys
from pathlib import Path

import pytest

from maintd.errors import Problems
from maintd.mail.recording.volatile import file_system_of, refuse_volatile

MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
30 27 0:25 / /tmp rw,nosuid shared:4 master:2 - tmpfs tmpfs rw,size=8388608k
31 27 8:1 / /srv rw - xfs /dev/sda1 rw
32 31 0:40 /export /srv/mail rw shared:9 - nfs4 nas:/export rw,vers=4.2
33 27 0:41 / /mnt/two\040words\134here rw - cifs //nas/share rw
34 27 0:42 / /home/ann/remote rw - fuse.sshfs ann@host: rw
35 27 8:2 / /mnt/stick rw - fuseblk /dev/sdb1 rw
36 27 0:43 / /over rw - tmpfs tmpfs rw
37 36 8:3 / /over rw - btrfs /dev/sdc rw,subvol=/a - b
38 27 0:44 / /pod rw - fuse.fuse-overlayfs fuse-overlayfs rw
not a mount
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/maintd", "ext4"),
        ("/tmp", "tmpfs"),
        ("/tmp/maintd", "tmpfs"),
        ("/tmpfiles", "ext4"),
        ("/srv/mailing", "xfs"),
        ("/srv/mail/state", "nfs4"),
        (r"/mnt/two words\here/state", "cifs"),
        ("/over/state", "btrfs"),
    ],
)
def test_the_nearest_mount_point_above_says_the_type(path: str, kind: str) -> None:
    assert file_system_of(Path(path), mounts=MOUNTS) == kind


def test_without_a_mount_point_above_there_is_no_type() -> None:
    assert file_system_of(Path("/var"), mounts="22 27 0:21 / /proc rw - proc proc rw") == ""
    refuse_volatile(Path("/var"), mounts="")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/tmp/maintd", "type tmpfs, which is lost when the machine stops"),
        ("/srv/mail/state", "type nfs4, which other machines may share"),
        ("/home/ann/remote/state", "type fuse.sshfs, which other machines may share"),
    ],
)
def test_a_volatile_or_shared_directory_is_refused_with_the_reason(path: str, reason: str) -> None:
    with pytest.raises(Problems, match=reason) as refused:
        refuse_volatile(Path(path), mounts=MOUNTS)
    assert "name a directory on a local disk" in str(refused.value)


@pytest.mark.parametrize("path", ["/var/lib/maintd", "/srv/mailing", "/mnt/stick/state", "/over", "/pod"])
def test_a_directory_on_a_local_disk_is_taken(path: str) -> None:
    refuse_volatile(Path(path), mounts=MOUNTS)


def test_a_link_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/tmp-of-the-test")
    mounts = "27 1 254:0 / / rw - ext4 /dev/vda rw\n30 27 0:25 / /tmp-of-the-test rw - tmpfs tmpfs rw"
    with pytest.raises(Problems):
        refuse_volatile(tmp_path / "link" / "state", mounts=mounts)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists its mounts so")
def test_this_machine_can_say_where_its_processes_are_listed() -> None:
    assert file_system_of(Path("/proc/self")) == "proc"
