"""Small tables to guess tasks of."""

import random

from datasets import Dataset

from tasklora.tasks import TaskSpec
from tasklora.tasks.guessing.columns import look_at
from tasklora.tasks.guessing.roles import Said, Table
from tasklora.tasks.guessing.rules import guess_task

ROWS = 60
WORDS = ["the", "a", "film", "was", "so", "very", "and", "plot", "actor", "scene", "funny", "dull", "long", "short"]


def texts(seed=0, rows=ROWS, words=8):
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=words)) + f" {seed}.{row}" for row in range(rows)]


def cycle(values, rows=ROWS):
    return [values[row % len(values)] for row in range(rows)]


def table(columns, several=False, **said):
    rows = columns if isinstance(columns, Dataset) else Dataset.from_dict(columns)
    return Table("mine", "mine.csv", look_at(rows), Said(**said), several)


def guess(columns, **said):
    found = guess_task(table(columns, **said))
    TaskSpec(**found.settings)  # a guess is a task that can be trained
    return found
