"""The images of each digit that the network was told, judged against the real ones of that digit.

    digits = by_digit(features, logits, told, train, test)

A network with labels may be good on the whole and poor at one digit, or draw another one than it
was told. Only the project's classifier can see that: other extractors know no digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffuse.evaluation.metrics import Moments, fid
from diffuse.rundir.evaluations import DigitScores
from diffuse.runtime.rng import Stream, generator


def by_digit(
    features: Tensor,
    logits: Tensor,
    told: Tensor,
    real: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
) -> list[DigitScores] | None:
    """Scores of each digit; None where one has too few images for a covariance.

    Args:
        features: of the generated images [n, d].
        logits: of the generated images [n, digits].
        told: the digit of each [n].
        real: features [N, d] and labels [N] of the training images.
        held_out: those of the test images, of which the floor is made.
    """
    n, size = logits.shape[1], features.shape[1]
    if torch.bincount(told, minlength=n).min() <= size:
        return None
    seen = logits.argmax(1)
    order = torch.randperm(len(held_out[1]), generator=generator(0, Stream.FLOOR))
    scores = []
    for digit in range(n):
        mine = told == digit
        images = int(mine.sum())
        moments = Moments.of(real[0][real[1] == digit])
        others = order[held_out[1][order] == digit][:images]
        scores.append(
            DigitScores(
                digit=digit,
                images=images,
                fid=fid(moments, features[mine]),
                floor=fid(moments, held_out[0][others]),
                recognised=float((seen[mine] == digit).double().mean()),
            )
        )
    return scores
