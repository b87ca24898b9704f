"""Which models a figure shows, and every reason why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from csg_ray.results.figures.models import find_models, short_names
from csg_ray.results.study import load_study
from csg_ray.storage.paths import StoragePath
from made_data import refusal
from written_model import SCENES, mark_diverged, write_checkpoint, write_model

MakeStudy = Callable[..., StoragePath]
GOOD, BETTER = ("completed", [(0.5, 0.4, 0.9)] * 3), ("completed", [(0.6, 0.3, 0.8)] * 3)
DIVERGED = ("diverged", [(0.1, 9.0, 0.1)])


def keep_checkpoint(directory: StoragePath, trial_id: str, repeats: int = 1) -> None:
    study = load_study(directory)
    trial = study.trial(trial_id)
    config = study.space.config_for(dict(trial.params))
    write_checkpoint(trial.checkpoint, config, epoch=trial.epoch, repeats=repeats)


def test_of_a_study_its_own_pick_is_drawn(make_study_at: MakeStudy) -> None:
    study = make_study_at(GOOD, BETTER, GOOD)
    keep_checkpoint(study, "2", repeats=3)
    (model,) = find_models([str(study)])
    assert model.directory == study / "trials" / "0002"
    assert model.config.method.name == "csg"
    assert model.config.augment.magnitude == 7
    assert (model.epoch, model.repeats) == (3, 3)
    assert model.selected_with_target_labels  # the study's objective is accuracy on target_val


def test_a_pick_without_target_labels_is_not_stamped(make_study: Callable[..., Path]) -> None:
    search = {"metric": "source_val/mean_class_accuracy", "sampler": "random", "scheduler": "none"}
    study = make_study(GOOD, BETTER, search=search)
    keep_checkpoint(study, "1")
    (model,) = find_models([str(study)])
    assert model.directory.name == "0001"
    assert not model.selected_with_target_labels
    (by_id,) = find_models([f"{study}:1"])  # whoever chose it could read target_val
    assert by_id.selected_with_target_labels


def test_trials_are_named_by_their_ids(make_study_at: MakeStudy) -> None:
    study = make_study_at(GOOD, BETTER)
    keep_checkpoint(study, "1")
    keep_checkpoint(study, "2")
    # What follows ? in a URI are options of the connection.
    base, question, options = str(study).partition("?")
    models = find_models([f"{base}:0001{question}{options}", str(study)])
    assert [model.directory.name for model in models] == ["0001", "0002"]
    assert short_names(models) == ["digits/0001", "digits/0002"]


def test_a_trial_of_the_study_one_stands_in(
    make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(GOOD)
    keep_checkpoint(study, "1")
    monkeypatch.chdir(study)
    (model,) = find_models([".:1"])
    assert model.directory.resolve() == (study / "trials" / "0001").resolve()


def test_runs_keep_their_order_and_short_names(tmp_path: Path) -> None:
    exported = {"exported": {"selected with target labels": True}}
    first = write_model(tmp_path / "a" / "runs" / "csg", method__name="csg", provenance=exported)
    second = write_model(tmp_path / "b" / "runs" / "csg", epoch=1)
    models = find_models([str(second), str(first)])
    assert short_names(models) == ["b/runs/csg", "a/runs/csg"]
    assert [model.epoch for model in models] == [1, 2]
    assert [model.selected_with_target_labels for model in models] == [False, True]


@pytest.mark.parametrize("exists", [False, True])
def test_neither_a_study_nor_a_run(tmp_path: Path, exists: bool) -> None:
    place = tmp_path / "nothing"
    if exists:
        place.mkdir()
    what = "holds neither study.yaml nor run.yaml" if exists else "does not exist"
    assert refusal(lambda: find_models([str(place)])) == (
        f"{place} is neither a study nor a run: it {what}; give a directory that csg-ray search or "
        "csg-ray train made, or STUDY:ID for a trial"
    )


def test_a_study_without_a_completed_trial(make_study: Callable[..., Path]) -> None:
    study = make_study(("unfinished", [(0.5, 0.4, 0.9)]), DIVERGED)
    sentence = refusal(lambda: find_models([str(study)]))
    assert sentence.startswith(f"no trial of study {study} has completed")
    assert "csg-ray restore" in sentence


def test_a_checkpoint_that_was_not_kept(make_study: Callable[..., Path]) -> None:
    study = make_study(GOOD)
    sentence = refusal(lambda: find_models([str(study)]))
    assert sentence.startswith(f"the checkpoint of trial 0001 of {study} was not kept; ")
    assert "--trial 0001" in sentence


def test_a_trial_that_is_not_there(make_study: Callable[..., Path]) -> None:
    study = make_study(GOOD)
    assert "has no trial '0009'; it holds 0001 to 0001" in refusal(
        lambda: find_models([f"{study}:0009"])
    )


def test_trials_that_diverged_or_have_not_begun(make_study: Callable[..., Path]) -> None:
    study = make_study(DIVERGED, ("unfinished", []))
    assert refusal(lambda: find_models([f"{study}:1"])) == (
        f"trial 0001 of {study} diverged in epoch 1, so there is nothing to draw; leave it out"
    )
    assert f"trial 0002 of {study} has no finished epoch" in refusal(
        lambda: find_models([f"{study}:2"])
    )


def test_runs_that_cannot_be_drawn(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_model(run)
    (run / "checkpoint.pt").unlink()
    assert f"the checkpoint of run {run} is missing" in refusal(lambda: find_models([str(run)]))
    mark_diverged(run)
    assert f"run {run} diverged in epoch 1" in refusal(lambda: find_models([str(run)]))
    (run / "result.json").unlink()
    assert refusal(lambda: find_models([str(run)])) == (
        f"run {run} has no finished epoch, so there is nothing to draw; "
        "continue it with csg-ray restore first"
    )


def test_the_checkpoint_of_another_training(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    write_model(run)
    write_model(other, train__learning_rate=0.5)
    (other / "checkpoint.pt").replace(run / "checkpoint.pt")
    sentence = refusal(lambda: find_models([str(run)]))
    assert "is a checkpoint of another training (train.learning_rate 0.5 there" in sentence


def test_the_same_model_twice(make_study: Callable[..., Path]) -> None:
    study = make_study(GOOD)
    keep_checkpoint(study, "1")
    assert (
        refusal(lambda: find_models([str(study)] * 2)) == f"{study} is given twice; leave one out"
    )
    assert refusal(lambda: find_models([str(study), f"{study}:1"])) == (
        f"{study} and {study}:1 are the same training; leave one out"
    )


def test_tasks_that_differ(tmp_path: Path) -> None:
    digits = write_model(tmp_path / "digits")
    scenes = write_model(tmp_path / "scenes", **SCENES)
    assert refusal(lambda: find_models([str(digits), str(scenes)])) == (
        f"{digits} is a task of classification and {scenes} one of segmentation, which see "
        "different things in an image; put them into two calls"
    )
