"""Model folders that ComfyUI does not have by itself."""

import os

import folder_paths

EXTENSIONS = {".safetensors", ".pth", ".pt", ".ckpt"}


def files_in(folder: str) -> list[str]:
    """Names of the model files in models/`folder` and in the folders that extra_model_paths.yaml gives that name."""
    folder_paths.add_model_folder_path(folder, os.path.join(folder_paths.models_dir, folder))
    folder_paths.folder_names_and_paths[folder][1].update(EXTENSIONS)
    try:
        return folder_paths.get_filename_list(folder)
    except OSError:  # a folder that ComfyUI has listed before is gone
        folder_paths.filename_list_cache.pop(folder, None)
        return folder_paths.get_filename_list(folder)


def path_of(folder: str, name: str) -> str:
    """Full path of a file that `files_in` lists; ValueError when it is not there (any more)."""
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise ValueError(f"There is no file '{name}' in models/{folder}; put it there and refresh (press R).")
    return path
