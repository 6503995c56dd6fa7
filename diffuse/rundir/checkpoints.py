"""Checkpoints: tensors and plain values only, written atomically, checked by content when read.

The zip container that torch writes does not verify its contents on reading, so a checksum over
every tensor and value travels inside. A damaged file is refused by name.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from diffuse.config.schema import Config
from diffuse.rundir.attempt import Attempt
from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from diffuse.runtime.errors import DiffuseError, UserError

FORMAT = 1


class Checkpoints:
    """The checkpoints that one attempt writes into its run, and retires.

    A thread hashes and writes them while training goes on. As a context: at its end all that was
    saved within is on disk, or an error is raised.
    """

    def __init__(
        self,
        attempt: Attempt,
        config: Config,
        environment: dict[str, Any],
        steps_per_epoch: int,
        saved_step: int,
    ) -> None:
        """
        Args:
            environment: all that bitwise equality depends on beside the config; saved with it.
            saved_step: the step that the attempt starts from.
        """
        self.attempt = attempt
        self.config = config
        self.environment = environment
        self.steps_per_epoch = steps_per_epoch
        self.saved_step = saved_step
        self.saved_at = time.monotonic()
        self.pool = ThreadPoolExecutor(1, "checkpoints")
        self.writing: Future[None] | None = None  # the last one, until `finish` has looked at it

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.pool.shutdown()  # waits
        if error is None:
            self.finish()

    @property
    def is_old(self) -> bool:
        """True once the last checkpoint is older than checkpoint.apart_s."""
        return time.monotonic() - self.saved_at >= self.config.checkpoint.apart_s

    @property
    def is_due(self) -> bool:
        """True once `save` should be called: the last checkpoint is older than
        checkpoint.every_minutes, or could not be written, which `save` raises then.
        """
        if self.writing is not None and self.writing.done() and self.writing.exception():
            return True
        return time.monotonic() - self.saved_at > 60 * self.config.checkpoint.every_minutes

    def save(self, content: dict[str, Any]) -> None:
        """Copy `content` and begin to write it. Called on every rank: all agree on the saved step.

        Args:
            content: `step`, `model` and all else that a resume needs.

        Raises DiffuseError where the weights are not finite, and as `finish` for the one before.
        """
        self.finish()
        self.saved_step = step = int(content["step"])
        if self.attempt.publishes:
            content = plain(content, copy=True)  # training goes on changing its own
            if not all_finite(content["model"]):
                raise DiffuseError(
                    f"the weights are no longer finite at step {step}; nothing was saved"
                    " since the last checkpoint; lower train.lr or try train.grad_clip=1"
                )
            self.writing = self.pool.submit(self._publish, step, content)
        self.saved_at = time.monotonic()

    def finish(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises Superseded where a newer attempt has begun, OSError where it cannot be written.
        """
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def _publish(self, step: int, content: dict[str, Any]) -> None:
        """In the thread: the file, then its event, then earlier ones go."""
        run = self.attempt.run
        epoch, position = divmod(step, self.steps_per_epoch)
        path = run.step_checkpoint_path(step) if position else run.checkpoint_path(epoch)
        content = {
            "config": self.config.model_dump(mode="json"),
            "signature": self.config.signature,
            "epoch": epoch,
            "environment": self.environment,
            **content,
        }
        event = {"event": "checkpoint", "epoch": epoch, "step": step, "file": path.name}
        event["weights"] = weights_sha256(content)
        self.attempt.check()
        write(path, content)
        self.attempt.append_metrics([event])
        self.retire(step)

    def retire(self, step: int) -> None:
        """Delete checkpoints before `step` that nothing asked for, all but the last of them."""
        if self.config.checkpoint.keep == "all":
            return
        kept, run = self.config.evaluated_epochs, self.attempt.run
        rolling = [file for file in run.checkpoint_files() if file.epoch not in kept]
        earlier = [file for file in rolling if file.at(self.steps_per_epoch) < step]
        for file in sorted(earlier, key=lambda file: file.at(self.steps_per_epoch))[:-1]:
            file.path.unlink(missing_ok=True)


def write(path: Path, payload: dict[str, Any]) -> None:
    """Write `payload` (tensors on any device, plain values, dicts and lists of them) to `path`."""
    content = plain({"format": FORMAT, **payload})
    content["checksum"] = checksum(content)
    with files.buffered(path) as buffer:
        torch.save(content, buffer)


def read(path: Path) -> dict[str, Any]:
    """The payload of `path`, tensors on the CPU.

    Raises UserError: missing, damaged, or not one of this project's checkpoints. Nothing in the
    file is executed (weights_only).
    """
    content = load_plain(path)
    if not (isinstance(content, dict) and isinstance(content.get("config"), dict)):
        raise UserError(f"{path}: not a checkpoint of this project")
    if content.pop("checksum", None) != checksum(content):
        raise UserError(f"{path}: damaged (its checksum does not match its content)")
    if content.pop("format", None) != FORMAT:
        raise UserError(f"{path}: of another version of this project")
    return content


def load_plain(path: Path) -> Any:
    """Tensors and plain values from a file of torch's, on the CPU. Nothing in it is executed.

    Raises UserError where it is missing or damaged.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of a foreign pickle's protocol
            return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except PermissionError:
        raise
    except Exception:  # a damaged pickle or archive fails in any way
        raise UserError(f"{path}: damaged, or not a file of tensors and plain values") from None


def latest(
    run: RunDir, *, until_step: int | None, steps_per_epoch: int, warn: Callable[[str], None]
) -> dict[str, Any] | None:
    """The intact checkpoint of `run` with the highest step, at most `until_step`; else None.

    `warn` is told of each damaged file that was passed over.
    """
    found = sorted(run.checkpoint_files(), key=lambda file: file.at(steps_per_epoch), reverse=True)
    for file in found:
        if until_step is not None and file.at(steps_per_epoch) > until_step:
            continue
        try:
            return read(file.path)
        except UserError as error:
            warn(f"{error}; trying the one before")
    return None


def weights_sha256(payload: dict[str, Any]) -> str:
    """One hash for the network's weights and their average: are two runs' weights the same?

    Args:
        payload: of a checkpoint, with its tensors on the CPU.
    """
    return checksum({"model": payload["model"], "ema": payload["ema"]})


def checksum(value: Any) -> str:
    """SHA-256 over the keys, types, shapes and bytes of nested dicts, lists, tensors and values.

    Tensors are on the CPU.
    """
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        match part:
            case dict():
                digest.update(b"{%d" % len(part))
                for key, below in part.items():
                    digest.update(repr(key).encode())
                    add(below)
            case list() | tuple():
                digest.update(b"[%d" % len(part))
                for below in part:
                    add(below)
            case Tensor():
                digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
                digest.update(part.contiguous().flatten().view(torch.uint8).numpy().data)
            case _:
                digest.update(repr(part).encode())

    add(value)
    return digest.hexdigest()


def all_finite(weights: Mapping[str, Tensor]) -> bool:
    """True of a state dict without infinities and NaN."""
    return all(bool(tensor.isfinite().all()) for tensor in weights.values())


def plain(value: Any, *, copy: bool = False) -> Any:
    """The nested dicts, lists and values of a checkpoint, with their tensors on the CPU.

    Args:
        copy: tensors that are on the CPU already are copied, too.
    """
    match value:
        case dict():
            return {key: plain(below, copy=copy) for key, below in value.items()}
        case list() | tuple():
            return [plain(below, copy=copy) for below in value]
        case Tensor():
            return value.detach().to("cpu", copy=copy)
        case _ if type(value) in (str, int, float, bool, type(None)):
            return value
        case _:  # a subclass of str would be written, and then refused by every reader
            raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")
