"""Images as data URIs: clean, adversarial, and the difference between them, amplified."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = list[list[list[int]]]


def png(pixels: NDArray[np.uint8]) -> str:
    """`[channels, height, width]` in 0-255 as a PNG's data URI; other than 1 and 3 channels become their mean."""
    if len(pixels) == 3:
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    else:
        image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.mean(axis=0).round().astype(np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def array(pixels: Pixels) -> NDArray[np.uint8]:
    """Nested lists as `[channels, height, width]`.

    Raises:
        ValueError: they are not such lists of 0-255.
    """
    try:
        values = np.array(pixels, dtype=np.int64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"a picture's pixels are lists [channels][height][width] ({error}).") from error
    if values.ndim != 3 or not values.size or values.min() < 0 or values.max() > 255:
        raise ValueError(f"a picture's pixels are [channels][height][width] in 0-255, not of shape {values.shape}.")
    return values.astype(np.uint8)


def amplification(eps: float) -> float:
    """What makes a change of eps in [0, 1] half of the grey scale, at least 1."""
    return max(1.0, 0.5 / eps) if eps > 0 else 1.0


def difference(clean: NDArray[np.uint8], adversarial: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """`adversarial - clean`, times `factor`, around mid-grey."""
    change = (adversarial.astype(np.float64) - clean) * factor + 127.5
    return np.asarray(change.round().clip(0, 255), dtype=np.uint8)
