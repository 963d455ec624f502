"""A page and its HTML: one self-contained file in which every text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType

from jinja2 import Environment, PackageLoader, StrictUndefined

from memfactory.evaluation.statistics import Estimate
from memfactory.view.episodes import EpisodeGroup


@dataclass(frozen=True)
class EvaluationRow:
    """One row of the table of evaluations. `subject` is a model, or an optimizer step of a run."""

    subject: str
    dataset: str
    metric: str
    estimate: Estimate
    interval: tuple[float, float] | None
    samples: int


@dataclass(frozen=True)
class Section:
    """The episodes of an optimizer step, of a dataset under a model, or of a file."""

    title: str
    groups: Sequence[EpisodeGroup]


@dataclass(frozen=True)
class Page:
    """Everything that a page shows. `figures` are data: URLs by name.

    `sections_are` names the kind of the sections, `subjects_are` that of the evaluations' subjects.
    """

    name: str
    sections_are: str
    sections: Sequence[Section]
    notes: Sequence[str] = ()
    figures: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    evaluations: Sequence[EvaluationRow] = ()
    subjects_are: str = "model"
    config: str = ""

    def html(self) -> str:
        """The page as HTML.

        The sections stand in its script as JSON, in which no text can end the script; the rest is escaped HTML. The
        content security policy allows no requests.
        """
        # Sorted keys would reorder the scores.
        environment = Environment(
            loader=PackageLoader("memfactory.view"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
        sections = [asdict(section) for section in self.sections]
        return environment.get_template("page.html").render(page=self, sections=sections)
