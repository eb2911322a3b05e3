"""VCD, visual contrastive decoding (Leng et al., arXiv 2311.16922).

    (1 + alpha) l - alpha l',  -inf where l < max l + ln beta

l are the model's logits, and l' are its logits for the image with diffusion noise:

    x' = sqrt(A) x + sqrt(1 - A) e,   A the product of 1 - b up to `noise_step`
    b = sigmoid(linspace(-6, 6, 1000)) (0.005 - 1e-5) + 1e-5

Readings: alpha 1 and noise step 500 are the paper's (the published scripts pass others). The mask
depends on l only, as in both. l' has a separate KV cache, while a version of the published code
continued from a copy of the first stream's cache.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from revisit.decoders.plausible import keep_plausible


def combine(logits: Tensor, distorted: Tensor, alpha: float, beta: float) -> Tensor:
    """The scores (..., V) from the logits for the image and for the image with noise."""
    return keep_plausible((1 + alpha) * logits - alpha * distorted, logits, beta)


def kept(noise_step: int) -> float:
    """A, the share of the image's variance that is left at `noise_step` (0 to 999)."""
    # In float32 and on the CPU, whatever the process has for defaults.
    b = (
        torch.linspace(-6, 6, 1000, dtype=torch.float32, device="cpu").sigmoid() * (0.005 - 1e-5)
        + 1e-5
    )
    return float((1 - b).cumprod(0)[noise_step])


def distort(
    pixel_values: Tensor,
    noise_step: int = 500,
    seed: int = 0,
    patches: Sequence[int] | None = None,
) -> Tensor:
    """Preprocessed images with diffusion noise, of the same shape, dtype and device.

    Each image draws its noise anew, on the CPU, from a generator seeded with `seed`, so that it
    does not depend on the images beside it.

    Args:
        pixel_values: one image (of up to three dimensions), or images or tiles (..., 3, H, W), each
            of which is an image here.
        noise_step: 0 to 999; more is noisier.
        seed: of the noise.
        patches: how many of the rows of `pixel_values` (patches, values) each image has, where they
            are patches of several images.
    """
    share = kept(noise_step)
    if patches is not None:
        images = torch.split(pixel_values, list(patches))
    else:
        one = pixel_values.ndim <= 3
        images = (pixel_values,) if one else pixel_values.flatten(0, -4).unbind(0)
    noisy = []
    for image in images:
        generator = torch.Generator("cpu").manual_seed(seed)
        noise = torch.randn(image.shape, generator=generator, dtype=torch.float32, device="cpu")
        noise = noise.to(image.device)
        noisy.append((share**0.5 * image.float() + (1 - share) ** 0.5 * noise).to(image.dtype))
    return torch.cat(noisy) if patches is not None else torch.stack(noisy).view_as(pixel_values)
