"""Rotation and colour changes of a whole batch on its device; the parameters come drawn (`transforms.Choice`).

Uses kornia's functional operators, which draw nothing themselves. kornia takes seconds to import, so it is imported
on first use: runs without these augmentations never pay for it.
"""

import torch
from torch import Tensor


@torch.no_grad()
def augment(images: Tensor, angles: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Rotate each image about its centre (reflected at the border), then scale brightness, contrast and saturation.

    Computed in float32 whatever autocast says; call it outside compiled graphs. Every image depends on its own
    parameters only. Brightness multiplies; contrast and saturation blend with the mean luma and the luma of each pixel.
    Of 2 and 4 channels the last is alpha, which is rotated but keeps its values; saturation needs three colour
    channels and does nothing without them.

    A caller whose config asks for neither rotation nor colour skips the call: to find out here would stall the device.

    Args:
        images: (B, C, H, W) in [-1, 1].
        angles: (B,), counter-clockwise, in degrees.
        brightness: (B,), factors of 0 or more; 1 changes nothing.
        contrast: (B,), as brightness.
        saturation: (B,), as brightness.

    Returns:
        (B, C, H, W), float32 in [-1, 1].
    """
    from kornia import enhance
    from kornia.geometry.transform import rotate

    with torch.autocast(images.device.type, enabled=False):
        unit = (images.float() + 1) / 2  # the range of kornia's colour operators
        unit = rotate(unit, angles.float(), padding_mode="reflection")
        alpha = unit.shape[1] in (2, 4)
        colour = unit[:, :-1] if alpha else unit
        # (B, 1, 1, 1): not all of these operators broadcast (B,) over images
        light, spread, chroma = (factor.float().view(-1, 1, 1, 1) for factor in (brightness, contrast, saturation))
        colour = enhance.adjust_brightness_accumulative(colour, light)
        colour = enhance.adjust_contrast_with_mean_subtraction(colour, spread)
        if colour.shape[1] == 3:
            colour = enhance.adjust_saturation_with_gray_subtraction(colour, chroma)
        unit = torch.cat([colour, unit[:, -1:]], dim=1) if alpha else colour
        return (unit * 2 - 1).clamp(-1, 1)
