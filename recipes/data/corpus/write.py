"""Encodes one video: H.264 and AAC in an mp4 file, with a keyframe every second so that seeking is cheap."""

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np

VIDEO_OPTIONS = {"preset": "ultrafast", "crf": "27", "tune": "fastdecode"}
AUDIO_OPTIONS = {"aac_coder": "fast"}  # twice as quick as the default


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: int, wave: np.ndarray | None, sample_rate: int) -> None:
    """Encodes frames, (H, W, 3) uint8, H and W even, and if there is any, mono sound, (samples,) float32 in [-1, 1]."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options=VIDEO_OPTIONS)
        video.pix_fmt = "yuv420p"
        video.gop_size = fps
        video.codec_context.thread_count = 1  # one video per process: threads would only get in the way
        audio = None
        if wave is not None:
            audio = container.add_stream("aac", rate=sample_rate, layout="mono", options=AUDIO_OPTIONS)
            audio.bit_rate = 32_000
        for number, pixels in enumerate(frames):
            if number == 0:
                video.height, video.width = pixels.shape[:2]
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None and wave is not None:
            frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            frame.sample_rate = sample_rate
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
