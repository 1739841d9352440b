"""Networks that the pack builds itself, made fit for gradients and for ComfyUI's memory management."""

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from .gradient import alias

# Their gradients on a CPU are wrong, in PyTorch 2.11 and silently, where a single picture and the gradient of what they
# made of it lie in memory in different orders (attention after a norm, as in MobileCLIP, transposes).
_NORMS = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.instancenorm._InstanceNorm)


def _contiguous_input(norm: torch.nn.Module, given: tuple) -> tuple | None:
    return (given[0].contiguous(), *given[1:]) if len(given[0]) == 1 else None


def _contiguous_gradient(norm: torch.nn.Module, given: tuple, out: torch.Tensor) -> None:
    if out.requires_grad and len(out) == 1:
        out.register_hook(torch.Tensor.contiguous)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a normal tensor on the same storage when it was made under inference mode (autograd refuses
    those).
    """
    if not tensor.is_inference():
        return tensor.detach()
    with torch.inference_mode(False):
        return alias(tensor)


def as_patcher(module: torch.nn.Module) -> ModelPatcher:
    """The module, frozen and in eval mode, as a model that ComfyUI loads on the device and offloads.

    Inference tensors in it are replaced by normal ones on the same storage. bfloat16 on a device that computes in it,
    else float32. Batch and instance norms get their memory in one order, without which their gradients can be wrong.
    """
    device = comfy.model_management.get_torch_device()
    dtype = torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32
    with torch.inference_mode(False), torch.no_grad():
        for part in module.modules():
            for name, value in part._parameters.items():
                if value is not None:
                    part._parameters[name] = torch.nn.Parameter(plain(value), requires_grad=False)
            for name, value in part._buffers.items():
                if value is not None:
                    part._buffers[name] = plain(value)
            if isinstance(part, _NORMS):
                part.register_forward_pre_hook(_contiguous_input)
                part.register_forward_hook(_contiguous_gradient)
        module.to(dtype).eval()
    return ModelPatcher(module, load_device=device, offload_device=comfy.model_management.text_encoder_offload_device())


def dtype_of(module: torch.nn.Module) -> torch.dtype:
    """The dtype that the module's weights compute in."""
    return next(p.dtype for p in module.parameters() if p.is_floating_point())


def checked_statistics(mean, std, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the three colours as a file gives them. ValueError when they are not three finite numbers
    each, or the deviation cannot be divided by.
    """
    for values, low in ((mean, -1000.0), (std, 1e-4)):
        numbers = isinstance(values, (list, tuple)) and len(values) == 3
        if not numbers or not all(type(v) in (int, float) and low <= v <= 1000 for v in values):
            raise ValueError(
                f"{name} gives the pixel statistics mean {repr(mean)[:80]} and std {repr(std)[:80]}; they have "
                f"to be three numbers each, and the deviation above 0: download its files again."
            )
    return tuple(map(float, mean)), tuple(map(float, std))


def normalized(view: torch.Tensor, mean, std) -> torch.Tensor:
    """(view - mean) / std for each channel; view [B, 3, H, W] in 0..1. Differentiable: no rounding, no clamp."""
    mean, std = (torch.tensor(c, dtype=view.dtype, device=view.device)[:, None, None] for c in (mean, std))
    return (view - mean) / std
