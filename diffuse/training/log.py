"""How a training is followed: losses, rate and state to metrics.jsonl, status.json, screen and W&B.

Losses wait on the device until `flush` brings them to disk together: a step costs no sync.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from diffuse.config.schema import Config
from diffuse.rundir.attempt import Attempt, State
from diffuse.runtime.console import Meter, duration
from diffuse.runtime.distributed import World
from diffuse.runtime.energy import EnergyMeter
from diffuse.runtime.errors import DiffuseError, Superseded, first_line
from diffuse.tracking.mirror import Mirror
from diffuse.training.recorder import Recorder
from diffuse.training.schedule import Schedule

WRITE_EVERY_S = 5.0  # metrics and heartbeat, where log_every steps take longer


class TrainLog:
    """The record of one attempt. Methods are called on every rank; rank 0 alone publishes."""

    def __init__(
        self,
        attempt: Attempt,
        config: Config,
        schedule: Schedule,
        world: World,
        timesteps: int,
        step: int,
    ) -> None:
        """
        Args:
            timesteps: T, whose quartiles have losses of their own.
            step: how many steps were made before this attempt.
        """
        self.attempt = attempt
        self.config = config
        self.schedule = schedule
        self.recorder = Recorder(world, timesteps)
        self.clock = Clock(step, config.train.global_batch)
        self.energy = EnergyMeter(world.device)
        self.meter = Meter(attempt.run.name, schedule.final_step, step, shown=attempt.publishes)
        self.step = step  # the last one recorded

    @property
    def is_due(self) -> bool:
        """True once `log_every` steps and `log_apart_s` seconds, or WRITE_EVERY_S, have passed."""
        system, seconds = self.config.system, self.clock.since_lap
        is_full = len(self.recorder.pending) >= system.log_every
        return (is_full and seconds >= system.log_apart_s) or seconds > WRITE_EVERY_S

    def record(self, step: int, lr: float, losses: Tensor, t: Tensor, grad_norm: Tensor) -> None:
        """Note a step: its rate, this rank's losses [b] at timesteps t [b], the gradient's norm."""
        self.step = step
        self.recorder.add(step, lr, losses, t, grad_norm)

    def flush(self) -> None:
        """Bring the losses since the last time to disk, screen and heartbeat.

        Raises TrainingFailed at the first loss that is not finite.
        """
        epoch, _ = self.schedule.place(self.step)
        self._write(epoch, self.recorder.fetch(epoch))

    def end_epoch(self) -> None:
        """Flush, and write down the means of the epoch that ends with the last step."""
        epoch = self.schedule.epochs_done(self.step)
        events, summary = self.recorder.fetch(epoch), self.recorder.end_epoch()
        self._write(epoch, events, {"event": "epoch", "epoch": epoch, "step": self.step, **summary})
        self.meter.say(
            f"epoch {epoch}/{self.schedule.epochs}  loss {summary['loss']:.5f}"
            f"  {self.clock.rate:.0f} images/s"
        )

    def _write(self, epoch: int, steps: list[dict[str, Any]], *more: dict[str, Any]) -> None:
        """Publish the events of steps, the rate that they had, and `more`, by one append."""
        self.clock.lap(self.step)
        if not steps:
            return
        speed = {"event": "speed", "epoch": epoch, "step": self.step}
        speed |= {"images_per_s": self.clock.rate, **self._cost()}
        self.attempt.append_metrics([*steps, speed, *more])
        facts = self._facts(steps[-1]["loss"])
        self.attempt.publish_status("running", **facts)
        self.meter.update(
            self.step,
            f"epoch {epoch}/{self.schedule.epochs}  loss {facts['loss']:.4f}"
            f"  {facts['images_per_s']:.0f} images/s  ETA {duration(facts['eta_s'])}",
        )

    def pause(self) -> None:
        """Do not count the time since the last flush as training."""
        self.clock.pause(self.step)

    @contextlib.contextmanager
    def running(self) -> Iterator[Mirror]:
        """The screen and W&B are open within; status.json says `running`, and then how it ended."""
        with Mirror(self.attempt.run, self.config, active=self.attempt.publishes) as mirror:
            try:
                self._publish("running")
                with self.meter:
                    yield mirror
                self._end("done", loss=self._last_loss(), eta_s=0.0)
            except Superseded:
                raise
            except BaseException as error:
                is_stopped = getattr(error, "exit_code", 1) in (75, 130)
                # the first error is the one to report, not one of reporting it
                with contextlib.suppress(OSError, DiffuseError):
                    self._end("interrupted" if is_stopped else "failed", reason=first_line(error))
                raise

    def _end(self, state: State, **more: Any) -> None:
        """Publish how the attempt ended, and its whole age, which counts as cost."""
        self._publish(state, **more)
        self.attempt.append_metrics([{"event": "end", "step": self.step, **self._cost()}])

    def _cost(self) -> dict[str, float]:
        """Of this attempt so far."""
        joules = self.energy.joules
        return {"seconds": self.attempt.seconds, **({} if joules is None else {"joules": joules})}

    def _publish(self, state: State, **more: Any) -> None:
        self.attempt.publish_status(state, **{**self._facts(), **more})

    def _facts(self, loss: float | None = None) -> dict[str, Any]:
        return {
            "epoch": self.schedule.epochs_done(self.step),
            "epochs": self.schedule.epochs,
            "step": self.step,
            "steps_per_epoch": self.schedule.steps_per_epoch,
            "loss": loss,
            "images_per_s": self.clock.rate,
            "eta_s": self.clock.eta(self.schedule.final_step - self.step),
        }

    def _last_loss(self) -> float | None:
        """The mean loss of the last epoch, perhaps of an earlier attempt."""
        epochs = self.attempt.run.metrics("epoch") if self.attempt.publishes else []
        return epochs[-1].get("loss") if epochs else None


class Clock:
    """The rate of training: time that went into steps, apart from pictures and checkpoints."""

    def __init__(self, step: int, global_batch: int) -> None:
        self.global_batch = global_batch
        self.rate = 0.0  # images per second
        self.lapped = time.monotonic()
        self.step = step

    @property
    def since_lap(self) -> float:
        return time.monotonic() - self.lapped

    def lap(self, step: int) -> None:
        """Measure the rate since the last lap or pause."""
        now = time.monotonic()
        if step > self.step:
            self.rate = (step - self.step) * self.global_batch / max(now - self.lapped, 1e-9)
            self.lapped, self.step = now, step

    def pause(self, step: int) -> None:
        """The time since the last lap was not spent on training."""
        self.lapped = time.monotonic()
        self.step = step

    def eta(self, steps: int) -> float:
        """Seconds for `steps` more at the present rate."""
        return steps * self.global_batch / self.rate if self.rate else 0.0
