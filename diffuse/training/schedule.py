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
    every_epochs: int  # how often an epoch's end is a place for a checkpoint
    keeps_all: bool = False  # of these

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
            keeps_all=config.checkpoint.keep == "all",
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

    def saves_at(self, epoch: int, is_old: bool) -> bool:
        """True for an epoch whose end is saved.

        Args:
            is_old: the last checkpoint is old enough for a rolling one to take its place.
        """
        is_place = epoch % self.every_epochs == 0
        return epoch in self.kept or (is_place and (is_old or self.keeps_all))
