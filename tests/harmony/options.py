"""Keywords of the library, out of the options that tests are varied over."""

from dataclasses import fields
from typing import Any

import harmony


def keywords(**options: Any) -> dict[str, Any]:
    """The same options, with those of the machine in one ``harmony.Engine``."""
    engine = {field.name: options.pop(field.name) for field in fields(harmony.Engine) if field.name in options}
    return {**options, "engine": harmony.Engine(**engine)}
