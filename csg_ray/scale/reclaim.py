"""Resources of nested trials that were stopped: freed within a second, whatever state they were in.

Ray frees a placement group when its creator and its job are both gone. Ray Train creates one in a
controller that dies with its trial, while the job, which is the whole study, lives on: the CPUs and
GPUs of every trial that ASHA stops would stay taken, pending groups included.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ray import ActorID, PlacementGroupID, get_runtime_context
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.util.placement_group import PlacementGroup, remove_placement_group

SWEEP_SECONDS = 0.5


@contextmanager
def reclaiming() -> Iterator[None]:
    """Remove orphaned placement groups of this job for as long as the block takes, and once after.

    One sweep is one request to Ray's control store.
    """
    done = threading.Event()

    def sweep() -> None:
        while not done.wait(SWEEP_SECONDS):
            remove_orphans()

    thread = threading.Thread(target=sweep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        remove_orphans()


def remove_orphans() -> int:
    """Remove the placement groups of this job whose creator is dead; how many there were."""
    orphans = [
        group
        for group in _groups_of_this_job()
        # Those that the study itself made for Tune's trials have no creating actor.
        if group.creator_actor_dead and not ActorID(group.creator_actor_id).is_nil()
    ]
    for group in orphans:
        remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
    return len(orphans)


def _groups_of_this_job() -> list[PlacementGroupTableData]:
    job = bytes.fromhex(get_runtime_context().get_job_id())
    rows = state._connect_and_get_accessor().get_placement_group_table()
    groups = [PlacementGroupTableData.FromString(row) for row in rows]
    return [
        group
        for group in groups
        if group.creator_job_id == job and group.state != PlacementGroupTableData.REMOVED
    ]
