"""All screenshots of the examples as one picture, for a person to look at after a run of the tests."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH = 640  # pixels of one screenshot on the sheet
WINDOWS = {"large": (1920, 1080), "small": (1366, 768)}
RENDERERS = ("classic", "nodes2")


def write_sheet(folder: Path) -> Path | None:
    """`folder`/examples.jpg: one row for each example, renderers and window sizes across. None without screenshots."""
    columns = [f"{renderer} {window}" for renderer in RENDERERS for window in WINDOWS]
    names = sorted(
        {path.stem.removesuffix(f" {column}") for column in columns for path in folder.glob(f"* {column}.png")}
    )
    if not names:
        return None
    height, line = WIDTH * 9 // 16, 26
    sheet = Image.new("RGB", (WIDTH * len(columns), (height + line) * len(names)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        top = row * (height + line)
        draw.text((6, top + 4), name, "black", ImageFont.load_default(16))
        for column, kind in enumerate(columns):
            path = folder / f"{name} {kind}.png"
            if path.exists():
                with Image.open(path) as picture:
                    sheet.paste(picture.convert("RGB").resize((WIDTH, height)), (column * WIDTH, top + line))
    path = folder / "examples.jpg"
    sheet.save(path, quality=85)
    return path
