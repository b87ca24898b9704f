"""Trials of several workers: each a Ray Train run, and nothing of it left when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray._private.state import actors
from ray.util.placement_group import placement_group, remove_placement_group

from csg_ray.results.study import load_study
from csg_ray.scale.driver import StudyDriver
from csg_ray.scale.reclaim import _groups_of_this_job, remove_orphans
from csg_ray.scale.tuner import restore_study, run_study
from csg_ray.search_space import Changes, SearchSpace, parse_search_space
from csg_ray.training.loop import fit
from small_study import Command, Recorder, assert_whole, space_mapping

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def nested_space(num_trials: int, epochs: int) -> SearchSpace:
    mapping = space_mapping(num_trials, epochs, scheduler="none")
    return parse_search_space(mapping | {"resources": {"workers_per_trial": 2}})


def left_behind() -> dict[str, Any]:
    """What is taken of the cluster, in the end: polled, as processes take a moment to die."""
    deadline = time.monotonic() + 20
    while True:
        alive = {actor["ActorClassName"] for actor in actors().values() if actor["State"] != "DEAD"}
        found = {
            "cpus": 2 - ray.available_resources().get("CPU", 0),
            "groups": len(_groups_of_this_job()),
            "actors": alive - {"_AutoscalingCoordinatorActor"},  # Ray Train's, one a cluster
        }
        if not any(found.values()) or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def test_a_nested_study_trains_as_a_flat_one_and_leaves_nothing(
    shared_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trials on two CPUs, two workers each; the second is stopped after its first epoch."""
    report = StudyDriver.report

    def cut(self: StudyDriver, trial_id: str, metrics: Mapping[str, Any]) -> bool:
        report(self, trial_id, metrics)
        self._live[trial_id].cut = trial_id == "0002"
        return trial_id == "0002"

    monkeypatch.setattr(StudyDriver, "report", cut)
    space = nested_space(2, epochs=3)
    run_study(space, tmp_path / "s", Recorder(), verbose=False)

    assert left_behind() == {"cpus": 0, "groups": 0, "actors": set()}
    first, second = load_study(tmp_path / "s").trials
    assert (first.state, first.epoch) == ("completed", 3)
    assert second.state == "stopped"
    assert second.epoch < 3
    assert {line["workers"] for line in first.results} == {2}
    alone: list[dict[str, float]] = []
    fit(space.config_for(first.params), lambda metrics, *_: alone.append(metrics))
    for ours, theirs in zip(first.results, alone, strict=True):
        for key in ("train/loss", "target_val/mean_class_accuracy", "target_val/hse"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3), (ours["epoch"], key)


def test_the_driver_is_killed_with_nested_trials_running(shared_ray: None, tmp_path: Path) -> None:
    mapping = space_mapping(2, epochs=4, scheduler="none")
    file = tmp_path / "nested.yaml"
    file.write_text(yaml.safe_dump(mapping | {"resources": {"workers_per_trial": 2}}))
    directory = tmp_path / "s"
    search = Command("search", file, "--study", directory, cwd=tmp_path)
    lines = directory / "trials" / "0001" / "result.json"
    search.wait_until(lambda: lines.exists() and lines.read_text().count("\n") >= 2, seconds=240)
    search.process.kill()
    search.process.wait()
    before = lines.read_text().splitlines()

    restore_study(directory, Changes(), Recorder(), verbose=False)

    assert_whole(load_study(directory), 2)
    assert all(trial.epoch == 4 for trial in load_study(directory).trials)
    assert lines.read_text().splitlines()[: len(before)] == before, "no finished epoch was lost"


def sweep_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        remove_orphans()
        time.sleep(0.1)


def test_groups_of_dead_creators_are_removed_and_no_others(shared_ray: None) -> None:
    """Held, still pending, of a living actor, of the study itself."""
    own = placement_group([{"CPU": 1}])
    own.wait(30)

    class Creator:
        """Reserves CPUs, as Ray Train's controller does. Defined here, Ray ships it by value."""

        def create(self, cpus: int) -> str:
            self.group = placement_group([{"CPU": 1}] * cpus)
            return str(self.group.id.hex())

    creator: Any = ray.remote(num_cpus=0)(Creator)
    living, holder, waiting = (creator.remote() for _ in range(3))
    kept = {own.id.hex(), ray.get(living.create.remote(64))}
    doomed = {ray.get(holder.create.remote(1)), ray.get(waiting.create.remote(64))}

    def there() -> set[str]:
        return {group.placement_group_id.hex() for group in _groups_of_this_job()}

    assert there() == kept | doomed
    assert remove_orphans() == 0
    for doomed_creator in (holder, waiting):
        ray.kill(doomed_creator)
    sweep_until(lambda: there() == kept)
    remove_placement_group(own)
    ray.kill(living)
    sweep_until(lambda: not there())
    assert left_behind() == {"cpus": 0, "groups": 0, "actors": set()}
