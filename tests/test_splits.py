from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from csg_ray.data.splits import ArraySplit, DomainSplits, SealedSplit
from csg_ray.storage.ledger import read_ledger
from csg_ray.storage.paths import RemotePath, StoragePath
from csg_ray.storage.stores import StorageError
from s3_server import S3Server


def small_split(name: str, level: int) -> ArraySplit:
    images = np.full((3, 4, 4), level, np.uint8)
    return ArraySplit(name, images, torch.tensor([0, 1, 0]), ("zero", "one"))


class Vault:
    """Loads a split and keeps what the ledger held at that moment."""

    def __init__(self, ledger: StoragePath, level: int = 7) -> None:
        self.ledger = ledger
        self.split = small_split("target_test", level)
        self.lines_at_load: list[int] = []

    def load(self) -> ArraySplit:
        self.lines_at_load.append(len(read_ledger(self.ledger)))
        return self.split

    def sealed(self) -> SealedSplit:
        return SealedSplit("target_test", self.split.fingerprint, self.load)


def test_images_are_rgb_and_read_by_position() -> None:
    split = small_split("source_val", 9)
    assert len(split) == 3
    assert split.image(2).mode == "RGB"
    assert np.asarray(split.image(2)).tolist() == np.full((4, 4, 3), 9).tolist()


def test_fingerprint_follows_every_part_of_the_content_and_nothing_else() -> None:
    split = small_split("a", 9)
    same = {split.fingerprint, small_split("b", 9).fingerprint}
    changed = [
        small_split("a", 8),
        dataclasses.replace(split, labels=torch.tensor([0, 1, 1])),
        dataclasses.replace(split, class_names=("zero", "two")),
        dataclasses.replace(split, images=split.images.reshape(3, 2, 8)),
    ]
    assert len(same) == 1
    assert len({item.fingerprint for item in changed} | same) == 5


def test_domain_fingerprint_covers_all_five_splits(tmp_path: Path) -> None:
    def splits(levels: tuple[int, int, int, int | None, int]) -> DomainSplits:
        source_train, source_val, target_val, target_train, target_test = levels
        return DomainSplits(
            small_split("source_train", source_train),
            small_split("source_val", source_val),
            small_split("target_val", target_val),
            None if target_train is None else small_split("target_train", target_train),
            Vault(tmp_path / "ledger", target_test).sealed(),
        )

    base = (1, 2, 3, 4, 5)
    variants = [base, (9, 2, 3, 4, 5), (1, 9, 3, 4, 5), (1, 2, 9, 4, 5), (1, 2, 3, 9, 5)]
    others = [(1, 2, 3, 4, 9), (1, 2, 3, None, 5)]
    prints = {splits(levels).fingerprint for levels in [*variants, *others]}
    assert len(prints) == 7
    assert splits(base).fingerprint in prints
    assert splits(base).class_names == ("zero", "one")


def test_opening_writes_the_ledger_before_it_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    vault = Vault(tmp_path / "ledger.jsonl")
    split, earlier = vault.sealed().open(vault.ledger, "final evaluation")
    assert split is vault.split
    assert earlier == []
    assert vault.lines_at_load == [1]
    assert len(synced) == 1
    [entry] = read_ledger(vault.ledger)
    assert set(entry) == {"fingerprint", "opened_at", "user", "reason"}
    assert entry["fingerprint"] == vault.split.fingerprint
    assert entry["reason"] == "final evaluation"
    assert entry["opened_at"].endswith("+00:00")


def test_later_openings_name_the_earlier_ones_of_the_same_content(place: StoragePath) -> None:
    ledger = place / "ledger.jsonl"
    vault, other = Vault(ledger, 7), Vault(ledger, 8)
    vault.sealed().open(ledger, "first")
    other.sealed().open(ledger, "another split")
    _, earlier = vault.sealed().open(ledger, "second")
    assert [entry["reason"] for entry in earlier] == ["first"]
    assert [entry["reason"] for entry in read_ledger(ledger)] == [
        "first",
        "another split",
        "second",
    ]
    assert vault.lines_at_load == [1, 3]


def test_on_a_uri_each_opening_is_an_object_of_its_own(uri: RemotePath) -> None:
    """So two that open at once cannot hide each other's entry."""
    vault = Vault(uri / "ledger.jsonl")
    for reason in ("first", "second"):
        vault.sealed().open(vault.ledger, reason)
    objects = list((uri / "ledger").iterdir())
    assert [json.loads(path.read_text())["reason"] for path in objects] == ["first", "second"]


def test_nothing_loads_when_the_store_refuses_the_entry(s3: S3Server, uri: RemotePath) -> None:
    vault = Vault(uri / "ledger.jsonl")
    s3.fault = lambda request: "403 AccessDenied" if request.startswith("PUT") else None
    with pytest.raises(StorageError, match="access is denied"):
        vault.sealed().open(vault.ledger, "no rights")
    assert vault.lines_at_load == []


def test_nothing_loads_when_the_ledger_cannot_be_written(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "missing" / "ledger.jsonl")
    with pytest.raises(FileNotFoundError):
        vault.sealed().open(vault.ledger, "no ledger")
    assert vault.lines_at_load == []


def test_nothing_loads_when_the_line_does_not_reach_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    vault = Vault(tmp_path / "ledger.jsonl")
    with pytest.raises(OSError, match="no space left"):
        vault.sealed().open(vault.ledger, "disk full")
    assert vault.lines_at_load == []


def test_a_torn_last_line_is_kept_apart_from_the_next(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    vault = Vault(ledger)
    vault.sealed().open(ledger, "whole")
    with ledger.open("a") as file:
        file.write('{"fingerprint": "')
    vault.sealed().open(ledger, "after the crash")
    _, earlier = vault.sealed().open(ledger, "last")
    assert [entry["reason"] for entry in earlier] == ["whole", "after the crash"]


def test_sealed_split_carries_no_image_and_no_label(tmp_path: Path) -> None:
    sealed = Vault(tmp_path / "ledger.jsonl").sealed()
    public = {name for name in dir(sealed) if not name.startswith("_")}
    assert public == {"name", "fingerprint", "open"}
    values = vars(sealed).values()
    assert not any(isinstance(value, ArraySplit | np.ndarray | torch.Tensor) for value in values)


def test_other_content_than_the_fingerprint_promised_is_refused(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    vault = Vault(ledger)
    sealed = SealedSplit("target_test", "0" * 64, vault.load)
    with pytest.raises(AssertionError):
        sealed.open(ledger, "changed data")
