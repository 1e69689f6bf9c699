"""Pictures for people: conversion, grids, labelled rows, PNG files."""

import io
import math
import os
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rcg.errors import UserError

BACKGROUND = 250


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] -> uint8, clipped and truncated as the official code writes PNGs; NaN is black."""
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    images = np.nan_to_num(images.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    return np.clip(255 * images, 0, 255).astype(np.uint8)


def grid(images: np.ndarray, columns: int | None = None, pad: int = 2) -> np.ndarray:
    """[N, H, W, 3] -> one uint8 picture, row by row; as square as can be unless `columns` says."""
    images = to_uint8(images)
    if images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(f"a grid is made of [N, H, W, 3] with N > 0, not of {images.shape}")
    n, h, w, _ = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    sheet = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, 3), BACKGROUND, np.uint8)
    for i, image in enumerate(images):
        top, left = pad + i // columns * (h + pad), pad + i % columns * (w + pad)
        sheet[top : top + h, left : left + w] = image
    return sheet


def labelled_rows(rows: Mapping[str, np.ndarray], pad: int = 2, scale_to: int = 64) -> np.ndarray:
    """name -> [N, H, W, 3]: one row of pictures a name, with the name in front. Small pictures are
    enlarged to at least `scale_to` pixels."""
    font = ImageFont.load_default(13)
    gutter = 16 + max(int(font.getlength(name)) for name in rows)
    strips = []
    for name, images in rows.items():
        factor = max(1, scale_to // images.shape[1])
        images = to_uint8(images).repeat(factor, axis=1).repeat(factor, axis=2)
        strip = grid(images, columns=len(images), pad=pad)
        label = Image.new("RGB", (gutter, len(strip)), (BACKGROUND,) * 3)
        ImageDraw.Draw(label).text((8, len(strip) // 2), name, "black", font, anchor="lm")
        strips.append(np.concatenate([np.asarray(label), strip], axis=1))
    width = max(strip.shape[1] for strip in strips)
    filled = [
        np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=BACKGROUND) for s in strips
    ]
    return np.concatenate(filled)


def png_bytes(image: np.ndarray) -> bytes:
    """[H, W, 3] -> an encoded PNG."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, "PNG")
    return buffer.getvalue()


def save_png(path: str, image: np.ndarray) -> None:
    """Writes a PNG whole or not at all, making its folder.

    Raises:
      UserError: the disk is full, or the folder can't be written to.
    """
    encoded = png_bytes(image)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(path + ".incomplete", "wb") as f:
            f.write(encoded)
        os.replace(path + ".incomplete", path)
    except OSError as error:
        raise UserError(
            f"can't write {path}: {error.strerror}; free some space, or name another folder"
        ) from error
