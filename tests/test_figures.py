"""What models are seen to do, the drawings of it, and `csg-ray figures`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from PIL import Image

from csg_ray.cli import main
from csg_ray.config.data import DataConfig
from csg_ray.config.reader import dump_yaml
from csg_ray.data.load import load_splits
from csg_ray.data.splits import ArraySceneSplit, ArraySplit, DomainSplits
from csg_ray.data.transforms import denormalise, normalise
from csg_ray.results.figures import make
from csg_ray.results.figures.densities import MAX_POINTS, draw_features
from csg_ray.results.figures.images import choose_images
from csg_ray.results.figures.make import Observed, draw, observe_models
from csg_ray.results.figures.models import find_models
from csg_ray.results.figures.observe import ModelName, Observation
from csg_ray.results.figures.panels import class_colours, paint
from csg_ray.results.figures.sphere import Projection
from csg_ray.results.figures.style import figure_style
from csg_ray.storage.checkpoint import load_checkpoint
from csg_ray.training.evaluate import load_trained
from made_data import make_image_folder, refusal
from written_model import SCENES, small_config, write_model

Capture = pytest.CaptureFixture[str]
# Several networks run over a split, and figures are drawn: seconds each, more on a busy machine.
pytestmark = pytest.mark.timeout(60)


def few(config: DataConfig) -> DomainSplits:
    """The splits of a task made here, with 40 images in target_val, and no way to target_test."""
    splits = load_splits(config)
    target = splits.target_val
    if isinstance(target, ArraySplit):
        target = replace(target, images=target.images[:40], labels=target.labels[:40])
    return replace(splits, target_val=target, target_test=None)


@pytest.fixture
def small_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "load_splits", few)


def look(*places: object, num_images: int = 4) -> Observed:
    return observe_models(find_models([str(each) for each in places]), num_images, lambda _: None)


def command(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    code = main(["figures", *map(str, arguments)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def pictures(figure: Figure) -> list[NDArray[Any]]:
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.images]


def texts(figure: Figure) -> list[str]:
    inside = [text for axes in figure.axes for text in (*axes.texts, axes.title)]
    return [text.get_text() for text in (*figure.texts, *inside) if text.get_text()]


def test_each_class_is_shown_once_before_any_is_shown_twice() -> None:
    labels = torch.tensor([0] * 30 + [1] * 5 + [2] * 2)
    split = ArraySplit("target_val", np.zeros((37, 4, 4), np.uint8), labels, ("a", "b", "c"))
    for count, expected in ((1, 1), (2, 2), (3, 3)):
        assert len({int(labels[index]) for index in choose_images(split, count)}) == expected
    assert labels[choose_images(split, 7)].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert choose_images(split, 7) == choose_images(split, 7)
    assert choose_images(split, 100) == list(range(37))


def test_scenes_are_chosen_at_random_but_always_alike() -> None:
    scenes = np.zeros((50, 4, 4), np.uint8)
    split = ArraySceneSplit("target_val", scenes, scenes, ("a", "b"))
    chosen = choose_images(split, 6)
    assert chosen == sorted(set(chosen)) == choose_images(split, 6)
    assert chosen != list(range(6))


def test_images_are_seen_as_they_were() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    seen = denormalise(normalise([Image.fromarray(pixels)])[0])
    np.testing.assert_array_equal((seen * 255).round().astype(np.uint8), pixels)


@pytest.mark.usefixtures("small_target")
def test_the_reference_encoder_does_not_change_with_training(tmp_path: Path) -> None:
    start = write_model(tmp_path / "start", noise=0.0)
    near = write_model(tmp_path / "near", noise=0.1, method__name="csg")
    far = write_model(tmp_path / "far", noise=0.4)
    one, both = look(near), look(far, near)
    (reference,) = one.references  # one for models that started from the same weights
    assert reference.task is None
    assert reference.energy == both.references[0].energy
    np.testing.assert_array_equal(reference.projection.points, both.references[0].projection.points)
    # An encoder that has not moved is the reference encoder.
    (unmoved,) = look(start).models
    np.testing.assert_array_equal(unmoved.projection.points, reference.projection.points)
    assert len({reference.energy, *(model.energy for model in both.models)}) == 3
    assert [model.name.method for model in both.models] == ["vanilla", "csg"]


@pytest.mark.usefixtures("small_target")
def test_models_from_other_weights_have_their_own_reference(tmp_path: Path) -> None:
    first = write_model(tmp_path / "first")
    second = write_model(tmp_path / "second", model__norm="ibn_a")
    places = [each.name.place for each in look(first, second).references]
    assert places == ["mini, weights bundled", "mini ibn_a, weights bundled"]


@pytest.mark.usefixtures("small_target")
def test_what_is_observed_is_what_the_model_does(tmp_path: Path) -> None:
    run = write_model(tmp_path / "run", repeats=2, method__name="csg")
    (observation,) = look(run, num_images=3).models
    split = few(small_config().data).target_val
    method = load_trained(
        small_config(method__name="csg"),
        few(small_config().data),
        load_checkpoint(run / "checkpoint.pt"),
        torch.device("cpu"),
    )[0].eval()  # of two repeats the first
    chosen = choose_images(split, 3)
    images = normalise([split.image(index) for index in chosen])
    with torch.no_grad():
        maps = method.features(images)[4]
        predicted = method.predict(images).argmax(dim=1)
    assert observation.task is not None
    assert [int(each) for each in observation.task.predictions] == predicted.tolist()
    for own, attention in zip(maps, observation.attention, strict=True):
        mean = own.mean(dim=(1, 2))
        scores = torch.einsum("chw,c->hw", own, mean)
        np.testing.assert_allclose(attention, scores / scores.sum(), rtol=1e-4)
    assert len(observation.task.grad_cam) == 3
    assert len(observation.projection.points) == 40


@pytest.mark.usefixtures("small_target")
def test_two_models_have_two_pictures(tmp_path: Path) -> None:
    observed = look(write_model(tmp_path / "a"), write_model(tmp_path / "b", noise=0.3))
    with figure_style():
        figures = draw(observed, "classification", ["remark"])
        for figure in figures.values():
            assert_readable(figure)
    assert sorted(figures) == ["attention", "features", "grad_cam"]
    reference, first, second = pictures(figures["features"])
    assert not np.allclose(first, second)
    assert not np.allclose(first, reference)
    attention = pictures(figures["attention"])
    assert len(attention) == 4 * 4  # the images, the reference encoder, two models
    assert not np.allclose(attention[8:12], attention[12:])
    cams = pictures(figures["grad_cam"])
    assert len(cams) == 3 * 4  # no reference encoder
    assert not np.allclose(cams[4:8], cams[8:])
    for figure in figures.values():
        assert any("remark" in text for text in texts(figure))


def assert_readable(figure: Figure) -> None:
    """No text leaves the figure, and none lies on another; ticks aside, as some are hidden."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    whole = figure.bbox
    boxes: dict[str, Any] = {}
    ticks = {
        label
        for axes in figure.axes
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels())
    }
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if not text.get_text() or not text.get_visible() or text in ticks:
            continue
        box = text.get_window_extent(renderer)
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1, text
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1, text
        for other, taken in boxes.items():
            common = Bbox.intersection(box, taken)
            assert common is None or min(common.size) < 1.5, (text, other)
        boxes[f"{text.get_text()} at {box.p0}"] = box


def observation(points: NDArray[np.float64], method: str = "csg") -> Observation:
    name = ModelName(method, "a/rather/long/name/of-a-folder/that-tells-it-from-the-others")
    return Observation(name, Projection(points, 0.5), 0.25, (), None)


@pytest.mark.parametrize("count", [2, 4, 5, 7])
def test_all_panels_of_features_have_the_same_axes_and_colours(count: int) -> None:
    points = np.random.default_rng(0).normal(size=(100, 2))
    observations = [observation(points * 3 * (number + 1)) for number in range(count)]
    with figure_style():
        figure = draw_features(observations, ["a remark " * 40])
    panels: list[Axes] = figure.axes[:count]
    assert len({panel.get_xlim() for panel in panels} | {panel.get_ylim() for panel in panels}) == 1
    assert len({panel.images[0].get_clim() for panel in panels}) == 1
    peaks = [float(panel.images[0].get_array().max()) for panel in panels]  # type: ignore[union-attr]
    assert peaks == sorted(peaks, reverse=True)  # the denser, the darker
    assert sum("HSE 0.250" in text for text in texts(figure)) == count
    assert_readable(figure)


def test_beside_a_collapsed_model_the_others_are_seen() -> None:
    points = np.random.default_rng(0).normal(size=(100, 2))
    figure = draw_features([observation(points * 20), observation(points * 0.01)], [])
    seen, collapsed = (panel.images[0] for panel in figure.axes[:2])
    shades = [float(np.max(each.norm(np.asarray(each.get_array())))) for each in (seen, collapsed)]
    assert shades == pytest.approx([0.4, 1.0])


def test_a_model_without_features_and_one_with_many_can_be_drawn() -> None:
    many = np.random.default_rng(0).normal(scale=9, size=(3 * MAX_POINTS, 2))
    figure = draw_features([observation(np.empty((0, 2))), observation(many)], [])
    drawn = [len(panel.collections[0].get_offsets()) for panel in figure.axes[:2]]  # type: ignore[arg-type]
    assert drawn == [0, MAX_POINTS]


def test_classes_are_painted_and_ignored_pixels_are_white() -> None:
    colours = class_colours(("background", "0", "1"))
    painted = paint(np.array([[0, 1], [2, 255]]), colours)
    np.testing.assert_array_equal(painted[0, 0], [0, 0, 0])
    np.testing.assert_array_equal(painted[1, 1], [1, 1, 1])
    assert len(np.unique(painted.reshape(-1, 3), axis=0)) == 4


@pytest.mark.parametrize("count", [2, 11, 19, 30])
def test_every_class_has_its_own_colour(count: int) -> None:
    names = tuple(f"class {number}" for number in range(count))
    assert len(np.unique(class_colours(names), axis=0)) == count


def test_other_classes_are_refused_and_named(tmp_path: Path) -> None:
    counts = {"dog": 6, "cat": 6, "owl": 6}
    folder: dict[str, Any] = {
        "data__name": "image_folder",
        "data__source": str(make_image_folder(tmp_path / "drawn", counts)),
        "data__target": str(make_image_folder(tmp_path / "real", counts, seed=5)),
        "data__cache": "off",
    }
    digits = write_model(tmp_path / "digits")
    other = write_model(tmp_path / "other", **folder)
    assert refusal(lambda: look(digits, other)) == (
        f"{other} and {digits} have other classes (3 and 10 of them), so they cannot be shown the "
        "same images; put them into two calls"
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs that csg-ray train has made, each once."""
    folder = tmp_path_factory.mktemp("runs")

    def run(kind: str) -> Path:
        place = folder / kind
        if not place.exists():
            task = SCENES | {"data__num_val": 10} if kind == "scenes" else {}
            config = small_config(train__epochs=1, train__batch_size=16, **task)
            (folder / f"{kind}.yaml").write_text(dump_yaml(config.model_dump()))
            assert main(["train", str(folder / f"{kind}.yaml"), "--out", str(place)]) == 0
        return place

    return run


def test_data_that_have_changed_are_refused(tmp_path: Path) -> None:
    run = write_model(tmp_path / "run", provenance={"data_sha256": "of other images"})
    assert refusal(lambda: look(run)) == (
        f"the data of {run} have changed since it was trained; bring the former data back"
    )


def test_a_model_of_other_data_is_shown_the_images_of_the_first(tmp_path: Path) -> None:
    counts = {"dog": 6, "cat": 6, "owl": 6}
    drawn = make_image_folder(tmp_path / "drawn", counts)
    real = make_image_folder(tmp_path / "real", counts, seed=5)
    common: dict[str, Any] = {
        "data__name": "image_folder",
        "data__cache": "off",
        "data__image_size": 32,
    }
    for number in (1, 2):
        source = (drawn, real)[number - 1]
        write_model(
            tmp_path / f"run{number}",
            num_classes=3,
            data__source=str(source),
            data__target=str(real),
            data__seed=number,
            train__batch_size=4,
            **common,
        )
    observed = look(tmp_path / "run1", tmp_path / "run2")
    alone = look(tmp_path / "run1")
    assert observed.class_names == ("cat", "dog", "owl")
    for image, same in zip(observed.images, alone.images, strict=True):
        np.testing.assert_array_equal(image.pixels, same.pixels)
    swapped = look(tmp_path / "run2", tmp_path / "run1")
    assert any(
        not np.array_equal(image.pixels, other.pixels)
        for image, other in zip(observed.images, swapped.images, strict=True)
    )


@pytest.mark.parametrize("when", ["existing", "uri", "nowhere"])
def test_a_refused_command_writes_nothing(when: str, tmp_path: Path, capsys: Capture) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    if when == "existing":
        out.mkdir()
        sentence = f"{out} exists and is not overwritten; choose another name"
    elif when == "uri":
        out = "s3://bucket/figures"  # type: ignore[assignment]
        sentence = f"{out} is a URI, and figures go into a folder here; give a local --out"
    else:
        sentence = f"{run} is neither a study nor a run: it does not exist"
    before = sorted(tmp_path.rglob("*"))
    code, shown, error = command(capsys, run, "--out", out)
    assert (code, shown) == (2, "")
    assert error.startswith(f"csg-ray: {sentence}")
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("small_target")
def test_figures_are_all_there_or_none(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = write_model(tmp_path / "run"), tmp_path / "out"
    saved = []

    def save(figure: Figure, path: Path) -> None:
        saved.append(path.name)
        path.write_bytes(b"half of it")
        if len(saved) == 2:
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(make, "save_figure", save)
    code, _, error = command(capsys, run, "--out", out)
    assert code == 2
    assert "no space left on the disk" in error
    assert len(saved) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.usefixtures("small_target")
def test_svg_and_what_has_to_be_said(tmp_path: Path, capsys: Capture) -> None:
    exported = {"exported": {"selected with target labels": True}}
    run = write_model(tmp_path / "$run_$", epoch=1, repeats=2, provenance=exported)
    for name in ("first", "second"):
        code, out, _ = command(
            capsys, run, "--format", "svg", "--images", 2, "--out", tmp_path / name
        )
        assert code == 0
    (line,) = [line for line in out.splitlines() if "selected with target labels" in line]
    about = "after 1 of 2 epochs, the first of 2 repeats, selected with target labels"
    assert line.endswith(f"$run_$: {about}")
    for path in sorted((tmp_path / "first").iterdir()):
        assert path.suffix == ".svg"
        # Equal figures are equal files.
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


@pytest.mark.parametrize("kind", ["digits", "scenes"])
def test_the_command_from_a_run_to_pictures(
    kind: str,
    trained: Callable[[str], Path],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = trained(kind)
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    code, out, error = command(capsys, run, "--images", 3)
    assert (code, error) == (0, "")
    last = {"digits": "grad_cam", "scenes": "segmentation"}[kind]
    files = sorted(["attention.png", "features.png", f"{last}.png"])
    assert out.splitlines()[-1] == f"written to figures: {', '.join(files)}"
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == files
    for name in files:
        with Image.open(tmp_path / "figures" / name) as picture:
            assert min(picture.size) > 300
    # What was measured is what the training had measured.
    recorded = json.loads((run / "result.json").read_text())
    score = recorded["target_val/mean_iou" if kind == "scenes" else "target_val/accuracy"]
    name = "mIoU" if kind == "scenes" else "accuracy"
    found = re.search(rf"^vanilla \(.*\): HSE ([\d.]+), {name} ([\d.]+)$", out, re.MULTILINE)
    assert found is not None
    assert float(found[1]) == pytest.approx(recorded["target_val/hse"], abs=6e-4)
    assert float(found[2]) == pytest.approx(score, abs=0.01)
