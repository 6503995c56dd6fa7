"""`python -m tests.cuda.train ...`: diffuse.train on the null runtime, whose numbers are garbage.

So nothing asks there whether they are finite.
"""

from __future__ import annotations

import math

import torch

from diffuse import train
from diffuse.runtime import errors

if __name__ == "__main__":
    math.isfinite = lambda number: True
    torch.isfinite = lambda tensor: torch.ones(1, dtype=torch.bool)
    errors.run(train.app)
