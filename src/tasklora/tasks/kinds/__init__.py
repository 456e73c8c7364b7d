"""The kinds of tasks on text: what a row holds, what its label may be, and how answers are shown.

A new kind is a class here, a head (:data:`tasklora.tasks.heads.HEADS`), a layout of its batches
(:data:`tasklora.tasks.collate.LAYOUTS`) and metrics (:data:`tasklora.tasks.metrics.METRICS`), all under its name; where
its answer is a few words, also a form as text (:data:`tasklora.tasks.text_forms.TEXT_FORMS`). Generation has no head.
"""

from tasklora.tasks.kinds.base import Kind, WrongValueError, require_columns
from tasklora.tasks.kinds.choices import MultipleChoice
from tasklora.tasks.kinds.generation import Generation
from tasklora.tasks.kinds.multi_label import MultiLabel
from tasklora.tasks.kinds.ranking import Ranking
from tasklora.tasks.kinds.single import Classification, Regression
from tasklora.tasks.kinds.tokens import OUTSIDE, TokenClassification

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Classification(),
        Regression(),
        MultiLabel(),
        MultipleChoice(),
        TokenClassification(),
        Ranking(),
        Generation(),
    )
}

__all__ = ["KINDS", "OUTSIDE", "Kind", "WrongValueError", "require_columns"]
