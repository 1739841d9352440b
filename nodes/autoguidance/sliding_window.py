"""A model that sees a picture only through overlapping windows, with everything that belongs to a place cropped too."""

import uuid

import torch
from comfy.patcher_extension import WrappersMP

from ...guidance.windows import Box, crop, mean_of_windows, windows
from .perturb import WRAPPER_KEY


def through_windows(model, share: float, overlap: float):
    """A clone of the MODEL that predicts each window by itself and averages them (SWG, arXiv 2411.10257).

    ControlNets have seen the whole picture; what they add is cropped. ValueError for latents that are no pictures.
    """

    def evaluate(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        if x.ndim < 4:
            raise ValueError(
                "sliding_window cuts pictures and videos into windows, and this latent has no height and width: choose "
                "another method of Weaker Version."
            )
        size = x.shape[-2:]
        boxes = windows(*size, share, overlap)
        if len(boxes) == 1:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

        def part(value, box: Box):
            of_a_place = isinstance(value, torch.Tensor) and value.ndim >= 4 and value.shape[-2:] == size
            return crop(value, box) if of_a_place else value

        def predict(box: Box) -> torch.Tensor:
            # A reference picture may have the size of the latent, and is looked at as a whole.
            more = {name: value if "ref" in name else part(value, box) for name, value in kwargs.items()}
            added = None if control is None else _crop_control(control, size, box)
            options = dict(transformer_options or {})
            if options.get("uuids"):
                # By these EasyCache knows what it has seen, and a window is not the one before. It writes into its x.
                options["uuids"] = [uuid.uuid5(each, str(box)) for each in options["uuids"]]
            return executor(crop(x, box).clone(), t, part(c_concat, box), c_crossattn, added, options, **more)

        return mean_of_windows(x, boxes, predict)

    weak = model.clone()
    weak.add_wrapper_with_key(WrappersMP.APPLY_MODEL, WRAPPER_KEY, evaluate)
    return weak


def _crop_control(control: dict, size: tuple[int, int], box: Box) -> dict:
    """What ControlNets add to the layers, for one window: feature maps at any whole scale, or tokens row by row."""

    def at_scale(scale: int) -> Box:
        if any(number % scale for number in (*size, *box)):
            raise ValueError(
                f"sliding_window cannot cut what a ControlNet adds to a latent of {size[1]} x {size[0]} cells: give a "
                "picture whose sides are multiples of 64 pixels."
            )
        return tuple(number // scale for number in box)

    def part(value):
        if value is None:
            return None
        if value.ndim >= 4:
            scale = max(1, round(size[0] / value.shape[-2]))
            return crop(value, at_scale(scale))
        scale = max(1, round((size[0] * size[1] / value.shape[1]) ** 0.5))
        cells = value.unflatten(1, (size[0] // scale, size[1] // scale)).movedim(-1, 1)
        return crop(cells, at_scale(scale)).movedim(1, -1).flatten(1, 2)

    return {
        layers: [part(value) for value in values] if isinstance(values, list | tuple) else values
        for layers, values in control.items()
    }
