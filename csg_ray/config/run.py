"""RunConfig: everything one training depends on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from csg_ray.config.data import DataConfig, DigitsConfig, Task
from csg_ray.config.effects import first_contradiction, inert_settings
from csg_ray.config.methods import CSGConfig, MethodConfig, Section

SCORES: dict[Task, str] = {
    "classification": "mean_class_accuracy",
    "segmentation": "mean_iou",
}


class ModelConfig(Section):
    """The encoder, its reference, and the task head."""

    name: Literal["mini", "resnet18", "resnet34", "resnet50", "resnet101"] = Field(
        "mini", description="the encoder; mini is small, pre-trained at 32 pixels"
    )
    weights: str = Field("bundled", description="bundled (mini) | imagenet | none | path of a file")
    norm: Literal["batch", "ibn_a", "ibn_b"] = Field(
        "batch", description="BatchNorm alone, or IBN-Net's variant a or b (Pan et al. 2018)"
    )
    head: Literal["mlp", "linear", "aspp_v3", "deeplabv2", "fcn"] = Field(
        "mlp", description="mlp | linear; of segmentation aspp_v3 (published) | deeplabv2 | fcn"
    )
    head_width: int = Field(512, ge=1, le=65536, description="hidden units of the mlp head")
    freeze_batch_norm: bool = Field(True, description="keep the pre-trained running statistics")
    train_batch_norm_affine: bool = Field(
        True, description="train scale and shift of the encoder's BatchNorm"
    )


class AugmentConfig(Section):
    """RandAugment (Cubuk et al. 2020) in the authors' variant or torchvision's, or colour jitter.

    In segmentation it changes colours only, and those of the key view alone.
    """

    implementation: Literal["authors", "torchvision", "color_jitter"] = Field(
        "authors", description="color_jitter: the published one of segmentation, and only there"
    )
    num_ops: int = Field(1, ge=0, le=14, description="N; 0 turns augmentation off")
    magnitude: float = Field(6.0, ge=0, le=30, description="M")
    translate: Literal["pixels", "fraction"] = Field(
        "pixels", description="pixels at raw resolution, or a fraction of the side"
    )
    views: Literal["independent", "shared"] = Field(
        "independent", description="query and key from two draws, or from one"
    )
    jitter: float = Field(0.4, ge=0, le=0.5, description="of brightness, contrast, colour and hue")

    @model_validator(mode="after")
    def _whole_bins(self) -> AugmentConfig:
        if self.implementation == "torchvision" and not self.magnitude.is_integer():
            raise ValueError(
                f"augment.magnitude {self.magnitude} is not a whole number, as torchvision's bins "
                "0 to 30 are; round it, or set augment.implementation to authors"
            )
        return self


class TrainConfig(Section):
    """Optimiser, schedule, and the guard against divergence."""

    epochs: int = Field(30, ge=1, le=100_000, description="the full budget of a training")
    batch_size: int = Field(32, ge=1, le=65536, description="images in a step, of all workers")
    steps_per_epoch: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="batches drawn with replacement; auto: every image once"
    )
    learning_rate: float = Field(1e-4, gt=0, le=100, description="of the heads")
    backbone_lr_mult: float = Field(
        0.1, ge=0, le=100, description="the encoder's learning rate, as a multiple of the heads'"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(
        5e-4, ge=0, le=1, description="of every trained parameter, BatchNorm and biases too"
    )
    sgd_form: Literal["pytorch", "lr_in_buffer"] = Field(
        "pytorch",
        description="lr_in_buffer: the momentum buffer holds the rate, as the authors' does",
    )
    warmup_steps: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="auto: min(100, 5 % of the steps)"
    )
    decay_power: float = Field(0.9, ge=0, le=10, description="of (1 - t/T); 0: a constant rate")
    decay_floor: float = Field(
        0.0, ge=0, lt=1, description="ASG clips t/T at 1 - floor (0.2 there)"
    )
    max_gradient_norm: float = Field(1e4, gt=0, description="a larger gradient skips the step")
    max_skipped_steps: int = Field(20, ge=1, description="so many skipped in a row end the trial")


class ComputeConfig(Section):
    """How it is computed: speed and rounding, not what is computed. Measured: benchmarks/README.md.

    Whatever the precision, losses, queries, keys, queues, averages and weights are in float32.
    """

    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        "auto", description="of the encoders; auto: bf16 on GPUs that have it, else fp32"
    )
    channels_last: bool = Field(True, description="keep the channels of a position together")
    fold_batch_norm: bool = Field(
        True, description="frozen BatchNorm as part of the convolution before it"
    )


class EvaluationConfig(Section):
    """How the metrics are measured."""

    batch_size: int = Field(256, ge=1, le=65536, description="images at a time; memory and speed")
    flip: bool = Field(
        False, description="average sigmoid scores over horizontal flips (VisDA: true)"
    )
    window: Annotated[int, Field(ge=16)] | None = Field(
        None, description="segment in overlapping windows of this side; null: the whole image"
    )
    reference_images: str | None = Field(
        None,
        min_length=1,
        description="folder of photographs of the pre-training classes, a folder for each class, "
        "in their order by name; measures reference_task/accuracy",
    )
    hse_max_images: int = Field(10_000, ge=2, description="a fixed subsample of a larger split")


class RunConfig(Section):
    """One training. `seed` seeds all but the data, whose own seed stays put over repeats."""

    seed: int = Field(0, ge=0, le=2**32 - 1, description="of everything but the data")
    data: DataConfig = DigitsConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = CSGConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    compute: ComputeConfig = ComputeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if contradiction := first_contradiction(self):
            raise ValueError(contradiction)
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """What every output about this run has to say: of its data, and of its method."""
        return (*self.data.notes, *self.method.notes)

    @property
    def draws_two_views(self) -> bool:
        """Whether query and key see differently augmented images."""
        independent = self.data.task == "segmentation" or self.augment.views == "independent"
        return self.augment.num_ops > 0 and independent

    @property
    def score(self) -> str:
        """The metric of the task: what a split's accuracy is."""
        return SCORES[self.data.task]

    def inert_settings(self) -> dict[str, str]:
        """Dotted paths of settings that change nothing here, each with the reason why."""
        return inert_settings(self)
