"""Samplers by name, as people write them: `ddim-50-clip`, `ancestral`, `algorithm2`.

Without torch, so that settings are checked where nothing is sampled; samplers.py has what they do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from diffuse.errors import UserError

NAMES = {
    "ddpm": ("ancestral", "ddim", "dpm"),
    "averaging": ("algorithm1", "algorithm2", "direct", "unconditional"),
}


class Sampled(Protocol):
    """What is asked of a process, or of its settings."""

    @property
    def kind(self) -> str: ...

    @property
    def T(self) -> int: ...


DEFAULT_STEPS = {"ddim": 50, "dpm": 20}


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler with its settings, written `ddim-50-clip`, `ancestral`, `algorithm2`.

    With `clip` each prediction of x0 is brought into the images' range, which keeps a network of
    little training from running away.
    """

    name: str
    steps: int
    eta: float = 0.0
    clip: bool = False

    def __str__(self) -> str:
        text = f"{self.name}-{self.steps}" if self.name in DEFAULT_STEPS else self.name
        text += f"-eta{self.eta:g}" if self.eta else ""
        return f"{text}-clip" if self.clip else text

    @property
    def is_conditional(self) -> bool:
        """Whether it starts from degraded real images."""
        return self.name in ("algorithm1", "algorithm2", "direct")

    @classmethod
    def parse(
        cls, text: str, process: Sampled, *, steps: int | None = None, eta: float = 0.0
    ) -> SamplerSpec:
        """`ddim-50` or `ddim` with `steps` beside it.

        Raises UserError: unknown, not for this process, or more steps than T.
        """
        allowed = NAMES[process.kind]
        found = re.fullmatch(r"([a-z]+[12]?)(?:-(\d+))?(?:-eta(\d+(?:\.\d+)?))?(-clip)?", text)
        if not found or found[1] not in allowed:
            kind = "DDPM" if process.kind == "ddpm" else "cold diffusion"
            raise UserError(f"sampler {text!r}: for {kind} the samplers are {', '.join(allowed)}")
        name = found[1]
        chosen = int(found[2]) if found[2] else steps
        eta, clip = float(found[3]) if found[3] else eta, found[4] is not None
        if name not in DEFAULT_STEPS:
            natural = 1 if name == "direct" else process.T
            if chosen not in (None, natural):
                raise UserError(f"sampler {name} takes {natural} steps here, not {chosen}")
            if clip:
                raise UserError(f"clip is for {' and '.join(DEFAULT_STEPS)}, not for {name}")
            return cls(name, natural)
        chosen = min(DEFAULT_STEPS[name], process.T) if chosen is None else chosen
        if not 1 <= chosen <= process.T:
            raise UserError(
                f"sampler {name}: steps must be from 1 to T = {process.T}, not {chosen}"
            )
        if not 0 <= eta <= 1:
            raise UserError(f"eta must be from 0 (deterministic) to 1 (ancestral), not {eta}")
        if eta and name != "ddim":
            raise UserError(f"eta is for ddim, not for {name}")
        return cls(name, chosen, eta, clip)


def default_specs(process: Sampled) -> tuple[SamplerSpec, ...]:
    """The samplers by which a process is judged unless others are asked for."""
    if process.kind == "ddpm":
        return (SamplerSpec("ddim", min(50, process.T), eta=1, clip=True),)
    return tuple(
        SamplerSpec.parse(name, process) for name in ("algorithm2", "direct", "unconditional")
    )
