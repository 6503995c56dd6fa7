"""A small MNIST classifier whose features and class probabilities FID and IS are computed from.

Inception's features mean little for digits, and its weights must be fetched; these are in the
repository. To make them again: `python -m diffuse.evaluation.classifier --output FILE`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from diffuse import ROOT
from diffuse.data.tensors import load_split
from diffuse.models.ema import MovingAverage, warmed_up
from diffuse.rundir.checkpoints import load_plain
from diffuse.runtime import errors, files, options
from diffuse.runtime.console import Meter
from diffuse.runtime.errors import UserError
from diffuse.runtime.rng import Stream, derive_seed, generator

WEIGHTS = ROOT / "diffuse" / "weights" / "mnist_classifier.pt"
WEIGHTS_SHA256 = "750a0b4847e90b10296a87d17c953c4375c0bd2f20989e001030a0392bc44e74"
FEATURES = 128
app = typer.Typer(add_completion=False, rich_markup_mode=None)


class Classifier(nn.Module):
    """Images [B, 1, 28, 28] in [0, 1] to logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()

        def block(i: int, o: int) -> list[nn.Module]:
            return [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]

        self.body = nn.Sequential(
            *block(1, 24),
            *block(24, 24),
            nn.MaxPool2d(2),  # [B, 24, 14, 14]
            *block(24, 48),
            *block(48, 48),
            nn.MaxPool2d(2),  # [B, 48, 7, 7]
            *block(48, 64),
            nn.MaxPool2d(2),  # [B, 64, 3, 3]
            nn.Flatten(),
            nn.Linear(64 * 3 * 3, FEATURES),
        )
        self.head = nn.Linear(FEATURES, 10)

    def features(self, x: Tensor) -> Tensor:
        """[B, 128], not negative."""
        return F.relu(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.features(x), 0.3, self.training))  # type: ignore[no-any-return]


def load_classifier(path: Path | None = None) -> Classifier:
    """The classifier with the repository's weights, or those of `path`; for evaluation.

    Raises UserError where the file is missing, or the repository's is not the expected one.
    """
    if path is None:
        path = WEIGHTS
        if not path.is_file() or files.sha256(path) != WEIGHTS_SHA256:
            raise UserError(f"{path}: missing or damaged; restore it (git checkout -- {path.name})")
    network = Classifier()
    try:
        network.load_state_dict(load_plain(path))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not this classifier's weights: {str(error)[:80]}") from None
    return network.eval()


def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of uint8 images [N, 28, 28] that are classified right."""
    with torch.inference_mode():
        parts = zip(torch.split(images, 1000), torch.split(labels, 1000), strict=True)
        right = sum(int((network(x[:, None] / 255).argmax(1) == y).sum()) for x, y in parts)
    return right / len(images)


def train_classifier(
    data_dir: Path, epochs: int, seed: int = 0, batch: int = 128, limit: int | None = None
) -> Classifier:
    """Train on the training set with small shifts, turns and scalings, one cycle, averaged."""
    split = load_split(data_dir, "train", limit)
    torch.manual_seed(derive_seed(seed, Stream.INIT))
    network = Classifier()
    average = MovingAverage(network, warmed_up(0.998))
    steps = len(split.images) // batch
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=5e-3, total_steps=epochs * steps, pct_start=0.2
    )
    with Meter("classifier", epochs * steps) as meter:
        for epoch in range(1, epochs + 1):
            order = torch.randperm(
                len(split.images), generator=generator(seed, Stream.DATA_ORDER, epoch)
            )
            for k in range(steps):
                index = order[k * batch : (k + 1) * batch]
                x = augment(split.images[index, None] / 255)
                loss = F.cross_entropy(network(x), split.labels[index])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                average.update_parameters(network)
                meter.update((epoch - 1) * steps + k + 1, f"loss {float(loss.detach()):.3f}")
    # the averaged weights with running statistics of their own
    averaged = average.module
    assert isinstance(averaged, Classifier)
    torch.optim.swa_utils.update_bn(
        (part[:, None] / 255 for part in torch.split(split.images, 1000)), averaged
    )
    return averaged.eval()


def augment(x: Tensor) -> Tensor:
    """Each image [B, 1, 28, 28] turned by up to 10 degrees, scaled by 10 %, shifted by 2 pixels."""
    n = len(x)
    angle = (torch.rand(n) - 0.5) * 0.35
    scale = 1 + (torch.rand(n) - 0.5) * 0.2
    shift = (torch.rand(n, 2) - 0.5) * (4 * 2 / 28)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1)
    grid = F.affine_grid(rows.reshape(n, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


@app.command()
def main(
    output: Annotated[Path, options.output_file("File of weights (.pt) to write.")],
    data_dir: options.DataDir = options.DATA,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs to train.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and order.")] = 0,
) -> None:
    """Train the classifier and write its weights."""
    network = train_classifier(data_dir, epochs, seed)
    with files.buffered(output) as buffer:
        torch.save(network.state_dict(), buffer)
    test = load_split(data_dir, "test")
    print(f"{output}: test accuracy {accuracy(network, test.images, test.labels):.2%}")
    print(f"SHA-256 {files.sha256(output)}")


if __name__ == "__main__":
    errors.run(app)
