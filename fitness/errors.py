"""The errors of this package, and the root of every mistake that a user can mend.

UserMistake              what was wrong, where, the limit, the remedy; the command line exits 2
├── PromptError          a prompts file that cannot be read, or a split that is empty
└── ScoringSetupError    a rubric, template, metric or judge setting that cannot work
ScoringFailed            too few answers of one evaluation could be scored; the run goes on
JudgeStopped             the judge cannot or may not be asked any more; the run stops, resumable
└── JudgeRefused         its server refuses whoever asks, or does not know the model; a UserMistake too
"""

from __future__ import annotations


class UserMistake(Exception):
    """A mistake the user can mend. Its message is shown alone, without a traceback."""


class PromptError(UserMistake):
    """A prompts file cannot be read, or a split is empty."""


class ScoringSetupError(UserMistake):
    """A rubric, chat template, metric or judge setting cannot work."""


class ScoringFailed(Exception):
    """Too few answers of one evaluation could be scored for its fitness to mean anything."""


class JudgeStopped(Exception):
    """The judge cannot or may not be asked any more: a wrong key, a cap that is reached, a server that is gone.

    Its message is for people; what was judged before is kept.
    """


class JudgeRefused(JudgeStopped, UserMistake):
    """The judge's server refuses the key, or does not know the model."""
