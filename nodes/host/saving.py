"""Where the saving nodes write: below ComfyUI's output folder, under a name that nobody has."""

from collections.abc import Callable
from pathlib import Path

import folder_paths

from ...weight_files import free_name


def save_below_output(prefix: str, write: Callable[[Path], None]) -> Path:
    """Let `write` make a .safetensors file of a new number, and return its path.

    prefix: folder and beginning of the name below the output folder, as in Save Image. Two savers at once get two
    numbers, and a `write` that fails leaves nothing behind. ValueError when the prefix leads out of the output folder
    or cannot be a name.
    """
    try:
        output = folder_paths.get_output_directory()
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, output)
        path = free_name(folder, name, counter)
    except ValueError as error:
        if "null" not in str(error):
            raise
        raise ValueError(f"filename_prefix is {prefix[:60]!r}, which cannot be the name of a file.") from None
    except OSError as error:
        raise ValueError(
            f"filename_prefix is {prefix[:60]!r}, and no such file can be made ({error.strerror})."
        ) from None
    except Exception:  # ComfyUI's own, of three lines
        raise ValueError(
            f"filename_prefix is {prefix[:60]!r}, which leads out of the output folder: give a name inside it."
        ) from None
    try:
        write(path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path
