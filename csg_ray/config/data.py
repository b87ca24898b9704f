"""Settings of each task. One class per task, told apart by its literal `name`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from csg_ray.config.methods import Section

Task = Literal["classification", "segmentation"]

NO_SEALED_SPLIT = (
    "published protocol: target_val is the whole target set, and no target_test is sealed"
)

TRANSDUCTIVE = "target_train holds the images of target_val, without their labels, as published"


class TaskConfig(Section):
    """What every task has.

    Attributes:
        task: what is predicted: a class per image, or one per pixel.
    """

    task: ClassVar[Task] = "classification"

    workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = Field(
        "auto",
        description="loader processes; 0: in the training process; auto: 0, but the processors "
        "of a training on a GPU except one, where images are files",
    )

    @property
    def notes(self) -> tuple[str, ...]:
        """What every output about these data has to say."""
        return ()


class DigitsConfig(TaskConfig):
    """Digits rendered from fonts to real handwritten ones, made on this machine."""

    image_size: ClassVar[int] = 32
    name: Literal["digits"] = "digits"
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the glyphs and of the target's split")
    num_train: int = Field(2000, ge=10, le=1_000_000, description="source_train images")
    num_val: int = Field(500, ge=10, le=100_000, description="source_val images")


class SegmentationConfig(TaskConfig):
    """How training cuts a square out of an image and its label map, both alike."""

    task: ClassVar[Task] = "segmentation"
    flip: bool = Field(True, description="horizontally, every other image")
    min_scale: float = Field(0.75, gt=0, le=10, description="of the image, drawn anew every time")
    max_scale: float = Field(1.25, gt=0, le=10, description="the largest, at least min_scale")

    @model_validator(mode="after")
    def _ordered_scales(self) -> SegmentationConfig:
        if self.min_scale > self.max_scale:
            raise ValueError(
                f"data.min_scale {self.min_scale:g} is above data.max_scale {self.max_scale:g}; "
                "exchange them"
            )
        return self


class DigitScenesConfig(SegmentationConfig):
    """Digits on a canvas with a class for every pixel: rendered to handwritten."""

    canvas_size: ClassVar[int] = 64
    name: Literal["digit_scenes"] = "digit_scenes"
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the scenes and of the target's split")
    num_train: int = Field(1000, ge=10, le=1_000_000, description="source_train scenes")
    num_val: int = Field(200, ge=10, le=100_000, description="scenes of every other split")
    image_size: int = Field(48, ge=16, le=64, description="side of the crop out of 64")
    flip: bool = Field(False, description="horizontally, every other image; a digit is no mirror")

    @model_validator(mode="after")
    def _crop_fits(self) -> DigitScenesConfig:
        smallest = round(self.min_scale * self.canvas_size)
        if smallest < self.image_size:
            raise ValueError(
                f"data.image_size is {self.image_size}, but a scene has {smallest} pixels a side "
                f"at data.min_scale {self.min_scale:g}; lower image_size, or raise min_scale"
            )
        return self


class FilesConfig(TaskConfig):
    """Tasks whose images are files: they are decoded once, into a cache that all trials share."""

    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the splits")
    cache: str = Field(
        "auto",
        min_length=1,
        description="folder of the decoded images; auto: $CSG_RAY_CACHE or ~/.cache/csg_ray; off",
    )
    max_unreadable: float = Field(
        0.001, ge=0, le=1, description="share of damaged images that may be left out of the cache"
    )
    max_side: Annotated[int, Field(ge=8)] | None = Field(
        None, description="a longer shorter side is scaled down to it in the cache; not published"
    )

    @model_validator(mode="after")
    def _limit_needs_cache(self) -> FilesConfig:
        if self.max_side is not None and self.cache == "off":
            raise ValueError(
                "data.max_side limits the images in the cache, but data.cache is off; "
                "remove one of the two"
            )
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """What every output about these data has to say."""
        if self.max_side is None:
            return super().notes
        limit = f"images of at most {self.max_side} pixels on the shorter side, not as published"
        return (*super().notes, limit)


class PublishedConfig(FilesConfig):
    """Tasks of the paper, which can be split as the paper has them.

    Attributes:
        published_source_val: whether they hold a source_val out then, too.
    """

    published_source_val: ClassVar[bool] = False
    protocol: Literal["sealed", "published"] = Field(
        "sealed", description="sealed: our splits; published: target_val is all, nothing is sealed"
    )

    @property
    def notes(self) -> tuple[str, ...]:
        """What every output about these data has to say."""
        published = (NO_SEALED_SPLIT,) if self.protocol == "published" else ()
        return (*published, *super().notes)


class ImageFolderConfig(FilesConfig):
    """Any two trees of class folders, their classes matched by name."""

    name: Literal["image_folder"] = "image_folder"
    source: str = Field(min_length=1, description="folder that holds a folder for each class")
    target: str = Field(min_length=1, description="the same of the real images")
    lists: str | None = Field(
        None,
        min_length=1,
        description="folder with a list file for each split; null: by seed and share",
    )
    source_val_share: float = Field(0.1, gt=0, lt=1, description="of the source's images")
    target_val_share: float = Field(0.5, gt=0, lt=1, description="of the target's images")
    target_train_share: float = Field(
        0.0, ge=0, lt=1, description="of the target's images, without labels"
    )
    image_size: int = Field(224, ge=8, le=4096, description="S, shorter side and crop")

    @model_validator(mode="after")
    def _something_left(self) -> ImageFolderConfig:
        _check_target_shares(self.target_val_share, self.target_train_share)
        return self


def _check_target_shares(target_val: float, target_train: float) -> None:
    if target_val + target_train >= 1:
        raise ValueError(
            f"data.target_val_share {target_val:g} and data.target_train_share {target_train:g} "
            "leave nothing for target_test; lower one"
        )


class VisDA17Config(PublishedConfig):
    """VisDA-17 classification (Peng et al. 2017): renders to crops out of COCO, 12 classes."""

    name: Literal["visda17"] = "visda17"
    root: str = Field(min_length=1, description="folder with train and validation in it")
    source_val_share: float = Field(0.02, gt=0, lt=1, description="of train; published: none")
    target_val_share: float = Field(0.5, gt=0, lt=1, description="of validation; published: all")
    target_train_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="of validation, without labels; published: if above 0 all of it",
    )
    image_size: int = Field(224, ge=8, le=4096, description="S, shorter side and crop")

    @model_validator(mode="after")
    def _something_left(self) -> VisDA17Config:
        _check_target_shares(self.target_val_share, self.target_train_share)
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """What every output about these data has to say."""
        same = self.protocol == "published" and self.target_train_share > 0
        return (*super().notes, TRANSDUCTIVE) if same else super().notes


class GTA5CityscapesConfig(PublishedConfig, SegmentationConfig):
    """From GTA5 (Richter et al. 2016) to Cityscapes (Cordts et al. 2016), 19 classes."""

    published_source_val: ClassVar[bool] = True  # GTA5 has its own validation images
    name: Literal["gta5_cityscapes"] = "gta5_cityscapes"
    gta5: str = Field(min_length=1, description="folder with images, labels and split.mat in it")
    cityscapes: str = Field(min_length=1, description="folder with leftImg8bit and gtFine in it")
    source_list: Literal["train", "full"] = Field(
        "train", description="GTA5's own 12,403 training images, or all but its validation images"
    )
    num_source_val: int = Field(500, ge=1, description="of GTA5's own validation images, at most")
    image_size: int = Field(512, ge=16, le=4096, description="side of the crop")


def has_sealed_split(config: TaskConfig) -> bool:
    """Whether there is a target_test to open at the end."""
    return NO_SEALED_SPLIT not in config.notes


def lacks_target_train(config: TaskConfig) -> str | None:
    """What to do about a task without unlabelled target images; None where it has some."""
    if isinstance(config, GTA5CityscapesConfig) and config.protocol == "published":
        return "set data.protocol to sealed"
    if isinstance(config, ImageFolderConfig) and config.lists is not None:
        return None  # in a list of its own, or refused when it is read
    if isinstance(config, ImageFolderConfig | VisDA17Config) and config.target_train_share == 0:
        return "set data.target_train_share to a share of its images"
    return None


def measured_splits(config: TaskConfig) -> tuple[str, ...]:
    """The splits that are measured after every epoch."""
    if isinstance(config, PublishedConfig) and config.protocol == "published":
        return ("source_val", "target_val") if config.published_source_val else ("target_val",)
    return ("source_val", "target_val")


DataConfig = Annotated[
    DigitsConfig | DigitScenesConfig | ImageFolderConfig | VisDA17Config | GTA5CityscapesConfig,
    Field(discriminator="name"),
]
DATA_CONFIGS: dict[str, type[TaskConfig]] = {
    "digits": DigitsConfig,
    "digit_scenes": DigitScenesConfig,
    "image_folder": ImageFolderConfig,
    "visda17": VisDA17Config,
    "gta5_cityscapes": GTA5CityscapesConfig,
}
