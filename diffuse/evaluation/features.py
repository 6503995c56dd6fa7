"""Images as a network sees them: features for FID and KID, class logits for IS.

Both networks take uint8 images. `classifier` is the project's own and always there; `inception` is
the network that the literature's figures use, whose weights `python -m diffuse.prepare --inception`
stages.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffuse.data.staging import INCEPTION
from diffuse.evaluation import classifier
from diffuse.rundir.checkpoints import load_plain
from diffuse.runtime import files
from diffuse.runtime.errors import EnvironmentFailed, UserError


@dataclass(frozen=True)
class Extractor:
    """A network, frozen and known by the hash of its weights."""

    name: str
    sha256: str
    size: int  # of a feature vector
    resize: str | None
    network: Callable[[Tensor], tuple[Tensor, Tensor]]
    device: torch.device

    def __call__(self, images: Tensor, batch: int = 250) -> tuple[Tensor, Tensor]:
        """Features [N, size] and logits [N, classes] of uint8 images [N, 28, 28], on the CPU."""
        if images.dtype != torch.uint8 or images.ndim != 3:
            raise UserError(f"images are {images.dtype} {list(images.shape)}, not uint8 [N, H, W]")
        with torch.inference_mode():
            parts = [self.network(part.to(self.device)) for part in torch.split(images, batch)]
        features, logits = zip(*parts, strict=True)
        return torch.cat(features).float().cpu(), torch.cat(logits).float().cpu()


def load_extractor(name: str, data_dir: Path, device: torch.device) -> Extractor:
    """The extractor called `classifier` or `inception`.

    Raises UserError where its weights are missing, damaged or others.
    """
    if name == "classifier":
        return _classifier(device)
    if name == "inception":
        return load_inception(data_dir / INCEPTION, device)
    raise UserError(f"extractor {name!r}: allowed are classifier, inception")


def _classifier(device: torch.device) -> Extractor:
    network = classifier.load_classifier().to(device)

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        features = network.features(images[:, None] / 255)
        return features, network.head(features)

    sha256, size = classifier.WEIGHTS_SHA256, classifier.FEATURES
    return Extractor("classifier", sha256, size, None, run, device)


def load_inception(path: Path, device: torch.device) -> Extractor:
    """The extractor of these weights; UserError where they are missing or something else."""
    if not path.is_file():
        raise UserError(
            f"{path}: not there; stage Inception's weights where there is a network:"
            f" python -m diffuse.prepare --inception --data-dir {path.parent}"
        )
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise EnvironmentFailed(
            "torch-fidelity is not installed; it is part of pip install '.[train]'"
        ) from None
    # torch-fidelity would unpickle the file freely: it gets a copy that holds plain tensors only.
    plain = io.BytesIO()
    torch.save(load_plain(path), plain)
    plain.seek(0)
    outputs = ["2048", "logits_unbiased"]
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", outputs, feature_extractor_weights_path=plain
        )
    except (RuntimeError, TypeError, AttributeError):
        raise UserError(f"{path}: not the weights of torch-fidelity's Inception network") from None
    network.to(device).eval()

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = network(images[:, None].expand(-1, 3, -1, -1).contiguous())
        return features, logits

    return Extractor("inception", files.sha256(path), 2048, "299 x 299, bilinear", run, device)
