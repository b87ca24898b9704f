from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from csg_ray.config.run import ModelConfig
from csg_ray.models.encoders import build_encoder

SCRIPT = Path(__file__).parents[1] / "scripts" / "pretrain_mini.py"


def _fill_folder(folder: Path, classes: int, images: int) -> None:
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for number in range(classes):
            target = folder / part / f"class{number:02d}"
            target.mkdir(parents=True)
            for image in range(images):
                pixels = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(target / f"{image}.png")


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["pretrain_mini.py", *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.mark.parametrize("classes", [2, 12])
def test_a_folder_of_any_number_of_classes_becomes_an_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    _fill_folder(tmp_path / "photographs", classes, images=24 // classes)
    out = tmp_path / "own.pt"
    _run(
        monkeypatch,
        *("--folder", str(tmp_path / "photographs"), "--data-name", "noise"),
        *("--epochs", "2", "--batch-size", "8", "--out", str(out)),
    )

    described = json.loads(out.with_suffix(".json").read_text())
    assert (described["images"], described["data"]) == (24, "noise")
    assert 0 <= described["test_accuracy"] <= 1
    encoder = build_encoder(ModelConfig(weights=str(out)))
    assert encoder.pretraining_logits(torch.zeros(1, 128, 4, 4)).shape == (1, classes)
    assert described["parameters"] == sum(param.numel() for param in encoder.parameters())
