"""One image with its dense labels, and the reading of images: anything doubtful about one is said, never guessed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasklora.errors import DataError, first_line

Greyscale = Literal["refuse", "repeat"]
Orientation = Literal["refuse", "stored"]

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = 1
_MODES = {
    "1": "black and white (mode 1)",
    "L": "greyscale (mode L)",
    "LA": "greyscale with transparency (mode LA)",
    "I;16": "16-bit greyscale (mode I;16)",
    "I": "greyscale of more than 8 bits (mode I)",
    "F": "floating-point greyscale (mode F)",
    "P": "a palette image (mode P)",
    "RGBA": "RGB with transparency (mode RGBA)",
    "CMYK": "CMYK, for print (mode CMYK)",
}


@dataclass
class DenseSample:
    """An image and the label maps of its tasks.

    Attributes:
        name: the image's name, unique in its data set.
        image: uint8 (H, W, 3), RGB.
        labels: task → its map, of the image's height and width:

            - segmentation: uint8 (H, W) class ids, 255 ignored;
            - saliency, edges: float32 (H, W), 0 or 1, 255 ignored;
            - normals: float32 (3, H, W) unit vectors (x to the right, y up, z towards the viewer), 255 in all three
              parts where ignored;
            - depth: float32 (H, W) metres along the optical axis, 0 ignored.
    """

    name: str
    image: NDArray[np.uint8]
    labels: dict[str, NDArray[Any]]


def image_size(path: Path, greyscale: Greyscale = "refuse", orientation: Orientation = "refuse") -> tuple[int, int]:
    """Return (width, height) of an image from its header, which says too whether :func:`read_image` would take it.

    Raises:
        DataError: as :func:`read_image`; damage behind the header shows only when the image is read.
    """
    return _opened(path, greyscale, orientation, decode=False)[0]


def read_image(path: Path, greyscale: Greyscale = "refuse", orientation: Orientation = "refuse") -> NDArray[np.uint8]:
    """Return an image as uint8 (H, W, 3), RGB, its pixels as they are stored.

    Args:
        path: an image file that Pillow reads.
        greyscale: what an 8-bit greyscale image is: an error, or (``repeat``) three equal channels.
        orientation: what an EXIF tag is that wants the image turned for display: an error, since nothing says whether
            the labels are turned too, or (``stored``) without meaning, since labels belong to the pixels as stored.

    Raises:
        DataError: on a file that is no image, is damaged, or is not 8-bit RGB.
    """
    pixels = _opened(path, greyscale, orientation, decode=True)[1]
    assert pixels is not None
    return pixels


def _opened(
    path: Path, greyscale: Greyscale, orientation: Orientation, *, decode: bool
) -> tuple[tuple[int, int], NDArray[np.uint8] | None]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            # of a PNG, its own getexif would decode all pixels, to find what may stand behind them
            exif = image.getexif() if decode else Image.Image.getexif(image)
            _refuse(path, image.mode, exif.get(_EXIF_ORIENTATION, _UPRIGHT), greyscale, orientation)
            return image.size, np.asarray(image.convert("RGB"), dtype=np.uint8) if decode else None
    except UnidentifiedImageError:
        problem = "its content is not that of an image file"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        problem = first_line(error)
    raise DataError(
        f"image {path} cannot be read: {problem}. Replace or remove it, or leave out such images with "
        "skip_bad_images: true."
    )


def _refuse(path: Path, mode: str, turned: int, greyscale: Greyscale, orientation: Orientation) -> None:
    if mode != "RGB" and not (mode == "L" and greyscale == "repeat"):
        also = ", say `greyscale: repeat` in the suite's options" if mode == "L" else ""
        raise DataError(
            f"image {path} is {_MODES.get(mode, f'of mode {mode}')}; 8-bit RGB is expected. Save it as RGB{also}, "
            "or leave out such images with skip_bad_images: true."
        )
    if turned != _UPRIGHT and orientation == "refuse":
        raise DataError(
            f"image {path} has EXIF orientation {turned}: it is to be turned for display, and nothing says whether its "
            "labels are turned too. Save it upright; or, where labels belong to the pixels as stored, say "
            "`orientation: stored` in the suite's options; or leave out such images with skip_bad_images: true."
        )
