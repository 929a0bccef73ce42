"""Pages that need no other file: templates, and pictures as data URLs."""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.policies["json.dumps_kwargs"] = {"ensure_ascii": False}  # fields stay in their order


def render(template: str, **values: Any) -> str:
    """Fill a template; every value is escaped."""
    return TEMPLATES.get_template(template).render(**values)


def encoded(picture: np.ndarray, form: str, **options: Any) -> bytes:
    """A picture, uint8 (H, W, 3), as a file of a form that PIL knows."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, form, **options)
    return buffer.getvalue()


def data_url(data: bytes, kind: str) -> str:
    """A file as a URL that holds it; ``kind`` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
