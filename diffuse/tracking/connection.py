"""Whether W&B can be reached from here: by its client's settings, a key and a server."""

from __future__ import annotations

import configparser
import contextlib
import netrc
import os
import tempfile
import threading
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

PROBE_S = 5.0
# The client's names of modes, old ones among them, and ours.
MODES = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


class ClientSettings(NamedTuple):
    """The settings that W&B's client takes from its variables, settings files and netrc."""

    mode: str  # online, offline or disabled
    server: str
    has_key: bool
    problem: str = ""  # why it is offline where nobody asked for that


def settle(mode: str, client: ClientSettings) -> tuple[str, str]:
    """The mode to use, and why it is not online where that was possible.

    auto: as the client is set; online where there is a key and a server that answers within a few
    seconds.
    """
    mode = client.mode if mode == "auto" else mode
    if client.problem and mode != "disabled":
        return "offline", client.problem
    if mode != "online":
        return mode, ""
    if not client.has_key:
        name = urlsplit(client.server).netloc
        return "offline", f"no API key for {name}: set WANDB_API_KEY or run `wandb login`"
    if not answers(client.server):
        return "offline", f"{urlsplit(client.server).hostname} does not answer"
    return "online", ""


def folder_settings(folder: Path) -> dict[str, str]:
    """The client's mode and server for programs that are started from `folder`, as variables.

    For a job that starts in another folder: `wandb offline` writes wandb/settings where it is
    typed. A variable that is set already wins, as it does with the client.
    """
    parser = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(OSError, ValueError, configparser.Error):
        parser.read(Path(os.environ.get("WANDB_DIR") or folder) / "wandb" / "settings")
    found = {}
    for key in ("mode", "base_url"):
        name = f"WANDB_{key.upper()}"
        if value := os.environ.get(name) or parser.get("default", key, fallback=""):
            found[name] = value
    return found


def give_home(environment: MutableMapping[str, str]) -> None:
    """A home for a user who has none, as in a bare container: the client wants one."""
    try:
        Path.home()
    except RuntimeError:
        environment["HOME"] = tempfile.gettempdir()


def in_netrc(server: str) -> bool:
    """Whether there is a key for this server in netrc, under HOST:PORT or the host alone."""
    parts = urlsplit(server)
    with contextlib.suppress(OSError, ValueError, RuntimeError, netrc.NetrcParseError):
        known = netrc.netrc(os.environ.get("NETRC") or str(Path.home() / ".netrc"))
        return any(known.authenticators(name) for name in (parts.netloc, parts.hostname or ""))
    return False


def answers(server: str) -> bool:
    """Whether the server says anything sensible within PROBE_S, through a proxy if one is set."""
    import requests

    heard = []

    def ask() -> None:
        with contextlib.suppress(requests.RequestException):
            response = requests.get(f"{server}/healthz", timeout=PROBE_S, stream=True)
            heard.append(response.status_code < 500)
            response.close()

    # In a thread: neither a name that is not resolved nor a server that trickles may hold us.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_S)
    return any(heard)


def reason(error: Exception) -> str:
    """An error in one line, without any key: its first, and of pydantic's the setting too."""
    text = str(error).strip() or type(error).__name__
    if hasattr(error, "errors"):
        first: dict[str, Any] = error.errors()[0]
        name = "_".join(map(str, first["loc"])).upper()
        text = f"WANDB_{name}={first['input']!r}: {first['msg']}"
    key = os.environ.get("WANDB_API_KEY")
    text = text.replace(key, "***") if key else text
    return text.splitlines()[0][:200]
