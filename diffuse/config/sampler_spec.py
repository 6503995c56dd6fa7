"""Samplers by name, as people write them: `ddim-50-clip`, `ancestral`, `algorithm2`.

Without torch, so that settings are checked where nothing is sampled; samplers.py has what they do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from diffuse.runtime.errors import UserError

NAMES = {
    "ddpm": ("ancestral", "ddim", "dpm"),
    "averaging": ("algorithm1", "algorithm2", "direct", "unconditional"),
}
DEFAULT_STEPS = {"ddim": 50, "dpm": 20}
# name, steps, eta, clip: as `str` of a SamplerSpec writes them
WRITTEN = re.compile(r"([a-z]+[12]?)(?:-(\d{1,9}))?(?:-eta(\d+(?:\.\d+)?(?:e-\d\d)?))?(-clip)?")


class Sampled(Protocol):
    """What is asked of a process, or of its settings."""

    @property
    def kind(self) -> str: ...

    @property
    def T(self) -> int: ...


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
        cls, text: str, process: Sampled, *, steps: int | None = None, eta: float | None = None
    ) -> SamplerSpec:
        """`ddim-50` or `ddim` with `steps` beside it.

        Raises UserError: unknown, not for this process, more steps than T, or two that disagree.
        """
        is_ddpm = process.kind == "ddpm"
        allowed = NAMES[process.kind]
        found = WRITTEN.fullmatch(text)
        if not found or found[1] not in allowed:
            kind = "DDPM" if is_ddpm else "cold diffusion"
            example = " (with settings as in ddim-50-eta0.5-clip)" if is_ddpm else ""
            raise UserError(
                f"sampler {text!r}: for {kind} the samplers are {', '.join(allowed)}{example}"
            )
        name, clip = found[1], found[4] is not None
        chosen = steps if found[2] is None else int(found[2])
        chosen_eta = eta if found[3] is None else float(found[3])
        if steps not in (None, chosen) or eta not in (None, chosen_eta):
            raise UserError(f"sampler {text}: other steps or another eta stand beside it")
        eta = chosen_eta or 0.0
        if eta and name != "ddim":
            raise UserError(f"eta is for ddim, not for {name}")
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
        return cls(name, chosen, eta, clip)


def default_specs(process: Sampled) -> tuple[SamplerSpec, ...]:
    """The samplers by which a process is judged unless others are asked for."""
    if process.kind == "ddpm":
        return (SamplerSpec("ddim", min(50, process.T), eta=1, clip=True),)
    return tuple(
        SamplerSpec.parse(name, process) for name in ("algorithm2", "direct", "unconditional")
    )
