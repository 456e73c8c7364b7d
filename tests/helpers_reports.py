"""What a report says, taken from its page."""

from __future__ import annotations

import base64
import json
import re
from typing import Any


def data_of(page: str, figure: str) -> Any:
    """Return the data of a figure in a page."""
    (content,) = re.findall(rf'download="{figure}.json" href="data:application/json;base64,([^"]+)"', page)
    return json.loads(base64.b64decode(content.replace("&#43;", "+")))
