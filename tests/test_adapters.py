from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from csg_ray.config.errors import UserError
from csg_ray.results.cost import Meter
from csg_ray.results.progress import TrialUpdate
from csg_ray.scale.adapters import DriverScheduler, DriverSearcher, DriverStopper
from csg_ray.scale.driver import StudyDriver
from csg_ray.search_space import parse_search_space
from csg_ray.storage.paths import StoragePath


class Silent:
    """A Progress that says nothing."""

    def study_started(
        self,
        study: str,
        directory: StoragePath,
        num_trials: int,
        epochs: int,
        metric: str,
        mode: str,
        meter: Meter,
    ) -> None: ...

    def trial_updated(self, update: TrialUpdate) -> None: ...

    def message(self, text: str) -> None: ...

    def study_finished(self) -> None: ...


def test_a_trial_on_another_machine_finds_a_study_that_was_named_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = parse_search_space(
        {
            "study": "s",
            "space": {"method.temperature": {"loguniform": [0.02, 0.5]}},
            "search": {"metric": "target_val/hse", "mode": "min", "num_trials": 1},
        }
    )
    monkeypatch.chdir(tmp_path)
    searcher = DriverSearcher(StudyDriver(space, Path("studies/s"), Silent()), space)
    assignment = searcher.suggest("its name in Tune")
    assert assignment is not None
    assert assignment["directory"] == str(tmp_path.resolve() / "studies" / "s" / "trials" / "0001")


def test_too_little_memory_for_trials_in_one_process_pauses_the_study(tmp_path: Path) -> None:
    """None of them is at fault, so none fails: another search.fuse goes on with all."""
    space = parse_search_space(
        {
            "study": "s",
            "space": {"method.temperature": {"loguniform": [0.02, 0.5]}},
            "search": {"metric": "target_val/hse", "mode": "min", "num_trials": 1},
        }
    )
    driver = StudyDriver(space, tmp_path, Silent())
    assignment = DriverSearcher(driver, space).suggest("its name in Tune")
    trial: Any = SimpleNamespace(config=assignment)
    told = {"no_memory": "2 trials in one process need more memory"}
    assert DriverScheduler(driver).on_trial_result(None, trial, told) == TrialScheduler.STOP
    assert isinstance(driver.halted, UserError)
    assert str(driver.halted) == told["no_memory"]
    assert DriverStopper(driver).stop_all()
    driver.finish("0001")
    assert not (tmp_path / "trials" / "0001" / "state.json").exists()
