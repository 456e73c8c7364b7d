"""Layouts: how the files of a data set lie, one module each."""

from tasklora.vision.layouts.base import Layout
from tasklora.vision.layouts.folders import Folders
from tasklora.vision.layouts.nyud_mt import NyudMT
from tasklora.vision.layouts.pascal_mt import PascalMT
from tasklora.vision.layouts.scenes import Scenes
from tasklora.vision.spec import Layout as LayoutName

LAYOUTS: dict[LayoutName, type[Layout]] = {
    "pascal_mt": PascalMT,
    "nyud_mt": NyudMT,
    "folders": Folders,
    "scenes": Scenes,
}
"""Name in a suite's YAML → layout."""

__all__ = ["LAYOUTS", "Layout"]
