"""Grad-CAM: where in an image the evidence for a class is (CSG, Fig. 5)."""

from __future__ import annotations

from captum.attr import LayerGradCam
from torch import Tensor

from csg_ray.methods.base import TASK_STAGE, Method


def grad_cam(method: Method, images: Tensor, classes: Tensor) -> Tensor:
    """The evidence for a class at every position of the encoder's last map.

    ReLU of the sum over channels, each weighted by the mean over positions of the gradient of the
    class's logit (Selvaraju et al., ICCV 2017, Eq. 1 and 2).

    Args:
        method: of classification, in evaluation mode.
        images: (N, 3, H, W).
        classes: (N,), the class of each image that is asked for.

    Returns:
        (N, H', W'), in the size of the stage-4 map; at least 0.
    """
    explained = LayerGradCam(method.predict, method.encoder.stage(TASK_STAGE))
    # The images require a gradient so that one flows through an encoder that is frozen, too.
    maps: Tensor = explained.attribute(
        images.detach().clone().requires_grad_(), target=classes, relu_attributions=True
    )
    return maps.detach().squeeze(1)
