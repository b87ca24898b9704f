"""Settings of each method. One class per method, told apart by its literal `name`."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

SEES_TARGET = (
    "self-training (cbst, mrkld, lrent) sees unlabelled images of the target: not to be compared "
    "with methods that do not"
)


class Section(BaseModel):
    """A strict, frozen group of settings: unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class MethodSection(Section):
    """What every method has.

    Attributes:
        notes: what every output about this method has to say.
    """

    notes: ClassVar[tuple[str, ...]] = ()


def normalise_stages(value: Any) -> str:
    """Stage numbers as text, ascending: 4 -> "4", "4, 3" -> "3,4"."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"must be stage numbers such as '3,4', not {value!r}")
    parts = [part.strip() for part in str(value).split(",")]
    if not set(parts) <= {"1", "2", "3", "4"} or len(set(parts)) != len(parts):
        raise ValueError(f"must be different stages out of 1, 2, 3, 4 such as '3,4', not {value!r}")
    return ",".join(sorted(parts))


def _stage_numbers(stages: str) -> tuple[int, ...]:
    return tuple(int(part) for part in stages.split(","))


class VanillaConfig(MethodSection):
    """Cross-entropy on the source alone."""

    name: Literal["vanilla"] = "vanilla"


class OracleConfig(MethodSection):
    """A new head on the pre-trained encoder, which stays as it is."""

    name: Literal["oracle"] = "oracle"


class WeightL2Config(MethodSection):
    """Cross-entropy, and the squared distance of the encoder's weights from the pre-trained ones.

    The strength behind the paper's row was not published.
    """

    name: Literal["weight_l2"] = "weight_l2"
    loss_weight: float = Field(
        0.1, ge=0, le=1e6, description="a of (a/2) * the squared distance; not published"
    )


class SynapticIntelligenceConfig(MethodSection):
    """Synaptic intelligence (Zenke et al., ICML 2017): each weight held by what it has done.

    How the paper obtained the importances, and the strength, were not published. Here they come
    from the training on the source itself.
    """

    name: Literal["synaptic_intelligence"] = "synaptic_intelligence"
    loss_weight: float = Field(
        1.0, ge=0, le=1e6, description="c of c * sum of importance * squared distance"
    )
    damping: float = Field(
        0.1, gt=0, le=1e6, description="xi, keeps the importance of a still weight finite"
    )


class FeatureL2Config(MethodSection):
    """The distillation of ROAD (Chen et al., CVPR 2018) on source images: squared feature distance.

    The strength behind the paper's row was not published.
    """

    name: Literal["feature_l2"] = "feature_l2"
    loss_weight: float = Field(1.0, ge=0, le=1e6, description="of the mean squared distance")
    stages: str = Field("4", description="the stages whose maps are compared")

    _normalise_stages = field_validator("stages", mode="before")(normalise_stages)

    def stage_numbers(self) -> tuple[int, ...]:
        """The stages as numbers, ascending."""
        return _stage_numbers(self.stages)


class ASGConfig(MethodSection):
    """Automated Synthetic-to-Real Generalization (Chen et al., ICML 2020), its proxy guidance."""

    name: Literal["asg"] = "asg"
    loss_weight: float = Field(
        0.1, ge=0, le=1e6, description="lambda of the KL divergence; published for segmentation: 75"
    )


class ASGL2OConfig(MethodSection):
    """ASG with learning rates that a policy sets, one for each parameter group ("L2O").

    The first epochs are episodes from which the policy learns; then the training starts anew. The
    reward of the paper's policy was never published, `reward` is one of ours. Published with it:
    train.backbone_lr_mult 1.0, warmup_steps 0, decay_power 0.0 and sgd_form lr_in_buffer.
    """

    notes: ClassVar[tuple[str, ...]] = (
        "asg_l2o: the policy is re-trained here, and its reward (method.reward) is our own: the "
        "paper's was never published",
    )

    name: Literal["asg_l2o"] = "asg_l2o"
    loss_weight: float = Field(0.1, ge=0, le=1e6, description="lambda of the KL divergence")
    episodes: int = Field(
        1, ge=1, le=99_999, description="epochs from which the policy learns, each from the start"
    )
    rollout: int = Field(
        5, ge=1, le=10_000, description="decisions from which the policy learns at once"
    )
    discount: float = Field(
        0.99, ge=0, le=1, description="of later rewards; published for segmentation: 0"
    )
    policy_learning_rate: float = Field(7e-4, gt=0, le=100, description="of the policy's own SGD")
    min_window: int = Field(10, ge=1, description="steps of the shortest window")
    reward: Literal["negative_loss", "exp_negative_loss"] = Field(
        "negative_loss",
        description="-(CE + lambda * KL) of the steps that a decision is for, or exp",
    )


class CSGConfig(MethodSection):
    """Contrastive Syn-to-Real Generalization (Chen et al., ICLR 2021). Defaults as published."""

    name: Literal["csg"] = "csg"
    loss_weight: float = Field(
        0.1, ge=0, le=1e4, description="lambda, weight of the NCE sum (Eq. 4)"
    )
    temperature: float = Field(0.07, gt=0, le=100, description="tau of InfoNCE (Eq. 3)")
    stages: str = Field("3,4", description="G, the stages that carry the loss (Eq. 5)")
    ema_momentum: float = Field(0.999, ge=0, le=1, description="m of the EMA projection heads")
    projection_dim: int = Field(128, ge=1, le=4096, description="length of queries and keys")
    train_projection: bool = Field(
        True, description="false: the projection heads stay random (published for segmentation)"
    )
    queue_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="K keys per stage; auto: min(65536, 0.43 of the keys of an epoch)"
    )
    pooling: Literal["attention", "mean"] = Field(
        "attention", description="A-pool (Sec. 3.4), or the plain mean over positions"
    )
    attention_from: Literal["encoder", "self"] = Field(
        "encoder", description="whose map gives the reference's attention (Sec. 3.4)"
    )
    detach_attention: bool = Field(
        False, description="true: no gradient through the query's attention"
    )
    patch_grid: int = Field(
        1, ge=1, le=64, description="patches per side for the dense loss (Eq. 6)"
    )

    _normalise_stages = field_validator("stages", mode="before")(normalise_stages)

    def stage_numbers(self) -> tuple[int, ...]:
        """G as numbers, ascending."""
        return _stage_numbers(self.stages)


class DRPCConfig(MethodSection):
    """Style randomisation with pyramid consistency (Yue et al., ICCV 2019), from stylised copies.

    They released no code: how many copies, the weight, the stages and the grids are choices here.
    """

    notes: ClassVar[tuple[str, ...]] = (
        "drpc: stylised copies carry information of the images that their styles come from (in Yue "
        "et al. ImageNet), which no other method sees",
    )

    name: Literal["drpc"] = "drpc"
    styles: str = Field(
        min_length=1,
        description="folder with a folder for each style, in it a copy of every source_train image "
        "under the image's own name, or its number (000123.png) where there are no files",
    )
    copies: int = Field(2, ge=1, le=64, description="of each image in a step, in different styles")
    loss_weight: float = Field(1.0, ge=0, le=1e6, description="of the inconsistency")
    stages: str = Field("4", description="the stages whose maps are compared")
    grids: str = Field("1,2,4", description="cells per side at each level of the pyramid")

    _normalise_stages = field_validator("stages", mode="before")(normalise_stages)

    def stage_numbers(self) -> tuple[int, ...]:
        """The stages as numbers, ascending."""
        return _stage_numbers(self.stages)

    @field_validator("grids", mode="before")
    @classmethod
    def _normalise_grids(cls, value: Any) -> str:
        parts = [part.strip() for part in str(value).split(",")]
        numbers = [int(part) for part in parts if re.fullmatch(r"[1-9]\d?", part)]
        if isinstance(value, bool) or len(set(numbers)) != len(parts):
            raise ValueError(f"must be different numbers from 1 to 99 such as '1,2', not {value!r}")
        return ",".join(map(str, sorted(numbers)))

    def grid_sizes(self) -> tuple[int, ...]:
        """The grids as numbers, ascending."""
        return tuple(int(part) for part in self.grids.split(","))


class SelfTrainingConfig(MethodSection):
    """A round an epoch: predict the target, keep the most confident, train on them and on source.

    The shares are per round, from the first one on; their defaults were published by third parties
    for VisDA-17 (for GTA5 to Cityscapes a source_share of 0.03, step 0.0025, at most 0.06).
    """

    notes: ClassVar[tuple[str, ...]] = (SEES_TARGET,)

    start: str = Field(
        min_length=1, description="run, trial or checkpoint whose encoder and head it starts from"
    )
    target_share: float = Field(
        0.2, gt=0, le=1, description="p, of the target predicted as each class, that is kept"
    )
    target_share_step: float = Field(0.05, ge=0, le=1, description="added after every round")
    target_share_max: float = Field(0.5, gt=0, le=1, description="where target_share stops")
    source_share: float = Field(0.065, gt=0, le=1, description="of the source's images in a round")
    source_share_step: float = Field(0.0085, ge=0, le=1, description="added after every round")
    source_share_max: float = Field(0.165, gt=0, le=1, description="where source_share stops")


class CBSTConfig(SelfTrainingConfig):
    """Class-balanced self-training (Zou et al., ECCV 2018)."""

    name: Literal["cbst"] = "cbst"


class MRKLDConfig(SelfTrainingConfig):
    """Confidence-regularised self-training of the model (Zou et al., ICCV 2019), "MRKLD"."""

    name: Literal["mrkld"] = "mrkld"
    smoothness: float = Field(
        0.1,
        ge=0,
        le=1e4,
        description="alpha of the divergence from uniform; 0.01 in their code",
    )


class LRENTConfig(SelfTrainingConfig):
    """Confidence-regularised self-training of the labels (Zou et al., ICCV 2019), "LRENT"."""

    name: Literal["lrent"] = "lrent"
    smoothness: float = Field(
        0.25, gt=0, le=1e4, description="alpha of the labels' entropy; near 0: hard labels"
    )


MethodConfig = Annotated[
    VanillaConfig
    | OracleConfig
    | WeightL2Config
    | SynapticIntelligenceConfig
    | FeatureL2Config
    | ASGConfig
    | ASGL2OConfig
    | DRPCConfig
    | CSGConfig
    | CBSTConfig
    | MRKLDConfig
    | LRENTConfig,
    Field(discriminator="name"),
]
METHOD_CONFIGS: dict[str, type[MethodSection]] = {
    "vanilla": VanillaConfig,
    "oracle": OracleConfig,
    "weight_l2": WeightL2Config,
    "synaptic_intelligence": SynapticIntelligenceConfig,
    "feature_l2": FeatureL2Config,
    "asg": ASGConfig,
    "asg_l2o": ASGL2OConfig,
    "drpc": DRPCConfig,
    "csg": CSGConfig,
    "cbst": CBSTConfig,
    "mrkld": MRKLDConfig,
    "lrent": LRENTConfig,
}
