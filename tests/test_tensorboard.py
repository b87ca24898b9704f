"""What TensorBoard's HParams page gets: every training with its settings and how it ended."""

from __future__ import annotations

from typing import Any

from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from csg_ray.config.load import override_config, own_settings
from csg_ray.config.run import RunConfig
from csg_ray.storage.checkpoint import save_checkpoint
from csg_ray.storage.paths import StoragePath
from csg_ray.training.recorder import EpochRecorder
from event_files import event_files, read_events

SETTINGS = {
    "method.temperature": 0.07,
    "augment.magnitude": 6,
    "model.freeze_batch_norm": True,
    "method.stages": "3,4",
    "evaluation.reference_images": None,
    "model.taps": (3, 4),
}


def record(recorder: EpochRecorder, *epochs: int, diverged: int = 0) -> None:
    for epoch in epochs:
        metrics: dict[str, float] = {"epoch": epoch, "target_val/hse": 0.5, "diverged": diverged}
        recorder(metrics, lambda path, saved=metrics: save_checkpoint(path, {"metrics": saved}))  # type: ignore[misc]


def sessions(path: StoragePath) -> list[tuple[str, Any]]:
    """(tag, content) of the HParams plugin's events in a file, in order."""
    return [
        (value.tag, HParamsPluginData.FromString(value.metadata.plugin_data.content))
        for event in read_events(path.read_bytes())
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "hparams"
    ]


def shown(start: Any) -> dict[str, Any]:
    hparams = start.session_start_info.hparams
    return {name: getattr(hparams[name], hparams[name].WhichOneof("kind")) for name in hparams}


def test_a_training_begins_a_session_with_its_settings_and_ends_it(place: StoragePath) -> None:
    recorder = EpochRecorder(place, SETTINGS, epochs=2)
    record(recorder, 1)
    (path,) = event_files(place)
    ((tag, start),) = sessions(path)
    assert tag == "_hparams_/session_start_info"
    assert shown(start) == SETTINGS | {
        "evaluation.reference_images": "None",
        "model.taps": "(3, 4)",
    }
    record(recorder, 2)
    recorder.close()
    tags = [tag for tag, _ in sessions(path)]
    assert tags == ["_hparams_/session_start_info", "_hparams_/session_end_info"]
    assert sessions(path)[1][1].session_end_info.status == 1  # success


def test_a_training_that_goes_on_ends_the_session_that_it_began(place: StoragePath) -> None:
    first = EpochRecorder(place, SETTINGS, epochs=2)
    record(first, 1)
    first.close()
    (before,) = event_files(place)
    second = EpochRecorder(place, SETTINGS, epochs=2)
    record(second, 2)
    second.close()
    (after,) = (path for path in event_files(place) if path.name != before.name)
    assert [tag for tag, _ in sessions(before)] == ["_hparams_/session_start_info"]
    assert [tag for tag, _ in sessions(after)] == ["_hparams_/session_end_info"]


def test_a_training_that_diverges_in_its_last_epoch_has_no_success(place: StoragePath) -> None:
    recorder = EpochRecorder(place, SETTINGS, epochs=1)
    record(recorder, 1, diverged=1)
    recorder.close()
    (path,) = event_files(place)
    assert [tag for tag, _ in sessions(path)] == ["_hparams_/session_start_info"]


def test_no_training_names_the_settings_of_all(place: StoragePath) -> None:
    """Of several such lists TensorBoard takes one and hides what only the others have."""
    recorder = EpochRecorder(place, SETTINGS, epochs=1)
    record(recorder, 1)
    recorder.close()
    (path,) = event_files(place)
    assert "_hparams_/experiment" not in [tag for tag, _ in sessions(path)]


def test_without_settings_there_is_no_session(place: StoragePath) -> None:
    recorder = EpochRecorder(place)
    record(recorder, 1)
    recorder.close()
    (path,) = event_files(place)
    assert sessions(path) == []


def test_a_run_is_told_apart_by_what_is_not_default() -> None:
    assert own_settings(RunConfig()) == {"method.name": "csg", "data.name": "digits"}
    changed = {"method.name": "vanilla", "train.epochs": 3, "seed": 7}
    config = override_config(RunConfig(), changed)
    assert own_settings(config) == {"data.name": "digits"} | changed
    # The default of the method, though not of the first one.
    weight = {"method.name": "csg", "method.loss_weight": 7.0}
    assert own_settings(override_config(RunConfig(), weight)) == {"data.name": "digits"} | weight


def test_settings_that_a_task_or_a_method_must_be_given_set_a_run_apart() -> None:
    """Neither has a default configuration; such runs once failed before their first step."""
    scenes = {"data.name": "digit_scenes", "model.head": "fcn"}
    assert own_settings(override_config(RunConfig(), scenes)) == {"method.name": "csg"} | scenes
    photos = {"data.name": "image_folder", "data.source": "a", "data.target": "b"}
    started: dict[str, Any] = {"method.name": "cbst", "method.start": "run"}
    started |= {"data.target_train_share": 0.25, "train.steps_per_epoch": 5}
    config = override_config(RunConfig(), photos | started)
    assert own_settings(config) == photos | started
