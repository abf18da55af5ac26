"""The benchmark of edits on emoji scenes: tasks with true answers, scores against them, and their intervals."""

from .scores import SCORES, Score, Scores, score_edits
from .statistics import Interval, difference, summary
from .tasks import TASKS, Case, Task, draw_cases

__all__ = [
    "SCORES",
    "TASKS",
    "Case",
    "Interval",
    "Score",
    "Scores",
    "Task",
    "difference",
    "draw_cases",
    "score_edits",
    "summary",
]
