"""Languages the problem generator speaks, one file each.

To add one, put `xx.py` beside this file with a module-level `LANGUAGE` of type
`Language`. Nothing else has to change: `load_all` finds it by its file name.
"""

import dataclasses
import importlib
import pkgutil
import random
from typing import Callable


@dataclasses.dataclass(frozen=True)
class Problem:
    question: str
    steps: tuple[str, ...]  # one sentence each, one operation each
    answer: int  # never negative: the MGSM extraction drops a minus sign


@dataclasses.dataclass(frozen=True)
class Language:
    code: str  # as in mgsm_<code>.tsv
    answer_prefix: str  # what the MGSM protocol looks for, without a colon
    instruction: str  # holds `{input}` once
    templates: tuple[Callable[[random.Random], Problem], ...]

    def prompt(self, problem: Problem) -> str:
        return self.instruction.replace("{input}", problem.question)

    def response(self, problem: Problem) -> str:
        reasoning = " ".join(problem.steps)
        return f"{reasoning}\n{self.answer_prefix}: {problem.answer}"


def load_all() -> dict[str, Language]:
    """Every language of this folder, by code, in the order of the codes."""
    languages = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        language = importlib.import_module(
            f"{__name__}.{module.name}").LANGUAGE
        assert language.code == module.name, module.name
        assert language.instruction.count("{input}") == 1, module.name
        languages[language.code] = language
    return languages
