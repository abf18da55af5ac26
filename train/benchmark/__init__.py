"""The benchmark of edits on emoji scenes: tasks with true answers, scores against them, and their intervals."""

from .cases import Case
from .inputs import box_around
from .scores import SCORES, Score, Scores, score_edits
from .statistics import Interval, Verdict, difference, summary, verdict
from .tasks import TASKS, Task, draw_cases

__all__ = [
    "SCORES",
    "TASKS",
    "Case",
    "Interval",
    "Score",
    "Scores",
    "Task",
    "Verdict",
    "box_around",
    "difference",
    "draw_cases",
    "score_edits",
    "summary",
    "verdict",
]
