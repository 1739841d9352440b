"""A labelled grid of pictures: what comparisons and sweeps show of their results at one look."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

INK, PAPER = (40, 40, 40), (255, 255, 255)
LEAST, MOST = 256, 8192  # pixels: the longer side of a cell that is grown, and of a whole sheet
GAP, TEXT = 12, 22
# Pillow's own font has Latin letters only. Names of fonts with Chinese, Japanese and Korean ones, of the usual systems.
WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKjp-Regular.otf", "YuGothM.ttc", "meiryo.ttc", "msgothic.ttc",
    "ヒラギノ角ゴシック W3.ttc", "Hiragino Sans GB.ttc", "DroidSansFallbackFull.ttf",
)  # fmt: skip


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]], columns: Sequence[str] = (), row_labels: Sequence[str] = ()
) -> Image.Image:
    """RGB: the pictures of `rows`, with the words of `columns` above and those of `row_labels` at the left.

    All pictures have one size. Small ones grow by whole pixels to about 256, and the sheet stays below 8192. Labels are
    broken into lines of a cell's width. ValueError when there is no picture, the rows differ in length, or the labels
    in number.
    """
    if not rows or not rows[0]:
        raise ValueError("a grid needs at least one picture")
    wide, high = len(rows[0]), len(rows)
    if any(len(row) != wide for row in rows) or len(columns) not in (0, wide) or len(row_labels) not in (0, high):
        raise ValueError("the rows of a grid have one length, and each column and each row one label or none")
    width, height, way = _cell(rows[0][0].size, wide, high)
    font_size = max(12, min(TEXT, width // 10))
    heads = [_lines(words, width, font_size) for words in columns]
    sides = [_lines(words, max(width // 2, 80), font_size) for words in row_labels]
    line = round(font_size * 1.3)
    top = GAP + max((len(head) for head in heads), default=0) * line + (GAP // 2 if heads else 0)
    left = GAP + (GAP + round(max(_length(words, font_size) for side in sides for words in side)) if sides else 0)
    sheet = Image.new("RGB", (left + wide * (width + GAP), top + high * (height + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for x, head in enumerate(heads):
        for number, words in enumerate(head):
            _write(pen, left + x * (width + GAP) + width / 2, GAP + (number + 0.5) * line, words, font_size, "mm")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            cell = picture.convert("RGB").resize((width, height), way)
            sheet.paste(cell, (left + x * (width + GAP), top + y * (height + GAP)))
        if sides:
            middle = top + y * (height + GAP) + height / 2 - (len(sides[y]) - 1) * line / 2
            for number, words in enumerate(sides[y]):
                _write(pen, GAP, middle + number * line, words, font_size, "lm")
    return sheet


def _cell(size: tuple[int, int], wide: int, high: int) -> tuple[int, int, Image.Resampling]:
    """(width, height, way of resizing) of the cells for pictures of that size."""
    width, height = size
    factor: float = max(1, round(LEAST / max(size)))
    room = min((MOST - 512) / wide / (width + GAP), (MOST - 512) / high / (height + GAP))
    factor = min(factor, room) if room < 1 else min(factor, max(1, int(room)))
    way = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    return max(1, round(width * factor)), max(1, round(height * factor)), way


def _font(words: str, size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    if any(ord(letter) >= 0x2E80 for letter in words):
        for name in WIDE_FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)


def _length(words: str, size: int) -> float:
    return float(_font(words, size).getlength(words))


def _write(pen: ImageDraw.ImageDraw, x: float, y: float, words: str, size: int, anchor: str) -> None:
    pen.text((x, y), words, fill=INK, font=_font(words, size), anchor=anchor)


def _lines(words: str, width: float, size: int, most: int = 3) -> list[str]:
    """`words` in up to `most` lines of at most `width` pixels, broken at blanks, else inside a word; cut with an
    ellipsis.
    """
    lines: list[str] = []
    rest = " ".join(words.split())
    while rest and len(lines) < most:
        count = len(rest)
        while count > 1 and _length(rest[:count], size) > width:
            blank = rest.rfind(" ", 0, count)
            count = blank if blank > 0 else count - 1
        lines.append(rest[:count])
        rest = rest[count:].strip()
    if rest:
        last = lines[-1]
        while last and _length(last + "…", size) > width:
            last = last[:-1]
        lines[-1] = last + "…"
    return lines or [""]
