"""Another process is a file, its settings, and the two places that name them."""

from __future__ import annotations

import filecmp
from pathlib import Path

import h5py
import pytest
import torch

from diffuse.config.processes import AnyProcess, AveragingConfig, DdpmConfig
from diffuse.config.schema import CnnConfig, Config
from diffuse.models import build_process
from diffuse.models.process import timestep
from tests import programs
from tests.programs import TINY

SETTINGS = '''
class GreyConfig(ProcessConfig):
    """Images fade to their mean grey."""

    title = "fading"
    samplers: ClassVar = {
        "restore": Method("Restored", "test images"),
        "invent": Method("Invented", "prior"),
    }
    evaluated: ClassVar = ("restore", "invent")
    pictured: ClassVar = ("restore",)
    kind: Literal["grey"]
    steps: int = 6

    @property
    def T(self) -> int:
        return self.steps


'''

PROCESS = '''
"""Images fade to their mean grey."""

import torch

from diffuse.models.process import per_example_loss, predict, timestep


class Grey:
    def __init__(self, T):
        self.T = T

    def to(self, device):
        return self

    def draw(self, n, generator):
        t = torch.randint(1, self.T + 1, (n,), generator=generator, device=generator.device)
        return t, torch.empty(n, 0, device=generator.device)

    def degrade(self, x0, t, eps=None):
        grey = x0.mean((2, 3), keepdim=True).expand_as(x0)
        return torch.lerp(x0, grey, (t / self.T)[:, None, None, None])

    def losses(self, network, x0, t, eps):
        return per_example_loss("mse", network(self.degrade(x0, t), t / self.T), x0)

    def estimate(self, network, x, t):
        return predict(network, self, x, t)

    def summary(self, x0):
        return x0.mean((2, 3))[..., None]

    def fully_degraded(self, summary, eps):
        return summary[..., None].expand_as(eps)

    def sample(self, name, network, x, sampling):
        for s in range(self.T, 0, -1):
            x0_hat = self.estimate(network, x, s)
            x = self.degrade(x0_hat, timestep(x, s - 1))
            sampling.on_step(self.T - s + 1, self.T)
        return x

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass
'''

CASE = """        case GreyConfig() as settings:
            return Grey(settings.T)
"""

PRESET = """
process: {kind: grey}
model: {kind: cnn}
train: {epochs: 2}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's code with one more process, by no other edits than these."""
    project = programs.copy_project(tmp_path_factory.mktemp("project"))
    (project / "diffuse/models/grey.py").write_text(PROCESS)
    settings = project / "diffuse/config/processes.py"
    build = project / "diffuse/models/__init__.py"
    insert(settings, before="AnyProcess = ", text=SETTINGS)
    insert(settings, before=', Field(discriminator="kind")]', text=" | GreyConfig")
    insert(build, before="\n\ndef build(", text="from diffuse.config.processes import GreyConfig\n")
    insert(build, before="\n\ndef build(", text="from diffuse.models.grey import Grey\n")
    build.write_text(build.read_text() + CASE)
    (project / "grey.yaml").write_text(PRESET)
    return project


def changed_files(project: Path) -> set[str]:
    """The files of diffuse/ that differ from ours, or that we have not."""
    tree = filecmp.dircmp(programs.ROOT / "diffuse", project / "diffuse", ignore=["__pycache__"])
    folders = {".": tree, **tree.subdirs}
    return {
        f"{name}/{file}"
        for name, folder in folders.items()
        for file in (*folder.diff_files, *folder.right_only)
    }


def insert(path: Path, before: str, text: str) -> None:
    code = path.read_text()
    assert code.count(before) == 1, (path, before)
    path.write_text(code.replace(before, text + before))


def test_another_process_trains_samples_and_is_evaluated_with_no_other_file_touched(
    project: Path, tmp_path: Path, data_dir: Path
) -> None:
    assert changed_files(project) == {"config/processes.py", "models/__init__.py", "models/grey.py"}

    def run(program: str, *arguments: str | Path) -> str:
        done = programs.run(program, *arguments, f"--data-dir={data_dir}", cwd=project)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("diffuse.train", "--preset=grey.yaml", *TINY, f"--runs-dir={tmp_path}")
    trained = programs.only_run(tmp_path)
    assert trained.name.startswith("grey-")
    first, second = (event["loss"] for event in trained.metrics("epoch"))
    assert second < first
    with h5py.File(trained.samples / "epoch_0002.h5") as file:
        assert {"images", "original", "degraded"} <= set(file)
        assert file.attrs["sampler"] == "restore"
    assert (trained.plots / "degradation.png").exists()

    files = run("diffuse.sample", trained.path, "--sampler=invent", "-n", "4").split()
    with h5py.File(files[1]) as file:
        assert file["images"].shape == (4, 28, 28)
    run("diffuse.evaluate", trained.path, "-n", "20")
    figures = programs.read_json(trained.evaluations / "epoch_0002.json")["figures"]
    assert {f["protocol"]["sampler"]: f["protocol"]["source"] for f in figures} == {
        "restore": "test images",
        "invent": "prior",
    }


def test_another_process_is_named_in_messages(project: Path, data_dir: Path) -> None:
    for preset, setting, message in (
        ("grey.yaml", "eval.samplers=ddim", "for fading the samplers are restore, invent"),
        ("grey.yaml", "process.kind=gray", "must be one of ddpm, averaging, grey"),
        ("grey.yaml", "process.colour=1", "process.colour: unknown key; allowed: kind, steps"),
    ):
        done = programs.run(
            "diffuse.train", f"--preset={preset}", f"--set={setting}", "--where", cwd=project
        )
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        (DdpmConfig(kind="ddpm"), 0.03),  # sqrt(alpha_bar_T) is 0.006: nearly nothing of x0
        (AveragingConfig(kind="averaging", orientation="row"), 1e-6),
        (AveragingConfig(kind="averaging", orientation="col", group=7), 1e-6),
    ],
    ids=["ddpm", "rows", "groups of columns"],
)
def test_the_summary_is_all_that_x_T_holds_of_an_image(
    settings: AnyProcess, tolerance: float
) -> None:
    process = build_process(Config(preset="", process=settings, model=CnnConfig(kind="cnn")))
    x0, eps = torch.rand(5, 1, 28, 28) - 0.5, torch.randn(5, 1, 28, 28)
    x_T = process.fully_degraded(process.summary(x0), eps)
    degraded = process.degrade(x0, timestep(x0, process.T), eps)
    torch.testing.assert_close(x_T, degraded, rtol=0, atol=tolerance)
