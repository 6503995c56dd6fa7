"""Whether W&B can be reached from here: a key and a server, found out without its client."""

from __future__ import annotations

import contextlib
import netrc
import os
import threading
from pathlib import Path
from urllib.parse import urlsplit

PROBE_S = 5.0


def settle(mode: str) -> tuple[str, str]:
    """The mode to use, and why it is not online where that was possible.

    auto: online where there is a key and a server that answers within a few seconds.
    """
    if mode not in ("auto", "online"):
        return mode, ""
    server = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    if not has_key(server):
        return "offline", "no API key: set WANDB_API_KEY or run `wandb login`"
    if not answers(server):
        return "offline", f"{urlsplit(server).hostname} does not answer"
    return "online", ""


def has_key(server: str) -> bool:
    """Whether there is a key in the environment or netrc; it is never read out."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        path = os.environ.get("NETRC") or Path.home() / ".netrc"
        return netrc.netrc(str(path)).authenticators(urlsplit(server).hostname or "") is not None
    except (OSError, RuntimeError, netrc.NetrcParseError):  # RuntimeError: there is no home
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
    """The first line of an error, without any key."""
    text = str(error).strip() or type(error).__name__
    key = os.environ.get("WANDB_API_KEY")
    text = text.replace(key, "***") if key else text
    return text.splitlines()[0][:200]
