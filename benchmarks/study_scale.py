"""A study at a size nobody can rent: 10,000 simulated trials on 1,000 simulated GPUs.

    python benchmarks/study_scale.py [--trials 10000] [--gpus 1000] [--only csg_ray]
    python benchmarks/study_scale.py --at 1000 3000 9000 [--decisions 50]

Nothing trains: the trials' epochs last about a simulated minute each and report made-up accuracies
(`synthetic.py`). All else is real: the searcher and the scheduler that Ray Tune calls, the driver
behind them, TPE, ASHA, both watchers (the live table draws itself twice a second meanwhile), the
study's files. Beside it, on the same trials' curves and durations, in processes of their own and
without any files: plain Optuna (the same TPE, its SuccessiveHalvingPruner), and Ray Tune's own
OptunaSearch with AsyncHyperBandScheduler. Afterwards the study is read and restored from its files.

With `--at` each contender is given the finished trials of a simulated study of random settings, and
then as many at work as there are GPUs, whose settings are random too: TPE's time depends on how
many trials there are, not on which. Then `--decisions` of them end, and each is followed by one
that TPE is asked for. The contenders run in one process and take turns of ten, so that whatever
else the machine does slows all of them down.
"""

from __future__ import annotations

import argparse
import heapq
import io
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import optuna
from synthetic import draw, epoch_seconds, learning_curve

from csg_ray.config.reader import dump_yaml
from csg_ray.results.cost import Meter
from csg_ray.results.optuna_study import frozen_trial
from csg_ray.results.study import Trial
from csg_ray.scale.halving import SuccessiveHalving
from csg_ray.search_space import METRICS, SearchSpace, load_search_space

SPACE = Path(__file__).parents[1] / "search_spaces" / "digits.yaml"
METRIC = "target_val/mean_class_accuracy"
SCREEN = sys.stdout  # while a live table is up, rich takes what is printed
PAGE = os.sysconf("SC_PAGE_SIZE")


class Contender(Protocol):
    """What the simulated cluster asks of a searcher with a scheduler."""

    def ask(self, name: str) -> dict[str, Any] | None:
        """The next setting."""

    def train(self, name: str, epoch: int, value: float, now: float) -> None:
        """What the trial's own process does after an epoch; not the driver's time."""

    def report(self, name: str, epoch: int, value: float) -> bool:
        """Whether the trial is to stop."""

    def finish(self, name: str, cut: bool) -> None:
        """The trial has ended."""


class Asking(Contender, Protocol):
    """One whose Optuna study can be reached."""

    study: optuna.Study


class CsgRay:
    """This project: what Tune would call, over a real driver."""

    def __init__(self, space: SearchSpace, directory: Path, finished: Sequence[Trial] = ()) -> None:
        from csg_ray.scale.adapters import DriverScheduler, DriverSearcher, StartCallback
        from csg_ray.scale.driver import StudyDriver

        self.space, self.directory = space, directory
        header = {"format": 1, "space": space.to_mapping(), "provenance": {}}
        (directory / "study.yaml").write_text(dump_yaml(header))
        self.watchers = Watchers(directory.parent / "log")
        self.watchers.study_started(
            space.study, directory, space.search.num_trials, 9, METRIC, "max", Meter()
        )
        for trial in finished:
            (directory / "trials" / trial.id).mkdir(parents=True)
        driver = StudyDriver(space, directory, self.watchers, finished)
        self._searcher = DriverSearcher(driver, space)
        self._scheduler = DriverScheduler(driver)
        self._start = StartCallback(driver)
        self._trials: dict[str, Any] = {}
        self.study = driver._suggestions._study

    def ask(self, name: str) -> dict[str, Any] | None:
        """The next setting."""
        assignment = self._searcher.suggest(name)
        if assignment is None or "id" not in assignment:
            return None
        self._trials[name] = SimpleNamespace(config=assignment)
        self._start.on_trial_start(0, [], self._trials[name])
        params = json.loads((Path(assignment["directory"]) / "params.json").read_text())
        return dict(params["params"])

    def _line(self, name: str, epoch: int, value: float) -> dict[str, Any]:
        """As many metrics as a real epoch has."""
        draws = random.Random(f"{name}/{epoch}")
        metrics = {metric: draws.random() for metric in METRICS}
        own = {METRIC: value, "target_val/hse": 1 - value + draws.gauss(0, 0.1)}
        return metrics | own | {"epoch": epoch, "diverged": 0, "train/loss": 1 - value}

    def train(self, name: str, epoch: int, value: float, now: float) -> None:
        """Write the files of an epoch."""
        directory = Path(self._trials[name].config["directory"])
        (directory / "checkpoint.pt").write_text(str(epoch))
        with (directory / "result.json").open("a") as file:
            file.write(json.dumps(self._line(name, epoch, value) | {"timestamp": now}) + "\n")

    def report(self, name: str, epoch: int, value: float) -> bool:
        """Whether it stops."""
        trial, line = self._trials[name], self._line(name, epoch, value)
        return self._scheduler.on_trial_result(None, trial, line) == "STOP"

    def finish(self, name: str, cut: bool) -> None:
        """It has ended."""
        self._searcher.on_trial_complete(name, {})
        del self._trials[name]


class Watchers:
    """Both watchers of a search at once; the live table draws into a string."""

    def __init__(self, log: Path) -> None:
        from rich.console import Console

        from csg_ray.cli.console import LiveProgress, PlainProgress

        screen = Console(width=100, height=50, force_terminal=True, file=io.StringIO())
        file = log.open("w")
        self.live = LiveProgress(screen)
        self._all = (self.live, PlainProgress(lambda line: print(line, file=file)))

    def __getattr__(self, name: str) -> Callable[..., None]:
        def tell(*words: Any) -> None:
            for progress in self._all:
                getattr(progress, name)(*words)

        return tell


class Optuna:
    """Optuna alone."""

    def __init__(self, space: SearchSpace, directory: Path, finished: Sequence[Trial] = ()) -> None:
        from csg_ray.scale.suggestions import _suggest

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self._suggest = space, _suggest
        search = space.search
        self.study = optuna.create_study(
            direction="maximize",
            sampler=_plain_tpe(),
            pruner=optuna.pruners.SuccessiveHalvingPruner(
                min_resource=search.grace_period, reduction_factor=search.reduction_factor
            ),
        )
        for point in space.points_to_evaluate:
            self.study.enqueue_trial(dict(point))
        self.study.add_trials([frozen_trial(space, trial) for trial in finished])
        self._trials: dict[str, Any] = {}
        self._values: dict[str, float] = {}

    def ask(self, name: str) -> dict[str, Any] | None:
        """The next setting."""
        self._trials[name] = trial = self.study.ask()
        return self._suggest(trial, self.space)

    def train(self, name: str, epoch: int, value: float, now: float) -> None:
        """Nothing is written."""

    def report(self, name: str, epoch: int, value: float) -> bool:
        """Whether it stops."""
        self._values[name] = value
        self._trials[name].report(value, epoch)
        return bool(self._trials[name].should_prune())

    def finish(self, name: str, cut: bool) -> None:
        """It has ended."""
        trial, value = self._trials.pop(name), self._values.pop(name)
        if cut:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self.study.tell(trial, value)


class RayTune:
    """Ray Tune's own searcher and scheduler, called by hand."""

    def __init__(self, space: SearchSpace, directory: Path, finished: Sequence[Trial] = ()) -> None:
        from ray.tune.schedulers import AsyncHyperBandScheduler
        from ray.tune.search.optuna import OptunaSearch

        from csg_ray.scale.suggestions import _suggest

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._search = OptunaSearch(
            lambda trial: _suggest(trial, space) and None,
            metric=METRIC,
            mode="max",
            sampler=_plain_tpe(),
            points_to_evaluate=[dict(point) for point in space.points_to_evaluate] or None,
        )
        self._asha = AsyncHyperBandScheduler(
            metric=METRIC,
            mode="max",
            max_t=9,
            grace_period=space.search.grace_period,
            reduction_factor=space.search.reduction_factor,
        )
        self._results: dict[str, Any] = {}
        self.study = self._search._ot_study
        for trial in finished:
            self._asha.on_trial_add(None, SimpleNamespace(trial_id=trial.id))
            for line in trial.results:
                result = {"training_iteration": line["epoch"], METRIC: line[METRIC]}
                self._asha.on_trial_result(None, SimpleNamespace(trial_id=trial.id), result)
            # It tells Optuna that a stopped trial is complete.
            self.study.add_trial(frozen_trial(space, trial.with_state("completed", "")))

    def ask(self, name: str) -> dict[str, Any] | None:
        """The next setting."""
        self._asha.on_trial_add(None, SimpleNamespace(trial_id=name))
        return self._search.suggest(name)

    def train(self, name: str, epoch: int, value: float, now: float) -> None:
        """Nothing is written."""

    def report(self, name: str, epoch: int, value: float) -> bool:
        """Whether it stops."""
        self._results[name] = result = {"training_iteration": epoch, METRIC: value}
        if self._asha.on_trial_result(None, SimpleNamespace(trial_id=name), result) == "STOP":
            return True
        self._search.on_trial_result(name, result)
        return False

    def finish(self, name: str, cut: bool) -> None:
        """It has ended."""
        result = self._results.pop(name)
        self._asha.on_trial_complete(None, SimpleNamespace(trial_id=name), result)
        self._search.on_trial_complete(name, result)


def _plain_tpe() -> optuna.samplers.TPESampler:
    return optuna.samplers.TPESampler(seed=0, n_startup_trials=10, constant_liar=True)


CONTENDERS = {"csg_ray": CsgRay, "optuna": Optuna, "ray_tune": RayTune}


class Clock:
    """Time of one contender's decisions, on the wall and on the CPU, and simulated time."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"ask": [], "report": [], "finish": []}
        self.cpu: dict[str, list[float]] = {"ask": [], "report": [], "finish": []}
        self.simulated = 0.0

    def take(self, decide: Callable[..., Any], *words: Any) -> Any:
        """Make and time one decision."""
        began, cpu = time.perf_counter(), time.thread_time()
        result = decide(*words)
        self.cpu[decide.__name__].append(time.thread_time() - cpu)
        self.seconds[decide.__name__].append(time.perf_counter() - began)
        return result


def simulate(contender: Contender, trials: int, gpus: int, epochs: int) -> Clock:
    """Run a whole study: every GPU that comes free asks for the next trial at once."""
    clock, started = Clock(), 0
    events: list[tuple[float, str, int]] = []
    curves: dict[str, tuple[list[float], float]] = {}

    def fill(now: float) -> None:
        nonlocal started
        while started < trials and len(curves) < gpus:
            started += 1
            name = str(started)
            params = clock.take(contender.ask, name)
            curves[name] = learning_curve(params, epochs, name), epoch_seconds(params, name)
            heapq.heappush(events, (now + curves[name][1], name, 1))

    fill(0.0)
    while events:
        now, name, epoch = heapq.heappop(events)
        curve, seconds = curves[name]
        contender.train(name, epoch, curve[epoch - 1], now)
        stops = clock.take(contender.report, name, epoch, curve[epoch - 1])
        if stops or epoch == epochs:
            clock.take(contender.finish, name, stops and epoch < epochs)
            del curves[name]
            fill(now)
        else:
            heapq.heappush(events, (now + seconds, name, epoch + 1))
        clock.simulated = now
    return clock


class History:
    """The finished trials of a simulated study of random settings: what a long search leaves."""

    def __init__(self, space: SearchSpace) -> None:
        search = space.search
        epochs = space.first_config().train.epochs
        self._space, self._draws = space, random.Random(0)
        self._asha = SuccessiveHalving(epochs, search.grace_period, search.reduction_factor, "max")
        self._live: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
        self.trials: list[Trial] = []

    def ask(self, name: str) -> dict[str, Any] | None:
        """The next setting."""
        params = {path: draw(each, self._draws) for path, each in self._space.space.items()}
        self._live[name] = params, []
        return params

    def train(self, name: str, epoch: int, value: float, now: float) -> None:
        """Note it."""
        self._live[name][1].append({"epoch": epoch, METRIC: value, "timestamp": now})

    def report(self, name: str, epoch: int, value: float) -> bool:
        """Whether it stops."""
        return self._asha.stops(name, epoch, value)

    def finish(self, name: str, cut: bool) -> None:
        """It has ended."""
        params, results = self._live.pop(name)
        state = "stopped" if cut else "completed"
        self.trials.append(
            Trial(f"{int(name):05d}", params, "sampler", state, "", tuple(results), Path())
        )


class AtWork:
    """A contender with a history behind it and as many trials at work as there are GPUs."""

    def __init__(self, contender: Asking, gpus: int) -> None:
        self._contender, self._clock, self._asked = contender, Clock(), 0
        tpe = contender.study.sampler
        contender.study.sampler = optuna.samplers.RandomSampler(seed=0)
        for _ in range(gpus):
            self._ask()
        contender.study.sampler = tpe
        self._clock, self._ended = Clock(), 0

    def _ask(self) -> None:
        self._asked += 1
        assert self._clock.take(self._contender.ask, f"work{self._asked}") is not None

    def decide(self, trials: int, epochs: int) -> dict[str, list[float]]:
        """CPU seconds of every decision so far, after so many more trials have come and gone."""
        for _ in range(trials):
            self._ended += 1
            name, value = f"work{self._ended}", random.Random(self._ended).random()
            self._contender.train(name, epochs, value, 1e9 + self._ended)
            self._clock.take(self._contender.report, name, epochs, value)
            self._clock.take(self._contender.finish, name, False)
            self._ask()
        return self._clock.cpu


def measure_at(sizes: list[int], decisions: int, gpus: int, kinds: list[str]) -> None:
    """Print each contender's times at some sizes of the history."""
    space = load_search_space(SPACE).with_num_trials(max(sizes) + decisions + gpus)
    space = replace(space, points_to_evaluate=())
    epochs = space.first_config().train.epochs
    history = History(space)
    simulate(history, max(sizes) + gpus, gpus, epochs)
    print(f"{'finished':>9} {'':>9} {'ask, ms CPU':>18} {'report':>7} {'finish':>7}", file=SCREEN)
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="study_scale_") as scratch:
            studies = {}
            for kind in kinds:
                directory = Path(scratch) / kind / "study"
                directory.mkdir(parents=True)
                contender = CONTENDERS[kind](space, directory, history.trials[:size])
                studies[kind] = AtWork(contender, gpus)
            times: dict[str, dict[str, list[float]]] = {}
            for _ in range(decisions // 10):
                times = {kind: study.decide(10, epochs) for kind, study in studies.items()}
            show_size(size, times)


def show_size(size: int, times: dict[str, dict[str, list[float]]]) -> None:
    """Print the times at one size, and their ratios to ours."""
    ours: tuple[float, float] | None = None
    for kind, cpu in times.items():
        ask, report, finish = (1e3 * statistics.median(cpu[n]) for n in ("ask", "report", "finish"))
        late = 1e3 * statistics.quantiles(cpu["ask"], n=100)[98]
        total = ask + report + finish
        ours = ours or (ask, total)
        print(
            f"{size:>9} {kind:>9} {f'{ask:.1f} ({late:.1f})':>18} {report:>7.2f} {finish:>7.2f}  "
            f"ask x{ask / ours[0]:.2f}, all three x{total / ours[1]:.2f}",
            file=SCREEN,
            flush=True,
        )


def resident() -> float:
    """MB in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6


def windows(values: list[float], size: int) -> list[tuple[float, float]]:
    """(median, 99th percentile) in ms of the first, the middle and the last `size` values."""
    middle = len(values) // 2
    parts = (values[:size], values[middle : middle + size], values[-size:])
    found = []
    for part in parts:
        cuts = statistics.quantiles(part, n=100)
        found.append((1e3 * cuts[49], 1e3 * cuts[98]))
    return found


def measure_here(kind: str, trials: int, gpus: int) -> dict[str, Any]:
    """One contender in this process."""
    space = load_search_space(SPACE).with_num_trials(trials)
    epochs = space.first_config().train.epochs
    with tempfile.TemporaryDirectory(prefix="study_scale_") as scratch:
        directory = Path(scratch) / "study"
        directory.mkdir()
        contender = CONTENDERS[kind](space, directory)
        before = resident()
        clock = simulate(contender, trials, gpus, epochs)
        outcome = {
            "windows": {k: windows(v, trials // 10) for k, v in clock.seconds.items()}
            | {f"{k}, CPU": windows(v, trials // 10) for k, v in clock.cpu.items()},
            "counts": {k: len(v) for k, v in clock.seconds.items()},
            "driver": sum(map(sum, clock.seconds.values())),
            "cpu": sum(map(sum, clock.cpu.values())),
            "simulated": clock.simulated,
            "before": before,
            "memory": resident() - before,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        }
        if isinstance(contender, CsgRay):
            outcome |= after_the_study(contender)
    return outcome


def after_the_study(contender: CsgRay) -> dict[str, Any]:
    """Drawing, reading and restoring what the study left."""
    from csg_ray.results.study import load_study
    from csg_ray.results.table import write_table
    from csg_ray.scale.cluster import Cluster, Node
    from csg_ray.scale.driver import StudyDriver
    from csg_ray.scale.resources import plan

    directory, found = contender.directory, {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began, cpu = time.perf_counter(), time.thread_time()
        result = call()
        found[name] = time.perf_counter() - began, time.thread_time() - cpu
        return result

    timed("draw the live table once", contender.watchers.live.render)
    contender.watchers.study_finished()
    study = timed("load_study", lambda: load_study(directory))
    more = contender.space.with_num_trials(len(study.trials) + 1000)
    watchers = Watchers(directory.parent / "log2")
    watchers.study_started(
        more.study, directory, len(study.trials) + 1000, 9, METRIC, "max", Meter()
    )
    driver = timed("new driver", lambda: StudyDriver(more, directory, watchers, study.trials))
    timed("its first ask", driver.next_trial)
    timed("trials.parquet", lambda: write_table(study, directory / "trials.parquet"))
    watchers.study_finished()
    gpu_space = load_search_space(SPACE, {"resources.gpus_per_worker": 1}).with_num_trials(10_000)
    cluster = Cluster((Node(cpus=8, gpus=2),) * 500)
    plan(gpu_space, cluster)
    timed("plan", lambda: plan(gpu_space, cluster))
    states: dict[str, int] = {}
    for trial in study.trials:
        states[trial.state] = states.get(trial.state, 0) + 1
    kept = len(list(directory.glob("trials/*/checkpoint.pt")))
    return {"after": found, "states": states, "checkpoints": kept}


def show(kind: str, outcome: dict[str, Any], ours: dict[str, Any]) -> None:
    """Print one contender's figures, as ratios to ours where it is not ours."""
    trials = outcome["counts"]["ask"]
    print(f"\n{kind}: {trials} trials, {outcome['counts']['report']} reports")
    print(f"{'ms, median (p99)':>18} {'first tenth':>18} {'middle':>18} {'last tenth':>18}")
    for name, found in outcome["windows"].items():
        cells = "".join(f"{f'{median:.2f} ({late:.1f})':>19}" for median, late in found)
        print(f"{name:>18}{cells}")
    driver, simulated = outcome["driver"], outcome["simulated"]
    print(
        f"  deciding: {1e3 * driver / trials:.1f} ms a trial ({1e3 * outcome['cpu'] / trials:.1f} "
        f"of them on the CPU), {driver:.0f} s in all, "
        f"{driver / simulated:.1%} of the simulated {simulated:.0f} s"
    )
    print(
        f"  memory: {outcome['before']:.0f} MB at the start, +{outcome['memory']:.0f} MB at the "
        f"end, peak {outcome['peak']:.0f} MB"
    )
    if outcome is not ours:
        last, our_last = (each["windows"]["ask, CPU"][-1][0] for each in (outcome, ours))
        ratios = {key: outcome[key] / ours[key] for key in ("driver", "cpu", "memory")}
        print(
            f"  against csg_ray: CPU of the last asks x{last / our_last:.1f}, of all "
            f"x{ratios['cpu']:.1f}; wall x{ratios['driver']:.1f}; memory x{ratios['memory']:.1f}"
        )
        return
    print(f"  ended: {outcome['states']}; checkpoints left: {outcome['checkpoints']}")
    for name, (seconds, cpu) in outcome["after"].items():
        print(f"  {name}: {1e3 * seconds:.0f} ms, CPU {1e3 * cpu:.0f} ms")


def main() -> None:
    """Run each contender in a process of its own and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--gpus", type=int, default=1_000)
    parser.add_argument("--at", type=int, nargs="+", help="finished trials, e.g. 1000 3000 9000")
    parser.add_argument("--decisions", type=int, default=50, help="with --at: trials at each size")
    parser.add_argument("--only", choices=CONTENDERS, action="append")
    parser.add_argument("--here", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure_here(options.here, options.trials, options.gpus)))
        return
    kinds = options.only or list(CONTENDERS)
    if options.at:
        measure_at(options.at, options.decisions, options.gpus, kinds)
        return
    ours: dict[str, Any] = {}
    for kind in kinds:
        words = ["--trials", str(options.trials), "--gpus", str(options.gpus), "--here", kind]
        run = subprocess.run(
            [sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True
        )
        outcome = json.loads(run.stdout.splitlines()[-1])
        ours = ours or outcome
        show(kind, outcome, ours)


if __name__ == "__main__":
    main()
