"""The one file that knows W&B: hands the events of a run directory on to it.

python -m diffuse.tracking.uploader RUN train|evaluate MODE LIMIT_S [strict]

Started by diffuse.tracking.mirror and by launch/sync.py, which say the end by closing standard
input.

Line n of metrics.jsonl is step n of the W&B run. The file only grows, also over a resume, whose
training steps go back; so W&B's own step never does, and a line that is sent a second time changes
nothing. Charts use axes of our own: `step` and `epoch`. Online, the server says where to go on;
offline, wandb/offline.json does.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from filelock import Timeout

from diffuse.config.schema import Config
from diffuse.rundir import evaluations
from diffuse.rundir.cost import Cost
from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from diffuse.runtime.errors import UserError
from diffuse.tracking.connection import MODES, ClientSettings, give_home, in_netrc, reason, settle
from diffuse.tracking.rows import Tail, cost_row, row_of, summary

Mode = Literal["online", "offline"]
POLL_S = 1.0
INIT_S = 20.0
LOCK_S = 10.0
ASK_S = 10.0
STATS_EVERY_S = 30.0  # of GPU use and memory, and of the machine
JOB_TYPE = "train"  # of every process that mirrors a run: it is one run in W&B


def main(path: str, job: str, mode: str, limit_s: float, strict: bool) -> int:
    """Mirror the run at `path` until standard input ends and all lines are handed on."""
    ended = watch_parent(limit_s)
    os.nice(10)  # training comes first
    # A signal of Slurm or a terminal is for the trainer; the uploader ends with it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    run = RunDir(Path(path))
    try:
        config = run.config()
        import wandb  # noqa: F401
    except UserError as error:
        return say(f"not mirrored: {error}")
    except ImportError:
        return say("not mirrored: wandb is not installed; pip install 'diffuse[track]'")
    for name in ("CACHE", "DATA", "ARTIFACT"):
        os.environ[f"WANDB_{name}_DIR"] = str(run.path / "wandb" / name.lower())
    try:
        settled, why = settle(mode, client_settings())
        if settled == "online":
            try:
                return mirror(run, config, job, "online", ended, strict)
            except NotStarted as error:
                settled, why = "offline", str(error)
        if strict:
            return say(f"not uploaded: {why}")
        if settled == "disabled":
            return 0
        if why:
            say(f"offline: {why}; `python launch/sync.py` uploads the run later")
        return mirror(run, config, job, "offline", ended, strict)
    except NotStarted as error:
        return say(f"not mirrored: {error}")


class NotStarted(Exception):
    """W&B would not begin a run, for the reason given."""


def client_settings() -> ClientSettings:
    """The client's mode, its server, and whether it has a key, wherever they are set.

    Where it cannot make sense of its mode or of its settings files, it is offline from here on, and
    `problem` tells why. Raises NotStarted where it cannot make sense of another variable.
    """
    give_home(os.environ)
    import wandb

    problem = ""
    if not os.environ.get("WANDB_MODE"):
        os.environ.pop("WANDB_MODE", None)  # set to nothing is not set
    elif os.environ["WANDB_MODE"] not in MODES:
        problem = f"WANDB_MODE={os.environ['WANDB_MODE']!r}: W&B knows {', '.join(MODES)}"
        os.environ["WANDB_MODE"] = "offline"
    try:
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            settings = wandb.setup().settings
            server = str(settings.base_url)
            has_key = bool(settings.api_key or getattr(settings, "identity_token_file", None))
            has_key = has_key or _in_netrc(server)
    except Exception as error:
        raise NotStarted(reason(error)) from None
    lines = [line.partition(" ERROR ") for line in printed.getvalue().splitlines()]
    if unread := " ".join(text.strip() for _, found, text in lines if found):
        # it goes on with its defaults, which are online and its maker's server
        problem = problem or f"its settings files are wrong: {unread[:200]}"
    return ClientSettings(MODES.get(settings.mode, "offline"), server, has_key, problem)


def _in_netrc(server: str) -> bool:
    """Whether netrc has a key for this server: the client knows its servers' other names."""
    try:
        from wandb.sdk.lib.wbauth import read_netrc_auth
    except ImportError:  # an older client
        return in_netrc(server)
    return read_netrc_auth(host=server) is not None


def mirror(
    run: RunDir, config: Config, job: str, mode: Mode, ended: threading.Event, strict: bool
) -> int:
    """Hand on the lines of metrics.jsonl that W&B has not yet, until `ended`; the exit code.

    Raises NotStarted.
    """
    follows = job == "train" and not strict  # a trainer's events, while they are written
    folder = run.path / "wandb"
    state_path = folder / f"{mode}.json"
    lock = contextlib.ExitStack()  # goes with this process
    cost = "of two attempts at the same time, W&B may get a line twice"
    try:
        # A trainer waits for an earlier attempt's mirror to end; others leave it the lines.
        wait_s = -1 if follows else LOCK_S
        lock.enter_context(files.locked(folder / f"{mode}.lock", cost, wait_s, note=say))
    except Timeout:
        return say(f"{mode}: another process mirrors this run now")
    client = begin(run, config, mode, watched=None if strict else os.getppid())
    if mode == "online":
        files.write_json(state_path, {**files.read_json(state_path), "url": client.url})
    at = files.read_json(state_path).get("line", 0) if mode == "offline" else client.starting_step
    tail, costs = Tail(run.metrics_path), Cost(config.train.global_batch)
    last, sent = -1, 0  # the last row logged, and how many
    try:
        while True:
            ending = ended.is_set()  # tested first: all lines written before it are read below
            for number, line in tail.new():
                with contextlib.suppress(KeyError, TypeError, ValueError):  # a damaged line
                    costs.add(line)
                if number >= int(at) and hand_on(client, run, config, number, line, costs):
                    last, sent = number, sent + 1
            if ending:
                break
            ended.wait(POLL_S)
        state = run.status().get("state")
        if state == "interrupted":
            client.mark_preempting()
        # A trainer that is gone and still `running` was killed.
        failed = state in ("failed", "interrupted") or (follows and state == "running")
        client.finish(exit_code=int(failed))
        if mode == "online" and last >= 0 and not arrived(client.path, last):
            return say(
                "did not confirm the last rows; `python launch/sync.py` sends the missing rows"
            )
        ended_at = {"line": tail.number, "sent": sent, "written": files.now()}
        files.write_json(state_path, {**files.read_json(state_path), **ended_at})
        if mode == "online":
            for log in folder.glob("offline-run-*/run-*.wandb"):
                log.with_name(f"{log.name}.synced").touch()  # so that `wandb sync` leaves it
    except Exception as error:
        return say(f"{mode}: stopped ({reason(error)}); `python launch/sync.py` sends the rest")
    return 0


def hand_on(
    client: Any, run: RunDir, config: Config, number: int, line: dict[str, Any], cost: Cost
) -> bool:
    """Log one event, without pictures that cannot be read; whether it made a row.

    Args:
        cost: of all lines up to this one.
    """
    import wandb

    try:
        row, kept = row_of(run, config, line), artifact(run, config, line)
        for name, value in row.items():
            if isinstance(value, Path | np.ndarray):
                picture = str(value) if isinstance(value, Path) else value
                row[name] = wandb.Image(picture, caption=f"{run.name}, epoch {row['epoch']}")
        event, columns = line.get("event"), {}
        if event in ("epoch", "evaluation") and row and line["epoch"] in cost.at_epoch:
            row |= cost_row(cost.at_epoch[line["epoch"]])
        if event in ("evaluation", "end"):
            columns = cost_row(cost.total)
        if event == "evaluation":
            columns |= summary(config, evaluations.of_run(run))
    except Exception as error:
        say(f"line {number + 1} of metrics.jsonl was left out: {reason(error)}")
        return False
    if row:
        client.log(row, step=number, commit=True)
    if columns:
        client.summary.update(columns)
    if kept is not None:
        client.log_artifact(kept, aliases=[f"epoch-{line['epoch']}"])
    return bool(row)


def arrived(path: str, last: int) -> bool:
    """Whether the server has the row `last`: a client that was refused in mid-run ends in silence.

    The server takes a moment to count, so it is asked a few times.
    """
    import wandb

    api = wandb.Api(timeout=int(ASK_S))
    for _ in range(3):
        if int(api.run(path).lastHistoryStep) >= last:
            return True
        time.sleep(1)
    return False


def begin(run: RunDir, config: Config, mode: Mode, watched: int | None) -> Any:
    """The W&B run of this run directory, begun or resumed, with our axes. Raises NotStarted.

    Args:
        watched: process whose machine and GPUs the client reports the load of; None: none.
    """
    import wandb

    manifest = files.read_json(run.manifest_path)
    process = config.process
    tags = [process.kind, config.preset, process.variant]
    try:
        client = wandb.init(
            id=run_id(run),
            name=run_id(run),
            resume="allow" if mode == "online" else None,
            mode=mode,
            project=config.tracking.project,
            entity=config.tracking.entity,
            group=(manifest.get("grid") or config.preset)[:128],
            job_type=JOB_TYPE,
            tags=[tag[:64] for tag in tags if tag],
            config={
                **config.model_dump(mode="json"),
                "signature": config.signature,
                "manifest": manifest,
            },
            dir=str(run.path),
            save_code=False,
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                init_timeout=INIT_S,
                finish_timeout=3600,
                finish_timeout_raises=True,
                x_disable_meta=True,  # manifest.json says more, and of the trainer
                x_disable_stats=watched is None,
                x_stats_pid=watched or os.getpid(),
                x_stats_sampling_interval=STATS_EVERY_S,
                x_stats_gpu_device_ids=own_gpus(),
                x_save_requirements=False,
                x_transaction_log_flush_interval=2,
            ),
        )
    except Exception as error:
        with contextlib.suppress(Exception):
            wandb.teardown()
        raise NotStarted(reason(error)) from None
    client.define_metric("step", hidden=True)
    client.define_metric("epoch", hidden=True)
    client.define_metric("train/*", step_metric="step")
    for name in ("epoch/*", "eval/*", "cost/*", "samples*", "degradation"):
        client.define_metric(name, step_metric="epoch")
    return client


def own_gpus() -> list[int] | None:
    """The GPUs of this job on a node that others share; None: all that are seen."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [int(number) for number in listed] if all(map(str.isdecimal, listed)) else None


def run_id(run: RunDir) -> str:
    """One W&B run for each run directory; a rerun (`sweep --rerun`) has its own."""
    folder = run.path.absolute().parent.name
    return f"{run.name}-{folder}" if re.fullmatch(r"rerun-\d+", folder) else run.name


def default_entity() -> str:
    """The team or user that the key belongs to, as the server says."""
    import wandb

    return str(wandb.Api(timeout=int(INIT_S)).default_entity)


def artifact(run: RunDir, config: Config, line: dict[str, Any]) -> Any:
    """The checkpoint that was written, as a W&B artifact; None where none is asked for."""
    import wandb

    if line.get("event") != "checkpoint" or not config.tracking.log_checkpoints:
        return None
    path = run.checkpoint_path(line["epoch"])
    if line["epoch"] not in config.evaluated_epochs or line["file"] != path.name:
        return None
    artifact = wandb.Artifact(run_id(run), type="model", metadata={"epoch": line["epoch"]})
    artifact.add_file(str(path))
    return artifact


def watch_parent(limit_s: float) -> threading.Event:
    """An event that is set when standard input ends; `limit_s` later this process does too."""
    ended = threading.Event()

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        ended.set()
        threading.Event().wait(limit_s)
        say("did not take the last rows in time; `python launch/sync.py` sends them")
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return ended


def say(text: str) -> int:
    """A note for people, which the trainer repeats at its end; returns 1, the exit code of most."""
    with contextlib.suppress(OSError):
        print(f"W&B {text}", flush=True)
    return 1


if __name__ == "__main__":
    _, path, job, mode, limit_s, *strict = sys.argv
    sys.exit(main(path, job, mode, float(limit_s), bool(strict)))
