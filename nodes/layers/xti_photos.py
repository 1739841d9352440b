"""XTI Photos: photos of any size, with masks and captions, made ready for XTI Train."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import comfy.utils
import folder_paths
import torch

from ...xti.photo_sizes import bucket, crop, random_crop
from .._api import io
from ..host.node_text import show_on_node
from .photo_files import photo_files, read_caption, read_photo
from .xti_files import CATEGORY
from .xti_socket import PhotosType

NO_FOLDER = "none"
BUCKETS, CENTRE, RANDOM = "buckets", "centre crop", "random crop"


@dataclass(frozen=True, eq=False)
class Photos:
    """Latents [C, h, w] as a VAE makes them, masks [1, h, w] or None, captions with `{}` or None: one each."""

    latents: list[torch.Tensor]
    masks: list[torch.Tensor | None]
    captions: list[str | None]


@dataclass(frozen=True, eq=False)
class _Photo:
    """Pixels [1, H, W, 3], mask [1, 1, H, W] or None, caption or None."""

    pixels: torch.Tensor
    mask: torch.Tensor | None
    caption: str | None


def with_token(caption: str, word: str) -> str | None:
    """A caption as training takes it: `{}` for `word` where that stands, else in front; no weights; None if empty."""
    text = caption.strip().replace("(", "\\(").replace(")", "\\)")
    if not text:
        return None
    if word.strip() and "{}" not in text:
        text = re.sub(rf"(?<!\w){re.escape(word.strip())}(?!\w)", "{}", text, flags=re.IGNORECASE)
    return text if "{}" in text else f"{{}}, {text}"


def _split(image: torch.Tensor, mask: torch.Tensor | None, caption: str | None) -> _Photo:
    """An IMAGE [1, H, W, 3 or 4]: what is transparent is not learned, and is grey, so that nothing of it shines in."""
    pixels = image[..., :3]
    if image.shape[-1] == 4:
        alpha = image[..., 3:]
        pixels = pixels * alpha + 0.5 * (1 - alpha)
        opaque = alpha.movedim(-1, 1)
        mask = opaque if mask is None else mask * opaque
        if bool((opaque == 1).all()) and bool((mask == 1).all()):
            mask = None
    return _Photo(pixels, mask, caption)


def _connected(images: list, masks: list, texts: list, word: str) -> list[_Photo]:
    """The photos of the inputs: lists of IMAGE [N, H, W, C], MASK [N, h, w] and texts, in the same order."""
    pictures = [image[i : i + 1] for image in images for i in range(len(image))]
    shapes = [mask.reshape(-1, 1, *mask.shape[-2:]) for mask in masks]
    each: list = [mask[i : i + 1] for mask in shapes for i in range(len(mask))]
    for name, given in (("masks", each), ("texts", texts)):
        if given and len(given) not in (1, len(pictures)):
            raise ValueError(f"XTI Photos got {len(pictures)} images and {len(given)} {name}: give one each, or one.")
    each = each * len(pictures) if len(each) == 1 else each or [None] * len(pictures)
    texts = texts * len(pictures) if len(texts) == 1 else texts or [""] * len(pictures)
    found = []
    for picture, mask, text in zip(pictures, each, texts, strict=True):
        if mask is not None:
            mask = torch.nn.functional.interpolate(mask.float(), size=picture.shape[1:3], mode="area")
        found.append(_split(picture, mask, with_token(text, word)))
    return found


def _part(photo: _Photo, box: tuple[int, int, int, int], width: int, height: int) -> _Photo:
    """The part (left, top, width, height) of a photo, scaled to this size."""
    left, top, inner_width, inner_height = box
    rows, columns = slice(top, top + inner_height), slice(left, left + inner_width)

    def scaled(tensor: torch.Tensor, method: str) -> torch.Tensor:
        if tensor.shape[-2:] == (height, width):
            return tensor
        return comfy.utils.common_upscale(tensor, width, height, method, "disabled")

    pixels = scaled(photo.pixels[:, rows, columns].movedim(-1, 1), "lanczos").movedim(1, -1)
    mask = None if photo.mask is None else scaled(photo.mask[..., rows, columns], "area")
    return _Photo(pixels, mask, photo.caption)


def prepared(photo: _Photo, number: int, size: int, fit: str, crops: int, seed: int, flips: bool) -> list[_Photo]:
    """What is learned of one photo: its crops, each with its mirror image where `flips`."""
    height, width = photo.pixels.shape[1:3]
    target = bucket(width, height, size) if fit == BUCKETS else (size, size)
    aspect = target[0] / target[1]
    if fit == RANDOM:
        boxes = [random_crop(width, height, aspect, f"{seed}/{number}/{i}") for i in range(crops)]
    else:
        boxes = [crop(width, height, aspect)]
    parts = [_part(photo, box, *target) for box in boxes]
    if flips:
        parts += [_Photo(p.pixels.flip(2), None if p.mask is None else p.mask.flip(3), p.caption) for p in list(parts)]
    return parts


def _latent_mask(mask: torch.Tensor | None, latent: torch.Tensor, number: int) -> torch.Tensor | None:
    if mask is None:
        return None
    small = torch.nn.functional.interpolate(mask.float(), size=latent.shape[-2:], mode="area")[0]
    if not small.sum() > 0:
        raise ValueError(
            f"The mask of photo {number} is black: paint white what is to be learned, or disconnect masks (Load Image "
            "gives a black one for a photo without transparency)."
        )
    return small.cpu()


class XTIPhotos(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_XTIPhotos",
            display_name="XTI Photos",
            category=CATEGORY,
            description=(
                "Photos of any size for XTI Train: scaled, cropped or sorted into sizes of nearly their shape, "
                "with masks of what to learn and captions from .txt files beside them."
            ),
            search_aliases=["dataset", "aspect bucketing", "training images", "image folder", "captions", "crop"],
            is_input_list=True,
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of the model to learn for; it encodes the photos."),
                io.Combo.Input(
                    "folder",
                    options=[NO_FOLDER, *folder_paths.get_input_subfolders()],
                    default=NO_FOLDER,
                    tooltip="A folder below ComfyUI's input folder: its .png, .jpg and .webp files, each with a "
                    "caption in a .txt file of the same name. none: only the images that are connected.",
                ),
                io.Int.Input(
                    "size", default=512, min=64, max=2048, step=8,
                    tooltip="Side in pixels, the model's own: 512 for SD1, 768 for SD2, 1024 for SDXL. For buckets the "
                    "side of the square of the same area. Smaller photos are enlarged.",
                ),
                io.Combo.Input(
                    "fit",
                    options=[BUCKETS, CENTRE, RANDOM],
                    default=BUCKETS,
                    tooltip="buckets: keep nearly the photo's shape (1:2 to 2:1) at the same area. centre crop: the "
                    "square in the middle. random crop: squares of 80 to 100 % of the side, anywhere.",
                ),
                io.Int.Input(
                    "crops", default=4, min=1, max=64,
                    tooltip="Random crops of each photo, 2 to 8 typical; not used by the others.",
                ),
                io.Boolean.Input(
                    "flips",
                    default=False,
                    tooltip="Also learn from mirror images. Off, because faces, writing, logos and things with a left "
                    "and a right would be learned wrongly.",
                ),
                io.String.Input(
                    "word",
                    default="",
                    tooltip="A word of the captions whose place the learned token takes, such as sks. Captions with {} "
                    "say the place themselves; others get the token in front.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False,
                    tooltip="Where the random crops lie, 0 to 2^64 - 1.",
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="Photos: one batch, or a list of any sizes. What is transparent "
                    "(a fourth channel) is not learned.",
                ),
                io.Mask.Input(
                    "masks", optional=True, tooltip="White: learn this; black: do not look. One per image in the same "
                    "order, or one for all. Load Image gives the opposite of a cut-out: use Invert Mask.",
                ),
                io.String.Input(
                    "texts", optional=True, force_input=True,
                    tooltip="Captions of the images, one each in the same order, or one for all.",
                ),
            ],
            outputs=[
                PhotosType.Output(display_name="photos", tooltip="For photos or validation of XTI Train."),
                io.Image.Output(
                    display_name="pictures", is_output_list=True, tooltip="The photos as they are learned: a list."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, folder=None, **inputs):
        if not folder or folder[0] in (None, NO_FOLDER):
            return None
        files = photo_files(folder[0])
        files += [path.with_suffix(".txt") for path in files]
        return [[str(path), path.stat().st_mtime_ns, path.stat().st_size] for path in files if path.is_file()]

    @classmethod
    def execute(
        cls, vae, folder=(NO_FOLDER,), size=(512,), fit=(BUCKETS,), crops=(4,), flips=(False,), word=("",), seed=(0,),
        images=None, masks=None, texts=None,
    ) -> io.NodeOutput:  # fmt: skip
        given = [[each for each in (inputs or []) if each is not None] for inputs in (images, masks, texts)]
        files: list[Path] = [] if folder[0] == NO_FOLDER else photo_files(folder[0])
        photos = _connected(*given, word[0])
        photos += [_split(read_photo(path), None, with_token(read_caption(path), word[0])) for path in files]
        if not photos:
            raise ValueError("XTI Photos needs photos: connect images, or choose a folder with .png, .jpg or .webp.")
        if vae[0] is None:
            raise ValueError("XTI Photos needs the VAE of the model; the checkpoint gave none, load it separately.")
        parts, latents, small_masks = [], [], []
        for number, photo in enumerate(photos, 1):
            for part in prepared(photo, number, size[0], fit[0], crops[0], seed[0], flips[0]):
                latent = vae[0].encode(part.pixels)
                parts.append(part)
                latents.append(latent[0].cpu())
                small_masks.append(_latent_mask(part.mask, latent, number))
        sizes = Counter(f"{part.pixels.shape[2]} x {part.pixels.shape[1]}" for part in parts)
        lines = [f"{len(photos)} photos, {len(parts)} pictures"] + [
            f"{count} of {size}" for size, count in sizes.items()
        ]
        show_on_node("\n".join(lines), cls.hidden.unique_id if cls.hidden else None)
        captions = [part.caption for part in parts]
        return io.NodeOutput(Photos(latents, small_masks, captions), [part.pixels for part in parts])


NODES = [XTIPhotos]
