"""The embedded default: a real pretrained model, five small tasks of our own making, minutes on a laptop."""
