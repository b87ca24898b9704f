"""Faults injected into trainings and studies, and what was lost: a table.

    python benchmarks/faults.py [NAME ...]

Every scenario runs in a process of its own with its own Ray; those with several nodes use Ray's
`cluster_utils`, where a node is a raylet of its own on this machine. `epochs lost` counts epochs
that were on the disk when the fault struck and are not in the end; the epoch in flight is trained
again. Hosts with networks of their own are `make test-cluster`'s.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

EPOCHS = 6
BASE = {
    "method.name": "csg",
    "train.epochs": EPOCHS,
    "data.num_train": 128,
    "data.num_val": 20,
    "augment.translate": "fraction",
}
SPACE = {
    "study": "faults",
    "base": BASE,
    "space": {"method.temperature": {"loguniform": [0.05, 0.5]}},
    "search": {
        "metric": "target_val/mean_class_accuracy",
        "mode": "max",
        "num_trials": 4,
        "scheduler": "none",
    },
}
Epochs = dict[str, list[int]]
Outcome = dict[str, Any]


def epochs_of(directory: Any) -> Epochs:
    """The epochs on the disk, trial by trial."""
    from csg_ray.results.study import load_study

    return {
        trial.id: [line["epoch"] for line in trial.results]
        for trial in load_study(directory).trials
    }


def lost_epochs(before: Epochs, after: Epochs) -> int:
    """How many were there and are not any more."""
    return sum(len(set(epochs) - set(after.get(trial, []))) for trial, epochs in before.items())


def wait_until(reached: Callable[[], bool], seconds: float = 300) -> None:
    """Poll; a fault must strike in the middle of things."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError("the scenario did not get to its fault")
        time.sleep(0.05)


def actors_named(name: str) -> list[dict[str, Any]]:
    """Living actors of a class, as Ray's control store knows them."""
    from ray._private.state import actors

    return [a for a in actors().values() if a["State"] == "ALIVE" and name in a["ActorClassName"]]


def train_through(faults: dict[int, Callable[[], None]], minimum: int = 2) -> Outcome:
    """A run of two workers; each fault strikes while the epoch after its own is trained."""
    from csg_ray.config.load import override_config
    from csg_ray.config.run import RunConfig
    from csg_ray.scale.resources import Workers
    from csg_ray.scale.trainer import train_with_workers

    seen: list[dict[str, Any]] = []

    def on_epoch(line: dict[str, Any]) -> None:
        seen.append(line)
        faults.get(line["epoch"], lambda: None)()

    with tempfile.TemporaryDirectory() as folder:
        config = override_config(RunConfig(), BASE)
        job = {"directory": folder, "config": config.model_dump(), "repeats": 1, "threads": 1}
        job["settings"] = {}
        train_with_workers(job, "faults", Workers(2, minimum, 1, 0), on_epoch)
    epochs = [line["epoch"] for line in seen]
    return {
        "finished": epochs[-1] == EPOCHS,
        "trials lost": 0,
        "epochs lost": EPOCHS - len(set(epochs)),
        "workers": " ".join(str(line["workers"]) for line in seen),
    }


def local_ray() -> None:
    """A Ray of two CPUs."""
    import ray

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)


def two_nodes() -> tuple[Any, Any]:
    """A cluster of two nodes of one CPU each, and the second of them."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    return cluster, node


def worker_killed() -> Outcome:
    """The process of rank 1 is killed in mid-epoch."""
    local_ray()
    return train_through({2: lambda: os.kill(actors_named("RayTrainWorker")[-1]["Pid"], 9)})


def first_worker_killed() -> Outcome:
    """The process of rank 0, which writes the files, is killed in mid-epoch."""
    local_ray()
    return train_through({2: lambda: os.kill(actors_named("RayTrainWorker")[0]["Pid"], 9)})


def node_lost_and_found() -> Outcome:
    """A node of an elastic run goes, and comes back: two workers, then one, then two."""
    from csg_ray.scale import trainer

    trainer.RESIZE_SECONDS = 5.0
    cluster, node = two_nodes()

    global EPOCHS
    EPOCHS, BASE["train.epochs"] = 60, 60
    return train_through(
        {
            2: lambda: cluster.remove_node(node, allow_graceful=False),
            5: lambda: cluster.add_node(num_cpus=1),
        },
        minimum=1,
    )


def search_through(directory: Any, fault: Callable[[], None], workers: int = 1) -> Outcome:
    """A study during which `fault` strikes once two epochs are on the disk."""
    from nested_trials import Watcher

    from csg_ray.scale.tuner import run_study
    from csg_ray.search_space import parse_search_space

    before: Epochs = {}

    def strike() -> None:
        wait_until(
            lambda: (
                (directory / "study.yaml").exists()
                and sum(map(len, epochs_of(directory).values())) >= 2
            )
        )
        before.update(epochs_of(directory))
        fault()

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    space = parse_search_space(SPACE | {"resources": {"workers_per_trial": workers}})
    run_study(space, directory, Watcher(), verbose=False)
    thread.join()
    return summary(directory, before)


def summary(directory: Any, before: Epochs) -> Outcome:
    """What a study looks like in the end, against what was there before the fault."""
    from csg_ray.results.study import load_study

    trials = load_study(directory).trials
    return {
        "finished": all(trial.state == "completed" for trial in trials),
        "trials lost": SPACE["search"]["num_trials"] - len(trials),  # type: ignore[index]
        "epochs lost": lost_epochs(before, epochs_of(directory)),
        "workers": "",
    }


def trial_killed() -> Outcome:
    """The process of a flat trial is killed."""
    local_ray()
    with tempfile.TemporaryDirectory() as folder:
        return search_through(
            Path(folder) / "s", lambda: os.kill(actors_named("ImplicitFunc")[0]["Pid"], 9)
        )


def nested_trial_killed() -> Outcome:
    """The process that steers a nested trial is killed, with its workers at work."""
    local_ray()
    with tempfile.TemporaryDirectory() as folder:
        return search_through(
            Path(folder) / "s", lambda: os.kill(actors_named("ImplicitFunc")[0]["Pid"], 9), 2
        )


def node_lost() -> Outcome:
    """A node of a study is removed, and does not come back."""
    cluster, node = two_nodes()
    with tempfile.TemporaryDirectory() as folder:
        return search_through(
            Path(folder) / "s", lambda: cluster.remove_node(node, allow_graceful=False)
        )


def killed_and_restored(study: str, directory: Any, folder: Path, workers: int) -> Outcome:
    """`csg-ray search` is killed with all its processes, its folder deleted; then `restore`."""
    home = folder / "head"
    home.mkdir()
    space = home / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE | {"resources": {"workers_per_trial": workers}}))
    command = [sys.executable, "-m", "csg_ray"]
    search = subprocess.Popen(
        [*command, "search", str(space), "--study", study],
        cwd=home,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(
        lambda: (
            (directory / "study.yaml").exists()
            and sum(map(len, epochs_of(directory).values())) >= 3
        )
    )
    os.killpg(search.pid, signal.SIGKILL)
    search.wait()
    before = epochs_of(directory)
    shutil.rmtree(home)
    subprocess.run([*command, "restore", study], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return summary(directory, before)


def driver_killed() -> Outcome:
    """The driver of a nested study is killed with its trials, then restored."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return killed_and_restored(str(folder / "s"), folder / "s", folder, workers=2)


def head_lost() -> Outcome:
    """The head goes with its disk; the study is on an S3-compatible server."""
    from moto.server import ThreadedMotoServer

    from csg_ray.storage.paths import open_path

    os.environ |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    place = f"?endpoint_override={endpoint}&region=us-east-1"
    from pyarrow.fs import S3FileSystem

    S3FileSystem(
        endpoint_override=endpoint, region="us-east-1", allow_bucket_creation=True
    ).create_dir("bucket")
    study = f"s3://bucket/s{place}"
    with tempfile.TemporaryDirectory() as folder:
        return killed_and_restored(study, open_path(study), Path(folder), workers=1)


SCENARIOS: dict[str, Callable[[], Outcome]] = {
    scenario.__name__: scenario
    for scenario in (
        worker_killed,
        first_worker_killed,
        node_lost_and_found,
        trial_killed,
        nested_trial_killed,
        node_lost,
        driver_killed,
        head_lost,
    )
}


def main() -> None:
    """Run every scenario in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", choices=[*SCENARIOS, []], default=list(SCENARIOS))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(SCENARIOS[arguments.names[0]]()), flush=True)
        return
    print("| fault | finished | trials lost | epochs lost | seconds |\n|---|---|---|---|---|")
    for name in arguments.names:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, __file__, "--here", name], capture_output=True, text=True
        )
        # Ray may have more to say after it, and may stumble over a dead node when it leaves.
        outcomes = [line for line in done.stdout.splitlines() if line.startswith('{"finished"')]
        found = json.loads(outcomes[0]) if outcomes else {}
        what = (SCENARIOS[name].__doc__ or "").strip().rstrip(".")
        workers = f"; workers in each epoch: {found['workers']}" if found.get("workers") else ""
        cells = [found.get(key, "?") for key in ("finished", "trials lost", "epochs lost")]
        print(
            f"| {what}{workers} | {' | '.join(map(str, cells))} | {time.monotonic() - began:.0f} |",
            flush=True,
        )
        if not outcomes:
            print(done.stderr[-2000:], file=sys.stderr)


if __name__ == "__main__":
    main()
