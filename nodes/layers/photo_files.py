"""Photos in a folder below ComfyUI's input folder, and the captions beside them."""

from pathlib import Path

import folder_paths
import node_helpers
import numpy as np
import torch
from PIL import Image, ImageOps

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_LONGEST = 10_000  # bytes of a caption; a text encoder reads some hundred


def photo_files(folder: str) -> list[Path]:
    """The photos of a folder below the input folder, by name. ValueError for one that is not there or lies outside."""
    root = Path(folder_paths.get_input_directory()).resolve()
    path = (root / folder).resolve()
    if not path.is_relative_to(root) or not path.is_dir():
        raise ValueError(f"There is no folder {folder[:60]!r} in ComfyUI's input folder; put the photos there.")
    found = sorted(each for each in path.iterdir() if each.suffix.lower() in ENDINGS and each.is_file())
    if not found:
        raise ValueError(f"The folder {folder[:60]!r} has no photos: XTI Photos reads .png, .jpg and .webp.")
    return found


def read_photo(path: Path) -> torch.Tensor:
    """IMAGE [1, H, W, 3], or [1, H, W, 4] where the file has transparency; upright, as the camera noted it."""
    try:
        picture = ImageOps.exif_transpose(node_helpers.pillow(Image.open, path))
        clear = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
        if picture.mode.startswith("I"):  # 16 bits
            picture = Image.fromarray((np.asarray(picture, dtype=np.float32) / 257).clip(0, 255).astype(np.uint8))
        values = np.asarray(picture.convert("RGBA" if clear else "RGB"), dtype=np.float32) / 255
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path.name} cannot be read as a photo; save it anew or take it out of the folder."
        ) from error
    return torch.from_numpy(values)[None]


def read_caption(path: Path) -> str:
    """The text of the .txt file beside a photo; "" where there is none. ValueError where it is not a text."""
    file = path.with_suffix(".txt")
    if not file.is_file():
        return ""
    if file.stat().st_size > _LONGEST:
        raise ValueError(f"{file.name} is too long for a caption: {file.stat().st_size} bytes.")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file.name} is not a text in UTF-8; save it as such.") from None
