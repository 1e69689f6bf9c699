"""Image files of any kind -> RGB squares, with torchvision's arithmetic for sizes and offsets."""

import dataclasses
import functools
import io
import math

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 2**27  # 134 million: more is taken for a decompression bomb
MAX_ASPECT = 100  # a longer strip would grow without bounds when its short side is resized
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
ORIENTATION = 0x0112  # EXIF tag


class DecodeError(ValueError):
    """These bytes are no image we can use."""


@functools.cache
def _formats() -> list[str]:
    """Those this Pillow can read; none that hands the file to another program, as EPS does."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def decode(image: bytes | np.ndarray | Image.Image) -> Image.Image:
    """A file's bytes, uint8 [H, W, 3], or what Pillow opened -> upright RGB image.

    The first frame of an animation, transparency on white, 16 bits cut to the upper 8, CMYK by Pillow's
    plain conversion (no colour profiles).

    Raises:
      DecodeError: empty, truncated or foreign data, more than `MAX_PIXELS`, sides beyond 1:`MAX_ASPECT`.
    """
    try:
        if isinstance(image, np.ndarray):
            return _from_array(image)
        opened = image
        if not isinstance(image, Image.Image):
            opened = Image.open(io.BytesIO(image), formats=_formats())
        _check_size(*opened.size)
        if opened.getexif().get(ORIENTATION, 1) != 1:
            opened = ImageOps.exif_transpose(opened)
        return _to_rgb(opened)
    except DecodeError:
        raise
    except Exception as error:  # damaged bytes make decoders raise nearly anything
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def _from_array(image: np.ndarray) -> Image.Image:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DecodeError(f"{image.dtype} array of shape {image.shape}, not uint8 [H, W, 3]")
    _check_size(image.shape[1], image.shape[0])
    return Image.fromarray(image)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DecodeError(f"{width} x {height} pixels are more than {MAX_PIXELS}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DecodeError(f"{width} x {height} is too narrow")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise DecodeError("floating-point pixels, of unknown range")
    if image.mode.startswith("I"):  # 16 bits, whatever the container
        high = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        image = Image.fromarray(high.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def resized_sides(width: int, height: int, short: int) -> tuple[int, int]:
    """torchvision's Resize(short): the short side exactly, the long one truncated."""
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def resize_short_side(image: Image.Image, short: int) -> np.ndarray:
    """torchvision's Resize(short, BICUBIC) of a PIL image -> uint8 [H, W, 3]."""
    sides = resized_sides(*image.size, short)
    return np.asarray(image if image.size == sides else image.resize(sides, Image.Resampling.BICUBIC))


def center_crop(image: np.ndarray, size: int, down: bool = False) -> np.ndarray:
    """torchvision's CenterCrop: [H, W, 3] -> [size, size, 3], odd margins rounded half to even; or always
    down, as transformers does."""
    margins = [length - size for length in image.shape[:2]]
    top, left = (margin // 2 if down else round(margin / 2) for margin in margins)
    return np.ascontiguousarray(image[top : top + size, left : left + size])


@dataclasses.dataclass(frozen=True)
class Transform:
    """From a record's image to [size, size, 3] in two steps: `prepare` is fixed, `finish` is random.

    Attributes:
      size: side of the result.
      resize: the short side before cropping, at least `size`.
      crop: "center", "clip" (the same, odd margins rounded down) or "random".
      padding: for "random": pixels of mirrored border on each side.
      flip: mirror left-right, half of the time.
    """

    size: int
    resize: int
    crop: str = "center"
    padding: int = 0
    flip: bool = False

    def prepare(self, image: bytes | np.ndarray) -> np.ndarray:
        """Decodes and resizes (bicubic, as Pillow does it); crops if that is not random.

        Args:
          image: a file's bytes, or uint8 [H, W, 3].

        Returns:
          uint8, [size, size, 3] or, for random crops, [H, W, 3] whose short side is `resize`.

        Raises:
          DecodeError: see `decode`.
        """
        resized = resize_short_side(decode(image), self.resize)
        if self.crop == "random":
            return resized
        return center_crop(resized, self.size, down=self.crop == "clip")

    def finish(self, image: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Random crop and flip of what `prepare` gave.

        Args:
          draws: float64 [3], uniform in [0, 1): top, left, flip.
        """
        if self.crop == "random":
            # torchvision's RandomCrop: each offset from 0 to length + 2 padding - size alike
            height, width, _ = image.shape
            top, left = (
                math.floor(draw * (length + 2 * self.padding - self.size + 1)) - self.padding
                for draw, length in ((draws[0], height), (draws[1], width))
            )
            if self.padding:
                rows = mirrored(np.arange(top, top + self.size), height)
                columns = mirrored(np.arange(left, left + self.size), width)
                image = image[rows[:, None], columns]
            else:
                image = image[top : top + self.size, left : left + self.size]
        return image[:, ::-1] if self.flip and draws[2] < 0.5 else image


def mirrored(positions: np.ndarray, length: int) -> np.ndarray:
    """Positions beyond either end, reflected without repeating the edge (numpy's and torch's "reflect")."""
    return length - 1 - abs(length - 1 - abs(positions))
