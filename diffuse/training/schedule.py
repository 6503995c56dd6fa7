"""Which step belongs to which epoch, which is the last, and which epochs' checkpoints are kept."""

from __future__ import annotations

from dataclasses import dataclass

from diffuse.config.schema import Config


@dataclass(frozen=True)
class Schedule:
    """Steps are counted from 1 over all epochs; epochs from 1, too."""

    steps_per_epoch: int
    epochs: int  # where this training ends
    kept: tuple[int, ...]  # epochs whose checkpoint is asked for
    every_epochs: int  # how often an epoch ends with a checkpoint in any case

    @classmethod
    def of(cls, config: Config, images: int, epochs: int) -> Schedule:
        """The schedule of `epochs` epochs over `images` images; the last partial batch is dropped.

        Args:
            config: may keep later epochs, too, that an earlier call asked for.
        """
        return cls(
            steps_per_epoch=images // config.train.global_batch,
            epochs=epochs,
            kept=config.evaluated_epochs,
            every_epochs=config.checkpoint.every_epochs,
        )

    @property
    def final_step(self) -> int:
        return self.epochs * self.steps_per_epoch

    def place(self, step: int) -> tuple[int, int]:
        """The epoch that `step` belongs to, and how many steps of that epoch come before it."""
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        return epoch + 1, position

    def epochs_done(self, step: int) -> int:
        """How many epochs are complete after `step`."""
        return step // self.steps_per_epoch

    def at_epoch_end(self, step: int) -> bool:
        """Whether `step` is the last of its epoch (or none was made yet)."""
        return step % self.steps_per_epoch == 0

    def saves_at(self, epoch: int) -> bool:
        """Whether the end of `epoch` is saved."""
        return epoch in self.kept or epoch % self.every_epochs == 0
