from __future__ import annotations

import hashlib
import json
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor

from csg_ray.config.errors import UserError
from csg_ray.config.run import ModelConfig
from csg_ray.models import encoders
from csg_ray.models.encoders import build_encoder
from csg_ray.models.resnet import Norm, build_resnet


def _save(state: object, path: Path) -> str:
    torch.save(state, path)  # noqa: TID251 - a file as a user brings it
    return str(path)


def _assert_filled(filled: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert filled.keys() == expected.keys()
    for name, tensor in expected.items():
        assert filled[name].dtype == build_resnet("mini").state_dict()[name].dtype
        assert filled[name].equal(tensor.to(filled[name].dtype)), name


def test_a_float16_file_fills_a_float32_encoder(tmp_path: Path) -> None:
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in build_resnet("mini").state_dict().items()
    }
    path = _save(state, tmp_path / "own.pt")
    encoder = build_encoder(ModelConfig(weights=path))
    _assert_filled(encoder.state_dict(), state)


def test_a_file_brings_the_width_of_its_classifier(tmp_path: Path) -> None:
    state = build_resnet("mini", num_classes=3).state_dict()
    encoder = build_encoder(ModelConfig(weights=_save(state, tmp_path / "own.pt")))
    _assert_filled(encoder.state_dict(), state)
    assert encoder.pretraining_logits(torch.zeros(2, 128, 4, 4)).shape == (2, 3)
    assert not any(param.requires_grad for param in encoder.fc.parameters())
    # A bias of another width than the matrix, and a classifier of no map, still fit nothing.
    for change in ({"fc.bias": torch.zeros(10)}, {"fc.weight": torch.zeros(3, 64)}):
        path = _save({**state, **change}, tmp_path / "broken.pt")
        with pytest.raises(UserError, match=f"'{next(iter(change))}' is"):
            build_encoder(ModelConfig(weights=path))
    path = _save({**state, "fc.weight": torch.zeros(())}, tmp_path / "broken.pt")
    with pytest.raises(UserError, match=r"'fc.weight' is \(\) there"):
        build_encoder(ModelConfig(weights=path))


def test_none_draws_from_the_global_generator() -> None:
    def first_weight(seed: int) -> Tensor:
        torch.manual_seed(seed)
        weight: Tensor = build_encoder(ModelConfig(weights="none")).state_dict()["conv1.weight"]
        return weight

    assert first_weight(1).equal(first_weight(1))
    assert not first_weight(1).equal(first_weight(2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer3.0.conv1.weight": torch.zeros(2)}, r"'layer3.0.conv1.weight' is \(2,\) there"),
        ({"layer3.0.conv1.weight": None}, "'layer3.0.conv1.weight' is missing"),
        ({"layer9.weight": torch.zeros(2)}, "'layer9.weight' has no place"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(
    tmp_path: Path, change: dict[str, Tensor | None], said: str
) -> None:
    state = {**build_resnet("mini").state_dict(), **change}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    path = _save(state, tmp_path / "own.pt")
    with pytest.raises(UserError, match=said):
        build_encoder(ModelConfig(weights=path))


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = _save(build_resnet("mini").state_dict(), tmp_path / "mini.pt")
    with pytest.raises(UserError, match=r"resnet18.*'conv1.weight' is \(16, 3, 3, 3\)"):
        build_encoder(ModelConfig(name="resnet18", weights=path))


def test_files_without_batch_counts_load(tmp_path: Path) -> None:
    state = build_resnet("mini").state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.endswith("tracked")}
    encoder = build_encoder(ModelConfig(weights=_save(state, tmp_path / "old.pt")))
    assert encoder.state_dict()["fc.bias"].equal(state["fc.bias"])


def test_what_is_no_weight_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.pt"
    with pytest.raises(UserError, match=r"own\.pt does not exist"):
        build_encoder(ModelConfig(weights=str(path)))
    path.write_text("hello")
    with pytest.raises(UserError, match="not a readable weight file"):
        build_encoder(ModelConfig(weights=str(path)))
    _save({"model": build_resnet("mini").state_dict()}, path)
    with pytest.raises(UserError, match="flat state dict"):
        build_encoder(ModelConfig(weights=str(path)))


def test_a_missing_bundled_variant_says_how_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"pretrain_mini\.py.*--norm ibn_b.*mini_ibn_b\.pt"):
        build_encoder(ModelConfig(norm="ibn_b"))
    state = build_resnet("mini", "ibn_b").state_dict()
    _save(state, tmp_path / "mini_ibn_b.pt")
    filled = build_encoder(ModelConfig(norm="ibn_b")).state_dict()
    assert filled["bn1.weight"].equal(state["bn1.weight"])


def test_imagenet_weights_come_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    state = build_resnet("resnet18").state_dict()
    _save(state, tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    filled = build_encoder(ModelConfig(name="resnet18", weights="imagenet")).state_dict()
    assert filled["layer4.1.conv2.weight"].equal(state["layer4.1.conv2.weight"])


def test_the_same_weights_fill_the_dilated_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    state = build_resnet("resnet50").state_dict()
    _save(state, tmp_path / "checkpoints" / "resnet50-0676ba61.pth")
    encoder = build_encoder(ModelConfig(name="resnet50", weights="imagenet"), output_stride=8)
    assert all(tensor.equal(state[name]) for name, tensor in encoder.state_dict().items())
    drawn = build_encoder(ModelConfig(name="resnet50", weights="none"), output_stride=8)
    for dilated in (encoder, drawn):
        assert dilated.eval()(torch.zeros(1, 3, 32, 32))[4].shape == (1, 2048, 4, 4)


def test_no_network_names_the_file_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError, match=r"put the file resnet50-0676ba61\.pth into") as caught:
        build_encoder(ModelConfig(name="resnet50", weights="imagenet"))
    assert str(tmp_path / "checkpoints") in str(caught.value)


def test_imagenet_has_no_ibn_weights() -> None:
    config = ModelConfig(name="resnet18", weights="imagenet", norm="ibn_a")
    with pytest.raises(UserError, match=r"ibn_a.*path of a file"):
        build_encoder(config)


@pytest.mark.parametrize("norm", ["batch", "ibn_a", "ibn_b"])
def test_a_bundled_file_is_the_one_that_its_description_describes(norm: Norm) -> None:
    path = encoders.WEIGHTS_FOLDER / encoders.BUNDLED_FILES[norm]
    described = json.loads(path.with_suffix(".json").read_text())
    content = path.read_bytes()
    assert len(content) <= 1.5e6
    assert hashlib.sha256(content).hexdigest() == described["file_sha256"]
    encoder = build_encoder(ModelConfig(norm=norm))
    count = sum(param.numel() for param in encoder.parameters())
    assert (count, norm) == (described["parameters"], described["norm"])
    assert all(tensor.isfinite().all() for tensor in encoder.state_dict().values())
