"""A procedural tri-modal corpus of real media: moving objects, the sounds that belong to them, narrations.

`plan` decides what happens in a video, `scene` and `sound` render it, `write` encodes it, `layout` builds the folder.
"""

from .layout import build
from .plan import STYLES, plan_video

__all__ = ["STYLES", "build", "plan_video"]
