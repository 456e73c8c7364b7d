"""Leaving tasklora, as plain LoRA per task or merged, and coming to it from plain LoRA and other codes' checkpoints."""

from tasklora.export.banks import bank_of_loras
from tasklora.export.files import read_manifest
from tasklora.export.importing import ImportedLora, import_lora, read_lora
from tasklora.export.lora import export_all, export_lora, write_serving_page
from tasklora.export.merged import export_merged
from tasklora.export.mtlora_checkpoints import ConvertedDense, convert_mtlora, write_mtlora
from tasklora.export.reduction import Reduction, truncate
from tasklora.export.reference import PRESETS, Converted, convert_reference, write_reference
from tasklora.export.run import export_task, export_task_merged
from tasklora.export.serving import serving_commands, vllm_rank

__all__ = [
    "PRESETS",
    "Converted",
    "ConvertedDense",
    "ImportedLora",
    "Reduction",
    "bank_of_loras",
    "convert_mtlora",
    "convert_reference",
    "export_all",
    "export_lora",
    "export_merged",
    "export_task",
    "export_task_merged",
    "import_lora",
    "read_lora",
    "read_manifest",
    "serving_commands",
    "truncate",
    "vllm_rank",
    "write_mtlora",
    "write_reference",
    "write_serving_page",
]
