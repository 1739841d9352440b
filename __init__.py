"""Guidance Lab: steer the image models you already have, inside ComfyUI."""

WEB_DIRECTORY = "./web"
OLDEST_COMFYUI = (0, 27, 0)

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint():
    """The extension with all nodes. Imported when ComfyUI asks for it, so that the libraries can be used without
    ComfyUI. RuntimeError, in one sentence, in a ComfyUI that is too old.
    """
    from comfyui_version import __version__

    if _numbers(__version__) < OLDEST_COMFYUI:
        oldest = ".".join(map(str, OLDEST_COMFYUI))
        raise RuntimeError(f"Guidance Lab needs ComfyUI {oldest} or newer, and this is {__version__}: update ComfyUI.")
    from .nodes import GuidanceLab

    return GuidanceLab()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("-")[0].split("+")[0].split(".")[:3] if part.isdecimal())
