"""Makes ``--model tasklora`` known to lm-eval, without importing tasklora, lm-eval or torch before they are needed.

lm-eval loads no plugins: its command knows the models of its own table and no way to add one. But it imports torch
before it looks a model up, and torch calls the entry points of the group ``torch.backends`` when it is imported
(``TORCH_DEVICE_BACKEND_AUTOLOAD=0`` stops that). The one of this package does nothing in any process but lm-eval's.
"""

import sys
import warnings

MODEL = "tasklora"
TARGET = "tasklora.evaluation.lm_eval_bridge:TaskLoraLM"


def register() -> None:
    """Put the model into lm-eval's registry, by the path from which it is imported when it is asked for."""
    import lm_eval.models  # noqa: F401  # fills the registry, which is done only while it is empty
    from lm_eval.api.registry import model_registry

    if MODEL not in model_registry:
        model_registry.register(MODEL, target=TARGET)


def when_torch_is_imported() -> None:
    """Register if this is a process of lm-eval; never fail, which would fail the import of torch."""
    if "lm_eval" in sys.modules:
        try:
            register()
        except Exception as error:
            warnings.warn(f"lm-eval does not know the model '{MODEL}': {error!r}", RuntimeWarning, stacklevel=2)
