"""What a task is: its rows, its head, its metrics; and the model that serves several at once."""

from tasklora.tasks.base_model import MINILM, BaseModel, load_base, load_skeleton, packaged_minilm, sha256_of
from tasklora.tasks.collate import MultiTaskCollator, split_by_task
from tasklora.tasks.data import StreamedRows, TaskData, TaskRows, load_tasks
from tasklora.tasks.heads import HEADS, TaskHead, head_of
from tasklora.tasks.kinds import KINDS, Kind
from tasklora.tasks.methods import TRAINING_METHODS, TrainingMethod, training_method
from tasklora.tasks.metrics import METRICS, compute_metrics
from tasklora.tasks.model import MultiTaskModel, MultiTaskOutput
from tasklora.tasks.packing import Packing, check_packs_causal, pack_causal, pack_rows
from tasklora.tasks.row_metrics import Answers
from tasklora.tasks.saved_model import (
    SavedModel,
    load_model,
    load_weights,
    read_about,
    read_safetensors,
    save_model,
)
from tasklora.tasks.spec import Split, Suite, TaskSpec, load_suite, shipped_suites
from tasklora.tasks.streaming import Streaming
from tasklora.tasks.strict import Strict, load_yaml, parse, read_yaml
from tasklora.tasks.templates import Evaluation, Template, TextToText, shipped_templates
from tasklora.tasks.text_collate import TextToTextCollator, split_texts_by_task
from tasklora.tasks.text_forms import TEXT_FORMS, template_columns
from tasklora.tasks.text_to_text import TextToTextModel, TextToTextOutput
from tasklora.tasks.views import VIEWS, Collator, TaskModel, View
from tasklora.tasks.whole_files import move_into_place, share_mode, write_text_whole

__all__ = [
    "HEADS",
    "KINDS",
    "METRICS",
    "MINILM",
    "TEXT_FORMS",
    "TRAINING_METHODS",
    "VIEWS",
    "Answers",
    "BaseModel",
    "Collator",
    "Evaluation",
    "Kind",
    "MultiTaskCollator",
    "MultiTaskModel",
    "MultiTaskOutput",
    "Packing",
    "SavedModel",
    "Split",
    "StreamedRows",
    "Streaming",
    "Strict",
    "Suite",
    "TaskData",
    "TaskHead",
    "TaskModel",
    "TaskRows",
    "TaskSpec",
    "Template",
    "TextToText",
    "TextToTextCollator",
    "TextToTextModel",
    "TextToTextOutput",
    "TrainingMethod",
    "View",
    "check_packs_causal",
    "compute_metrics",
    "head_of",
    "load_base",
    "load_model",
    "load_skeleton",
    "load_suite",
    "load_tasks",
    "load_weights",
    "load_yaml",
    "move_into_place",
    "pack_causal",
    "pack_rows",
    "packaged_minilm",
    "parse",
    "read_about",
    "read_safetensors",
    "read_yaml",
    "save_model",
    "sha256_of",
    "share_mode",
    "shipped_suites",
    "shipped_templates",
    "split_by_task",
    "split_texts_by_task",
    "template_columns",
    "training_method",
    "write_text_whole",
]
