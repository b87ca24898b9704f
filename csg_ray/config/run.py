"""RunConfig: everything one training depends on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from csg_ray.config.methods import CSGConfig, MethodConfig, Section


class DataConfig(Section):
    """Which images. `num_train` and `seed` matter for tasks that are rendered or split here."""

    name: Literal["digits"] = "digits"
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the glyphs and of the target's split")
    num_train: int = Field(2000, ge=10, le=1_000_000, description="source_train images")
    num_val: int = Field(500, ge=10, le=100_000, description="source_val images")
    workers: int = Field(
        0, ge=0, le=256, description="loader processes; 0: in the training process"
    )


class ModelConfig(Section):
    """The encoder, its reference, and the task head."""

    name: Literal["mini", "resnet18", "resnet34", "resnet50", "resnet101"] = "mini"
    weights: str = Field("bundled", description="bundled (mini) | imagenet | none | path of a file")
    norm: Literal["batch", "ibn_a", "ibn_b"] = "batch"
    head: Literal["mlp", "linear"] = "mlp"
    head_width: int = Field(512, ge=1, le=65536, description="hidden units of the mlp head")
    freeze_batch_norm: bool = Field(True, description="keep the pre-trained running statistics")
    train_batch_norm_affine: bool = True


class AugmentConfig(Section):
    """RandAugment (Cubuk et al. 2020) in the authors' variant or torchvision's."""

    implementation: Literal["authors", "torchvision"] = "authors"
    num_ops: int = Field(1, ge=0, le=14, description="N; 0 turns augmentation off")
    magnitude: float = Field(6.0, ge=0, le=30, description="M")
    translate: Literal["pixels", "fraction"] = Field(
        "pixels", description="pixels at raw resolution, or a fraction of the side"
    )
    views: Literal["independent", "shared"] = Field(
        "independent", description="query and key from two draws, or from one"
    )

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

    epochs: int = Field(30, ge=1, le=100_000)
    batch_size: int = Field(32, ge=1, le=65536)
    learning_rate: float = Field(1e-4, gt=0, le=100, description="of the heads")
    backbone_lr_mult: float = Field(0.1, ge=0, le=100)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, le=1)
    sgd_form: Literal["pytorch", "lr_in_buffer"] = "pytorch"
    warmup_steps: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="auto: min(100, 5 % of the steps)"
    )
    decay_power: float = Field(0.9, ge=0, le=10)
    decay_floor: float = Field(
        0.0, ge=0, lt=1, description="ASG clips t/T at 1 - floor (0.2 there)"
    )
    max_gradient_norm: float = Field(1e4, gt=0, description="a larger gradient skips the step")
    max_skipped_steps: int = Field(20, ge=1, description="so many skipped in a row end the trial")


class EvaluationConfig(Section):
    """How the metrics are measured."""

    batch_size: int = Field(256, ge=1, le=65536)
    flip: bool = Field(
        False, description="average sigmoid scores over horizontal flips (VisDA: true)"
    )
    hse_max_images: int = Field(10_000, ge=2, description="a fixed subsample of a larger split")


class RunConfig(Section):
    """One training. `seed` seeds all but the data, whose own seed stays put over repeats."""

    seed: int = Field(0, ge=0, le=2**32 - 1)
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = CSGConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.model.weights == "bundled" and self.model.name != "mini":
            raise ValueError(
                "model.weights 'bundled' exists for model.name 'mini' only, "
                f"not '{self.model.name}'; "
                "set model.weights to imagenet, none, or the path of a file"
            )
        if self.model.weights == "imagenet" and self.model.name == "mini":
            raise ValueError(
                "model.weights 'imagenet' does not exist for 'mini'; set it to bundled"
            )
        return self

    def inert_settings(self) -> dict[str, str]:
        """Dotted paths of settings that change nothing here, each with the reason why."""
        inert: dict[str, str] = {}
        augment = self.augment
        if augment.num_ops == 0:
            for name in ("implementation", "magnitude", "translate", "views"):
                inert[f"augment.{name}"] = "augment.num_ops is 0"
        elif augment.implementation == "torchvision":
            inert["augment.translate"] = "augment.implementation is torchvision"
        method = self.method
        if isinstance(method, CSGConfig):
            inert |= _inert_csg_settings(method)
        else:
            inert["augment.views"] = f"method {method.name} uses one view"
        if self.model.head == "linear":
            inert["model.head_width"] = "model.head is linear"
        return inert


def _inert_csg_settings(method: CSGConfig) -> dict[str, str]:
    if method.loss_weight == 0:
        names = set(CSGConfig.model_fields) - {"name", "loss_weight"}
        return {f"method.{name}": "method.loss_weight is 0" for name in names}
    if method.pooling == "mean":
        return {
            f"method.{name}": "method.pooling is mean"
            for name in ("attention_from", "detach_attention")
        }
    return {}
