"""What belongs to one model in one run, and what the host prepares for the main model only: an extra model that is
evaluated in the same run gets its own.

ControlNets take over weights or sampling objects of the model they are prepared for; hook keyframes tell only the model
that asks first that the strength has changed; EasyCache keeps what its model last gave; autoregressive video keeps the
keys and values of its model's attention. None of these can be shared by two models.
"""

import copy
import logging

import torch
from comfy.controlnet import ControlNetSD35


def own_hooks(conds: dict[str, list]) -> None:
    """Gives the conds hooks whose keyframes no other model moves. What shares a group or a schedule goes on sharing
    it.
    """
    groups, keyframes = {}, {}
    for cond in (cond for entries in conds.values() for cond in entries):
        group = cond.get("hooks")
        if group is None:
            continue
        if id(group) not in groups:
            groups[id(group)] = group.clone()
            for hook in groups[id(group)].hooks:
                schedule = hook.hook_keyframe
                hook.hook_keyframe = keyframes.setdefault(id(schedule), schedule.clone())
        cond["hooks"] = groups[id(group)]


class OwnControls:
    """ControlNets of one extra model: the same networks and hints as in the conds, prepared for this model alone."""

    def __init__(self, conds: dict[str, list]):
        self.copies: dict[int, tuple] = {}  # id → (control of the conds, its copy)
        self.first = []  # the copies that stand in conds, each the head of its chain
        for cond in (cond for entries in conds.values() for cond in entries):
            if cond.get("control") is not None:
                cond["control"] = self._copy(cond["control"])
                self.first.append(cond["control"])

    def _copy(self, control):
        if id(control) not in self.copies:
            own = control.copy() if hasattr(control, "copy") else copy.copy(control)
            if isinstance(control, ControlNetSD35):
                own.control_model = _with_own_embedder(control.control_model)
            self.copies[id(control)] = (control, own)
            if control.previous_controlnet is not None:
                own.set_previous_controlnet(self._copy(control.previous_controlnet))
        return self.copies[id(control)][1]

    def share_hints(self) -> None:
        """Takes over hints that the other model's ControlNets have encoded with a VAE: they do not depend on the
        model.
        """
        for control, own in self.copies.values():
            if getattr(own, "vae", None) is not None and own.cond_hint is None:
                own.cond_hint = control.cond_hint

    def cleanup(self) -> None:
        for control in dict.fromkeys(self.first):
            control.cleanup()


def _with_own_embedder(network: torch.nn.Module) -> torch.nn.Module:
    """The same ControlNet module, but for the embedder that ControlNetSD35 fills with the weights of the model."""
    own = copy.copy(network)
    own._modules = dict(network._modules)
    name = "orig_y_embedder" if network.double_y_emb else "x_embedder"
    with torch.inference_mode(False):
        own._modules[name] = copy.deepcopy(network._modules[name])
    return own


def own_step_cache(options: dict, model_sampling) -> None:
    """Gives the options an EasyCache of this run alone, as the sampling of its own MODEL would."""
    cache = options["transformer_options"].get("easycache")
    if getattr(cache, "name", None) == "LazyCache":
        logging.warning(
            "Guidance Lab: LazyCache skips steps of the model that is sampled, so on a guide it does nothing; put "
            "EasyCache there instead."
        )
    elif cache is not None:
        options["transformer_options"]["easycache"] = cache.clone().prepare_timesteps(model_sampling)


class OwnVideoCache:
    """The attention caches of one extra model under SamplerARVideo, kept in step with the main model's."""

    def __init__(self):
        self.state: dict | None = None

    @staticmethod
    def at_work(main_options: dict) -> bool:
        """Whether a video is drawn block by block: each ends with an evaluation at sigma 0, which later blocks see."""
        return "ar_state" in main_options["transformer_options"]

    def put(self, main_options: dict, options: dict, model, x: torch.Tensor) -> None:
        """Puts the caches for the video block at work into `options`, or takes them out when there is none.

        model: the host's BaseModel; x (batch, channels, frames, height, width) is the block. ValueError when its
        network keeps no such caches.
        """
        of_main = main_options["transformer_options"].get("ar_state")
        options["transformer_options"].pop("ar_state", None)
        if of_main is None:
            return
        network = model.diffusion_model
        if not hasattr(network, "init_kv_caches"):
            raise ValueError(
                f"SamplerARVideo draws a video block by block, and the guide ({type(network).__name__}) cannot; choose "
                "a guide of the same autoregressive family."
            )
        tokens = of_main["kv_caches"][0]["k"].shape[1]
        if self.state is None or self.state["kv_caches"][0]["k"].shape[1] != tokens:
            dtype = model.get_dtype()
            self.state = {
                "kv_caches": network.init_kv_caches(x.shape[0], tokens, x.device, dtype),
                "crossattn_caches": network.init_crossattn_caches(x.shape[0], x.device, dtype),
            }
        start = of_main["start_frame"]
        frame = -(-x.shape[-2] // 2) * -(-x.shape[-1] // 2)
        for cache in self.state["kv_caches"]:
            cache["end"] = start * frame  # an evaluation of a block begins after the finished ones
        options["transformer_options"]["ar_state"] = {"start_frame": start, **self.state}
