"""What a table's task is: guesses from columns' names and values, with reasons, and questions where none is safe."""

from tasklora.tasks.guessing.finding import Place, Proposal, find_tasks, propose
from tasklora.tasks.guessing.guess import Guess
from tasklora.tasks.guessing.roles import Said, Table
from tasklora.tasks.guessing.rules import RULES, guess_task

__all__ = [
    "RULES",
    "Guess",
    "Place",
    "Proposal",
    "Said",
    "Table",
    "find_tasks",
    "guess_task",
    "propose",
]
