"""What passes between the parts of a GLIDE MODEL beside the host's own arguments: keys of a conditioning, and the
learned variance of a step."""

import comfy.samplers
import torch

CATEGORY = "Guidance Lab/GLIDE"

# What GLIDE Loader lists beside the user's files → its name in shapes/weights.
SHIPPED = {
    "Shapes GLIDE base (comes with the pack)": "base",
    "Shapes GLIDE inpainting (comes with the pack)": "inpaint",
    "Shapes GLIDE upsampler (comes with the pack)": "upsample",
}

# Keys that our nodes put into a conditioning.
TEXT = "guidance_lab_glide_text"  # fingerprint of the text transformer that wrote it
LOW_RES = "guidance_lab_glide_low_res"  # [B, 3, h, w] in -1..1, rounded to 8 bits: what an upsampler enlarges
IMAGE = "guidance_lab_glide_image"  # [B, 3, H, W] in -1..1: the picture around what is to be filled
MASK = "guidance_lab_glide_mask"  # [B, 1, H, W]: 1 where the picture is known
TEMPERATURE = "guidance_lab_glide_temperature"  # what the first noise is multiplied by

# Under this key of the transformer options lies the StepState of a sampler that wants one.
STATE = "guidance_lab_glide"


def found(conds: list[dict] | None, key: str):
    """The value under `key` in the first conditioning of a list that has it, else None."""
    return next((cond[key] for cond in conds or () if cond.get(key) is not None), None)


class StepState:
    """Of one evaluation of the guider: the network's variance channels for each conditioning, and the estimate after
    the model's own limits, before any score guidance. An object, because the host copies dictionaries on the way to the
    network."""

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        self.channels: dict = {}
        self.limited: torch.Tensor | None = None

    def keep(self, uuids: list, channels: torch.Tensor) -> None:
        """The variance channels of a call of the network, one part for each conditioning in it. The first call for a
        conditioning is the guider's own; a guidance may evaluate the same network again."""
        for uuid, part in zip(uuids, channels.detach().chunk(len(uuids))):
            self.channels.setdefault(uuid, part)

    def variance(self, conds: list[dict], x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The variance channels [B, 3, H, W] of the positive conditionings, put together as the host puts predictions
        together.
        """
        parts = [comfy.samplers.get_area_and_mult(cond, x, sigma) for cond in conds]
        parts = [part for part in parts if part is not None and part.uuid in self.channels]
        if not parts:
            raise RuntimeError(
                "GLIDE Sampler found no positive conditioning at this step, so it has no variance to add noise by."
            )
        if len(parts) == 1 and self.channels[parts[0].uuid].shape == x.shape:
            return self.channels[parts[0].uuid]
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for part in parts:
            where = (slice(None), slice(None))
            if part.area is not None:
                (height, width), (top, left) = part.area[:2], part.area[2:]
                where = (..., slice(top, top + height), slice(left, left + width))
            total[where] += self.channels[part.uuid] * part.mult
            count[where] += part.mult
        return torch.where(count > 0, total / count, 0)  # where no conditioning is, the middle between the bounds
