"""A W&B server on the loopback: as much of its protocol as runs need, or bad manners.

It keeps all that the client sends: the runs, and each run's history rows as they arrive.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

KEY = "0123456789abcdef0123456789abcdef01234567"  # of the right form, for this server only
Manners = Literal["good", "error", "hang", "close", "refused key"]


class Server(ThreadingHTTPServer):
    """Answers by `manners`, which a test may change at any time."""

    daemon_threads = True

    def __init__(self, manners: Manners) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.manners = manners
        self.runs: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.uploads: list[str] = []
        self.views: dict[str, dict[str, Any]] = {}  # saved workspaces by their ids
        self.operations: list[str] = []
        self.once_begun: Manners | None = None  # its manners from a run's beginning on
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def environment(self) -> dict[str, str]:
        """The variables that make the client talk to this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client hangs up when it is ended: nothing to report."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""

    def misbehave(self) -> bool:
        match self.server.manners:
            case "error":
                self.reply({"error": "out of order"}, 500)
            case "hang":
                self.server.closing.wait(120)
            case "close":
                self.close_connection = True
            case "refused key" if not self.path.startswith("/healthz"):
                self.reply({"errors": [{"message": "invalid key"}]}, 401)
            case _:
                return False
        return True

    def reply(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> Any:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            raw = gzip.decompress(raw)
        try:
            return json.loads(raw)
        except ValueError:  # telemetry
            return {}

    def do_GET(self) -> None:
        if not self.misbehave():
            self.reply({})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.misbehave():
            self.server.uploads.append(self.path)
            self.reply({})

    def do_POST(self) -> None:
        content = self.body()
        if self.misbehave():
            return
        if self.path.endswith("/file_stream"):
            run = self.path.split("/")[-2]
            chunk = content.get("files", {}).get("wandb-history.jsonl")
            if chunk:
                rows = self.server.rows.setdefault(run, [])
                del rows[chunk["offset"] :]  # as lines of a file: rows sent again replace
                rows += [json.loads(line) for line in chunk["content"]]
            self.reply({"exitcode": None, "limits": {}})
        elif self.path == "/graphql":
            named = re.search(r"(?:query|mutation)\s+(\w+)", content["query"])
            operation = named[1] if named else ""
            self.reply({"data": self.graphql(operation, content.get("variables") or {})})
            if operation == "UpsertBucket" and self.server.once_begun:
                self.server.manners = self.server.once_begun
        else:
            self.reply({})

    def graphql(self, operation: str, asked: dict[str, Any]) -> dict[str, Any]:
        self.server.operations.append(operation)
        project = {"id": "p", "name": asked.get("project"), "entity": {"id": "e", "name": "me"}}
        match operation:
            case "Viewer" | "GetDefaultEntity":
                me = {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}"}
                return {"viewer": {**me, "teams": {"edges": []}}}
            case "Run" | "RunHistoryKeys":
                run = self.server.runs[asked["name"]]
                rows = self.server.rows.get(asked["name"], [])
                keys = {"lastStep": rows[-1]["_step"], "sets": [], "keys": {}} if rows else None
                fields = {
                    "id": run["id"],
                    "name": asked["name"],
                    "config": "{}",
                    "user": {"name": "me"},
                }
                more = {"state": "finished", "systemMetrics": "{}", "summaryMetrics": "{}"}
                shown = {**fields, **more, "projectId": "1", "tags": [], "historyKeys": keys}
                return {"project": {"run": shown}}
            case "RunResumeStatus":
                known = self.server.runs.get(asked["name"])
                rows = self.server.rows.get(asked["name"], [])
                bucket = known and {
                    **known,
                    "summaryMetrics": "{}",
                    "logLineCount": 0,
                    "historyLineCount": len(rows),
                    "eventsLineCount": 0,
                    "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
                    "eventsTail": "[]",
                    "tags": [],
                    "notes": None,
                    "wandbConfig": json.dumps({"t": 1}),
                }
                return {"model": {**project, "bucket": bucket}}
            case "UpsertBucket":
                name = asked["name"]
                run = self.server.runs.setdefault(name, {"id": f"id-{name}", "name": name})
                run |= {k: v for k, v in asked.items() if v is not None and k != "id"}
                shown = {k: run.get(k) for k in ("id", "name", "displayName", "config")}
                count = len(self.server.rows.get(name, []))
                bucket = {**shown, "description": None, "sweepName": None, "project": project}
                return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": count}}}
            case "UpsertView2":
                key = asked.get("id") or f"view-{len(self.server.views)}"
                inserted = key not in self.server.views
                self.server.views[key] = asked
                view = {"id": key, "name": asked["name"]}
                return {"upsertView": {"view": view, "inserted": inserted}}
            case "View":
                nodes = [
                    {"node": {"id": key, **{k: view[k] for k in ("displayName", "spec")}}}
                    for key, view in self.server.views.items()
                    if view["name"] == asked["viewName"]
                ]
                return {"project": {"allViews": {"edges": nodes}}}
            case "CreateRunFiles":
                files = [
                    {"name": n, "uploadUrl": f"{self.server.url}/upload/{n}"}
                    for n in asked["files"]
                ]
                made = {"runID": asked["run"], "uploadHeaders": [], "files": files}
                return {"createRunFiles": made}
        return {}


@contextmanager
def server(manners: Manners = "good") -> Iterator[Server]:
    """A server that runs while the block does."""
    it = Server(manners)
    threading.Thread(target=it.serve_forever, daemon=True).start()
    try:
        yield it
    finally:
        it.closing.set()
        it.shutdown()
        it.server_close()
