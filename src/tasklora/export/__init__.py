"""Leaving tasklora: plain LoRA per task, or the merged model."""

from tasklora.export.lora import export_lora
from tasklora.export.run import export_merged, export_task

__all__ = ["export_lora", "export_merged", "export_task"]
