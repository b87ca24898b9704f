"""Any two trees of class folders: PACS, Office-Home, DomainNet, or one's own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from csg_ray.config.data import ImageFolderConfig
from csg_ray.config.errors import UserError
from csg_ray.data.class_folders import (
    LabelledFiles,
    list_folders,
    list_images,
    shuffled,
    split_by_share,
)
from csg_ray.data.file_splits import SplitFiles, TaskFiles
from csg_ray.data.list_files import check_listed, read_list

OPTIONAL = "target_train"
SPLITS = ("source_train", "source_val", "target_val", "target_test", OPTIONAL)


def list_image_folders(config: ImageFolderConfig) -> TaskFiles:
    """The files of the splits, classes matched by the names of their folders.

    Raises:
        UserError: a missing folder or list, classes that differ, a class without images.
    """
    roots = {
        "source": Path(config.source).expanduser(),
        "target": Path(config.target).expanduser(),
    }
    classes = {name: list_folders(root, f"data.{name}") for name, root in roots.items()}
    _check_same(classes["source"], classes["target"], roots)
    class_names = tuple(classes["source"])
    domains = {name: list_images(root, class_names) for name, root in roots.items()}
    if config.lists is not None:
        lists = Path(config.lists).expanduser()
        splits = _splits_by_list(lists, domains, class_names, config.seed)
    else:
        splits = _splits_by_share(config, domains, class_names)
    if OPTIONAL in splits:
        splits[OPTIONAL] = splits[OPTIONAL].without_labels()
    return TaskFiles(class_names, splits)


def _check_same(source: list[str], target: list[str], roots: dict[str, Path]) -> None:
    for extra, here, other in (
        (sorted(set(source) - set(target)), "source", "target"),
        (sorted(set(target) - set(source)), "target", "source"),
    ):
        if extra:
            raise UserError(
                f"data.source and data.target must hold the same classes, but {roots[other]} has "
                f"no folder {', '.join(extra[:5])} of {roots[here]}; rename or remove it"
            )


def _splits_by_share(
    config: ImageFolderConfig, domains: dict[str, LabelledFiles], class_names: tuple[str, ...]
) -> dict[str, SplitFiles]:
    source, target = domains["source"], domains["target"]
    shares = {"target_val": config.target_val_share}
    if config.target_train_share > 0:
        shares[OPTIONAL] = config.target_train_share
    held_out = {"source_val": config.source_val_share}
    return split_by_share(
        source, class_names, held_out, "source_train", config.seed
    ) | split_by_share(target, class_names, shares, "target_test", config.seed)


def _splits_by_list(
    folder: Path, domains: dict[str, LabelledFiles], class_names: tuple[str, ...], seed: int
) -> dict[str, SplitFiles]:
    """The splits that the list files name; no file may be in two of them."""
    splits: dict[str, SplitFiles] = {}
    for split in SPLITS:
        path = folder / f"{split}.txt"
        if split == OPTIONAL and not path.is_file():
            continue
        files = domains[split.partition("_")[0]]
        positions = {image: position for position, image in enumerate(files.images)}
        names = read_list(path)
        check_listed(files.root, names, path)
        for name in names:
            if name not in positions:
                raise UserError(
                    f"{path} names {name}, which is no image in a class folder of {files.root}; "
                    f"the classes are {', '.join(class_names)}"
                )
        listed = [positions[name] for name in names]
        # So that the place of an unlabelled image says nothing of its class.
        order = shuffled(listed, seed, split) if split == OPTIONAL else listed
        splits[split] = files.pick(order)
    _check_disjoint(splits, folder)
    return splits


def _check_disjoint(splits: dict[str, SplitFiles], folder: Path) -> None:
    counts = Counter(
        (split.files.root, image) for split in splits.values() for image in split.files.images
    )
    (file, count), *_ = counts.most_common(1)
    if count > 1:
        raise UserError(f"the lists in {folder} name {file[1]} in two splits; remove it from one")
