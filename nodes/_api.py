"""The one place that names the ComfyUI API version this pack is written against."""

from comfy_api.v0_0_2 import ComfyAPI, ComfyExtension, io, ui

__all__ = ["ComfyAPI", "ComfyExtension", "io", "ui"]
