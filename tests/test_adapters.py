from __future__ import annotations

from pathlib import Path

import pytest

from csg_ray.results.cost import Meter
from csg_ray.results.progress import TrialUpdate
from csg_ray.scale.adapters import DriverSearcher
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
