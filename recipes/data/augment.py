"""Random crops, flips, colours and noise: pure functions of an array and a generator, one draw for a whole clip."""

import numpy as np
import torch
from torch.nn.functional import interpolate

from recipes.config import AugmentConfig

# From RGB to luma and two axes of chroma (YIQ, as in NTSC television), and back.
TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
TO_RGB = np.linalg.inv(TO_YIQ)


def augment(video: np.ndarray, size: int, rng: np.random.Generator, config: AugmentConfig) -> np.ndarray:
    """Crops, flips and colours all pictures of a clip alike: uint8 (T, H, W, 3) -> uint8 (T, size, size, 3)."""
    video = resize(random_crop(video, rng, config.crop_area, config.crop_aspect), size, size)
    if rng.random() < config.flip:
        video = torch.from_numpy(video).flip(2).numpy()  # numpy takes more than twice as long
    if rng.random() < config.colour:
        video = jitter(video, rng, config)
    return np.ascontiguousarray(video)


def center(video: np.ndarray, size: int) -> np.ndarray:
    """The square in the middle of uint8 (T, H, W, 3), scaled to `size` pixels a side."""
    return squares(video, size, 1)[0]


def squares(video: np.ndarray, size: int, count: int) -> np.ndarray:
    """The largest squares along the longer side, or in the middle: uint8 (T, H, W, 3) -> (count, T, size, size, 3)."""
    height, width = video.shape[1:3]
    short, spare = min(height, width), abs(height - width)
    places = [spare // 2] if count == 1 else [round(spare * i / (count - 1)) for i in range(count)]
    cut = [video[:, :, i : i + short] if width > height else video[:, i : i + short] for i in places]
    return np.stack([resize(square, size, size) for square in cut])


def random_crop(
    video: np.ndarray, rng: np.random.Generator, area: tuple[float, float], aspect: tuple[float, float]
) -> np.ndarray:
    """A view (T, h, w, 3) of random area (share of the picture) and aspect (width / height, log-uniform).

    If ten tries do not fit, it is the largest rectangle in the middle with a permitted aspect.
    """
    height, width = video.shape[1:3]
    areas = height * width * rng.uniform(*area, 10)
    aspects = np.exp(rng.uniform(*np.log(aspect), 10))
    widths, heights = np.rint(np.sqrt(areas * aspects)).astype(int), np.rint(np.sqrt(areas / aspects)).astype(int)
    fits = (widths >= 1) & (heights >= 1) & (widths <= width) & (heights <= height)
    if fits.any():
        w, h = int(widths[fits.argmax()]), int(heights[fits.argmax()])
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    else:
        w, h = min(width, round(height * aspect[1])), min(height, round(width / aspect[0]))
        top, left = (height - h) // 2, (width - w) // 2
    return video[:, top : top + h, left : left + w]


def jitter(video: np.ndarray, rng: np.random.Generator, config: AugmentConfig) -> np.ndarray:
    """Shifts brightness and hue, scales contrast and saturation of uint8 (T, H, W, 3): one affine map of RGB."""
    shift = 255 * rng.uniform(-config.brightness, config.brightness)
    contrast, saturation = rng.uniform(*config.contrast), rng.uniform(*config.saturation)
    angle = 2 * np.pi * rng.uniform(-config.hue, config.hue)
    cos, sin = saturation * np.cos(angle), saturation * np.sin(angle)
    turn = TO_RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ TO_YIQ
    offset = (1 - contrast) * turn @ _mean_colour(video) + shift  # contrast is about the mean colour of the clip
    return _affine(video, (contrast * turn.T).astype(np.float32), offset.astype(np.float32))


def _mean_colour(video: np.ndarray) -> np.ndarray:
    """The mean of a clip's pixels: float32 (3,)."""
    columns = video.reshape(-1, 3 * video.shape[2]).sum(0, dtype=np.uint64)  # long rows are added fast, and exactly
    return columns.reshape(-1, 3).sum(0).astype(np.float32) / np.float32(video.size // 3)


def _affine(video: np.ndarray, matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Every pixel times a matrix, plus an offset, rounded to uint8; picture by picture, which fits the cache."""
    changed, offsets = np.empty_like(video), np.tile(offset, video.shape[2])
    for picture, out in zip(video, changed, strict=True):
        pixels = (picture.reshape(-1, 3).astype(np.float32) @ matrix).reshape(len(picture), -1)
        pixels += offsets
        np.rint(pixels, out=pixels)
        out[...] = np.clip(pixels, 0, 255, out=pixels).reshape(out.shape)
    return changed


def resize(video: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resamples uint8 (T, H, W, 3) to (T, height, width, 3), bilinear, without aliasing."""
    if video.shape[1:3] == (height, width):
        return video
    pictures = torch.from_numpy(np.ascontiguousarray(video)).permute(0, 3, 1, 2)
    return interpolate(pictures, (height, width), mode="bilinear", antialias=True).permute(0, 2, 3, 1).numpy()


def add_noise(audio: np.ndarray, rng: np.random.Generator, deviation: float) -> np.ndarray:
    """Adds normal noise to float32 sound (S,), its deviation a share of the peak."""
    noise = rng.standard_normal(audio.shape, np.float32)
    return audio + np.float32(deviation) * np.abs(audio).max(initial=0) * noise
