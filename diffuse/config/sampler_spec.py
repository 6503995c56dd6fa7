"""Samplers by name, as people write them: `ddim-50-clip`, `ancestral`, `algorithm2`.

Without torch, so that settings are checked where nothing is sampled. Each process declares its
samplers in processes.py; the functions stand beside the process in diffuse/models/.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from diffuse.runtime.errors import UserError

if TYPE_CHECKING:
    from diffuse.config.processes import ProcessConfig

# name, steps, eta, guidance, clip, bf16: as `str` of a SamplerSpec writes them
NUMBER = r"(\d+(?:\.\d+)?(?:e-\d\d)?)"
WRITTEN = re.compile(
    rf"([a-z]+\d?)(?:-(\d{{1,9}}))?(?:-eta{NUMBER})?(?:-w{NUMBER})?(-clip)?(-bf16)?"
)
LARGEST_GUIDANCE = 20.0

# The origin of x_T: noise alone, a distribution fitted to the training images, means drawn from a
# uniform distribution, or degraded test images, which the sampler restores.
Source = Literal["noise", "prior", "uniform means", "test images"]


@dataclass(frozen=True)
class Method:
    """A sampler as its process declares it: where it starts, and the settings that it takes."""

    title: str
    source: Source
    steps: int | None = None  # the usual number of network evaluations; None: T
    any_steps: bool = False  # whether another number can be chosen
    largest_eta: float = 0  # of fresh noise; 0: the sampler is deterministic
    guidance: bool = False  # whether a network that knows labels can be guided by them
    clip: bool = False


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler with its settings, written `ddim-50-clip`, `ancestral`, `algorithm2`.

    With `clip` each prediction of x0 is brought into the images' range, which keeps a network of
    little training from running away. With `bf16` the network computes in bfloat16, about twice as
    fast; the sampler's own arithmetic stays in float32. The name says so, and with it each figure.
    """

    name: str
    steps: int
    method: Method = field(repr=False)
    eta: float = 0.0
    guidance: float = 0.0
    clip: bool = False
    bf16: bool = False

    def __str__(self) -> str:
        text = f"{self.name}-{self.steps}" if self.method.any_steps else self.name
        text += f"-eta{self.eta:g}" if self.eta else ""
        text += f"-w{self.guidance:g}" if self.guidance else ""
        text += "-clip" if self.clip else ""
        return f"{text}-bf16" if self.bf16 else text

    @property
    def family(self) -> str:
        """All but the number of steps, where that can be chosen: `ddim-clip`."""
        steps = f"-{self.steps}" if self.method.any_steps else ""
        return str(self).replace(steps, "", 1)

    @property
    def network_calls(self) -> int:
        """Evaluations of the network for one image: guidance takes two at each step."""
        return self.steps * (2 if self.guidance else 1)

    @property
    def title(self) -> str:
        """For a picture's heading: `Algorithm 2`, `DDIM, 50 steps, eta 1, clipped`."""
        text = self.method.title
        text += f", {self.steps} steps" if self.method.any_steps else ""
        text += f", eta {self.eta:g}" if self.eta else ""
        text += f", guidance {self.guidance:g}" if self.guidance else ""
        text += ", clipped" if self.clip else ""
        return f"{text}, in bf16" if self.bf16 else text

    @property
    def is_conditional(self) -> bool:
        """True of a sampler that restores degraded test images."""
        return self.method.source == "test images"

    @property
    def draws_means(self) -> bool:
        """True of a sampler that starts from drawn means of pixels."""
        return self.method.source in ("prior", "uniform means")

    @classmethod
    def parse(
        cls,
        text: str,
        process: ProcessConfig,
        *,
        steps: int | None = None,
        eta: float | None = None,
    ) -> SamplerSpec:
        """`ddim-50` or `ddim` with `steps` beside it.

        Raises UserError: unknown, not for this process, more steps than T, or two that disagree.
        """
        methods = process.samplers
        found = WRITTEN.fullmatch(text)
        if not found or found[1] not in methods:
            raise UserError(
                f"sampler {text!r}: for {process.title} the samplers are"
                f" {', '.join(methods)}{_example(process)}"
            )
        name, clip = found[1], found[5] is not None
        guidance = float(found[4] or 0)
        method = methods[name]
        chosen = steps if found[2] is None else int(found[2])
        chosen_eta = eta if found[3] is None else float(found[3])
        if steps not in (None, chosen) or eta not in (None, chosen_eta):
            raise UserError(f"sampler {text}: other steps or another eta stand beside it")
        eta = chosen_eta or 0.0
        if eta and not method.largest_eta:
            fitting = " and ".join(n for n, m in methods.items() if m.largest_eta)
            raise UserError(f"eta is for {fitting or 'other processes'}, not for {name}")
        if guidance and not method.guidance:
            fitting = " and ".join(n for n, m in methods.items() if m.guidance)
            raise UserError(f"guidance is for {fitting or 'other processes'}, not for {name}")
        if guidance > LARGEST_GUIDANCE:
            raise UserError(f"guidance must be at most {LARGEST_GUIDANCE:g}, not {guidance:g}")
        usual = process.T if method.steps is None else min(method.steps, process.T)
        if not method.any_steps and chosen not in (None, usual):
            raise UserError(f"sampler {name} takes {usual} steps here, not {chosen}")
        if clip and not method.clip:
            fitting = " and ".join(n for n, m in methods.items() if m.clip)
            raise UserError(f"clip is for {fitting or 'other processes'}, not for {name}")
        chosen = usual if chosen is None else chosen
        if not 1 <= chosen <= process.T:
            raise UserError(
                f"sampler {name}: steps must be from 1 to T = {process.T}, not {chosen}"
            )
        if not 0 <= eta <= method.largest_eta:
            raise UserError(
                f"sampler {name}: eta must be from 0 (deterministic) to {method.largest_eta:g},"
                f" not {eta}"
            )
        return cls(name, chosen, method, eta, guidance, clip, bf16=found[6] is not None)


def _example(process: ProcessConfig) -> str:
    """How settings are written, where a sampler of the process takes any."""
    for name, method in process.samplers.items():
        if method.any_steps:
            settings = ("-eta0.5" if method.largest_eta else "") + ("-clip" if method.clip else "")
            return f" (with settings as in {name}-{method.steps}{settings}-bf16)"
    return ""
