"""A procedural tri-modal corpus of real media: moving objects, the sounds that belong to them, narrations.

`plan` decides what happens in a video, `scene` and `sound` render it, `write` encodes it, `layout` builds the folder.
"""

from recipes.data.corpus.layout import Corpus, build
from recipes.data.corpus.plan import STYLES, plan_video

__all__ = ["STYLES", "Corpus", "build", "plan_video"]
