"""Settings: precedence, signatures, and messages that name place, key and allowed values."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from diffuse.config.presets import CONFIGS, load_config, parse_set, read_config
from diffuse.config.validation import Layer
from diffuse.runtime.errors import UserError
from tests import programs

PRESETS = sorted(
    f"{folder}/{path.stem}"
    for folder in ("ddpm", "cold")
    for path in (CONFIGS / folder).glob("*.yaml")
)
ROW = parse_set(["process.orientation=row"])


def of(preset: str, *assignments: str) -> object:
    layers = [ROW] if preset.startswith("cold/") else []
    return load_config(preset, [*layers, parse_set(assignments)])


# T, learning rate, channels, activation, epochs: the report's tables and its published code
REPORT = {
    "ddpm/default": (1000, 2e-4, (16, 32, 32, 16), "gelu", 100),
    "ddpm/light": (1000, 2e-4, (16, 64, 16), "gelu", 100),
    "ddpm/more_capacity": (1000, 2e-4, (64, 128, 256, 128, 64), "gelu", 100),
    "ddpm/testing": (100, 6e-4, (16, 32, 32, 16), "selu", 100),
    "ddpm/testing2": (1500, 4e-4, (16, 32, 32, 16), "gelu", 100),
    "cold/default_7": (7, 2e-4, (16, 32, 32, 16), "gelu", 80),
    "cold/default_28": (28, 2e-4, (16, 32, 32, 16), "gelu", 80),
    "cold/more_capacity": (7, 2e-4, (64, 128, 256, 128, 64), "gelu", 80),
}


@pytest.mark.parametrize("preset", REPORT)
def test_the_presets_of_the_report_are_the_reports(preset: str) -> None:
    config = load_config(preset, [ROW] if preset.startswith("cold/") else [])
    assert REPORT[preset] == (
        config.process.T,
        config.train.lr,
        config.model.channels,
        getattr(config.model, "activation", None),
        config.train.epochs,
    )
    assert (config.seed, config.train.global_batch, config.data.amplitude) == (75016, 128, 0.5)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_document_and_resolves(preset: str) -> None:
    text = (CONFIGS / f"{preset}.yaml").read_text()
    assert text.startswith("#")
    assert f"python -m diffuse.train --preset {preset}" in text
    assert "Expected" in text
    of(preset)


def test_later_layers_win_key_by_key() -> None:
    config = load_config(
        "ddpm/default",
        [
            Layer("cell", {"train": {"lr": 1e-3, "epochs": 7}}),
            parse_set(["train.lr=4e-4", "model.channels=8,16"]),
        ],
    )
    assert config.train.lr == 4e-4
    assert config.train.epochs == 7
    assert config.train.global_batch == 128
    assert config.model.channels == (8, 16)


def test_the_signature_knows_the_weights_and_nothing_else() -> None:
    base = load_config("ddpm/default").signature
    same = ("train.epochs=5", "eval.images=20", "system.threads=3", "checkpoint.keep=all")
    other = ("seed=1", "train.lr=3e-4", "data.limit=1000", "process.loss=l1", "train.amp=fp32")
    for assignment in same:
        assert load_config("ddpm/default", [parse_set([assignment])]).signature == base
    signatures = {load_config("ddpm/default", [parse_set([a])]).signature for a in other}
    assert len(signatures | {base}) == len(other) + 1


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("1.5", "--set: train.ema: input should be less than 1, not 1.5"),
        ("{gamma: -1}", "--set: train.ema.gamma: input should be greater than 0, not -1"),
        ("{decay: 1}", "--set: train.ema.decay: unknown key; allowed: gamma"),
    ],
)
def test_an_average_is_a_decay_or_a_gamma(value: str, wanted: str) -> None:
    with pytest.raises(UserError) as error:
        load_config("ddpm/unet", [parse_set([f"train.ema={value}"])])
    assert wanted in str(error.value)


def test_a_default_spelled_out_does_not_change_the_signature() -> None:
    assert (
        load_config("ddpm/default", [parse_set(["train.accumulate=1"])]).signature
        == load_config("ddpm/default").signature
    )


def test_a_written_config_reads_back_as_the_same_run(tmp_path: Path) -> None:
    for preset in PRESETS:
        config = load_config(preset, [ROW] if preset.startswith("cold/") else [])
        path = tmp_path / "config.yaml"
        path.write_text(config.to_yaml())
        assert read_config(path) == config


def test_a_preset_named_by_its_file_is_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS)
    for text in ("ddpm/unet.yaml", str(CONFIGS / "ddpm/unet.yaml"), "../configs/ddpm/unet.yaml"):
        assert load_config(text) == load_config("ddpm/unet")


def test_run_names_are_safe_file_names(tmp_path: Path) -> None:
    odd = tmp_path / "-a b'$(touch x)\n.yaml"
    odd.write_text((CONFIGS / "ddpm/default.yaml").read_text())
    name = load_config(str(odd)).run_name
    assert name.replace("-", "").isalnum(), name
    assert not name.startswith("-")


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("process.timestep=4", "--set: process.timestep: unknown key; allowed: kind, timesteps"),
        ("nothing=4", "--set: nothing: unknown key; allowed: preset, seed"),
        ("train.lr=fast", "--set: train.lr: input should be a valid number"),
        ("train.lr=.nan", "train.lr: input should be a finite number"),
        ("train.epochs=0", "train.epochs: input should be greater than or equal to 1"),
        ("process.kind=warm", "process.kind: must be one of ddpm, averaging"),
        ("model.kind=mlp", "model.kind: must be one of cnn, unet"),
        ("process.beta_1=0.5", "beta_1 (0.5) must not exceed beta_2"),
        ("data.limit=100", "train.global_batch (128) is more than the training images (100;"),
        ("train.global_batch=60001", "is more than the training images (60000;"),
        ("process.timesteps=20000", "with timesteps = 20000 and beta_2 = 0.02 nothing of an image"),
        ("process.beta_1=0", "process.beta_1: input should be greater than or equal to 0.000001"),
        ("process.beta_2=0.99999999", "process.beta_2: input should be less than or equal to 0.99"),
        ("system.threads=1000000", "system.threads: input should be less than or equal to 1024"),
        ("eval.extractor=vgg", "'classifier' or 'inception'"),
        ("eval.images=5", "eval.images: 5 images are too few"),
        ("eval.in_training=25", "eval.in_training: 25 images do not make 10 equal splits"),
        (
            "eval.samplers=foo",
            "--set: eval.samplers: sampler 'foo': for DDPM the samplers are ancestral",
        ),
        ("eval.samplers=ddim-50,direct", "eval.samplers: sampler 'direct': for DDPM"),
        ("eval.samplers=ddim-2000", "steps must be from 1 to T = 1000"),
        ("train=3", "train: input should be"),
        ("=3", "write KEY=VALUE"),
        ("model.channels=16,0", "--set: model.channels[1]: input should be greater than or equal"),
        ("model.kind=unet", "--set: model.kind: does not go with configs/ddpm/default.yaml, which"),
    ],
)
def test_a_wrong_setting_is_explained_in_one_line(assignment: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        of("ddpm/default", assignment)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("process: [", "not readable as YAML"),
        ("- 1\n- 2", "must be a YAML mapping"),
        ("a: !!python/object/apply:os.mkdir [made]", "not readable as YAML"),
        ("process: {kind: ddpm}", "model: missing"),
    ],
)
def test_a_wrong_preset_file_is_explained_and_constructs_nothing(
    content: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(content)
    with pytest.raises(UserError, match=r"p\.yaml") as caught:
        load_config("p.yaml")
    assert said in str(caught.value)
    assert not Path("made").exists()


def test_yaml_floats_without_a_point_are_numbers() -> None:
    assert isinstance(yaml.safe_load("3e-4"), str), "then the workaround may go"
    assert load_config("ddpm/default", [parse_set(["train.lr=3e-4"])]).train.lr == 3e-4


def test_pictures_are_drawn_by_the_samplers_and_steps_of_the_settings() -> None:
    def specs(preset: str, *settings: str) -> list[str]:
        return [str(s) for s in load_config(preset, [parse_set([*settings])]).picture_specs()]

    assert specs("ddpm/default") == ["ddim-50-eta1-clip"]
    assert specs("ddpm/unet") == ["dpm-50-eta3-clip"]
    assert specs("ddpm/unet", "samples.steps=5") == ["dpm-5-eta3-clip"]
    assert specs("ddpm/testing", "samples.steps=500") == ["ddim-100-eta1-clip"]
    assert specs("ddpm/default", "samples.samplers=ancestral,dpm-9") == ["ancestral", "dpm-9"]
    assert specs("cold/unet", "process.orientation=row", "samples.steps=5") == ["direct", "renoise"]


def test_show_config_prints_every_setting_with_its_place_and_needs_no_torch(tmp_path: Path) -> None:
    arguments = ["--preset=cold/unet", "--orientation=row", "--epochs=9", "--set=train.lr=4e-4"]
    arguments += ["--set=model.channels=8,16", "--set=train.ema={gamma: 5}", "--show-config"]
    code = f"""
import runpy, sys
sys.argv = ["train", *{arguments!r}]
try:
    runpy.run_module("diffuse.train", run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
assert not {{"torch", "h5py", "numpy"}} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=programs.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    layers = [parse_set(["process.orientation=row", "train.epochs=9", "train.lr=4e-4"])]
    layers.append(parse_set(["model.channels=8,16", "train.ema={gamma: 5}"]))
    (tmp_path / "config.yaml").write_text(done.stdout)
    assert read_config(tmp_path / "config.yaml") == load_config("cold/unet", layers)
    lines = [line for line in done.stdout.splitlines() if "#" in line]
    places = {line.split(":")[0].strip(): line.partition("  # ")[2] for line in lines}
    assert (places["lr"], places["gamma"], places["channels"]) == ("--set",) * 3
    assert (places["epochs"], places["orientation"]) == ("--epochs", "--orientation")
    assert places["global_batch"].endswith("configs/cold/unet.yaml")
    assert places["deterministic"] == "default"
