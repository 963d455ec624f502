"""The module `naive_extractor`: facts worth remembering from a conversation, as structured entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import Field

from memfactory.components import ModuleOptions
from memfactory.dialogue import Ask, Asking
from memfactory.episode import Episode
from memfactory.formats.parse import parse_extraction
from memfactory.formats.provenance import Namespaces, with_provenance
from memfactory.formats.render import render_conversation
from memfactory.registry import MODULES
from memfactory.roles import Extractor
from memfactory.text import fill
from memfactory.types import Candidate, Message, Utterance

EXTRACT_PROMPT = """\
Write down what is worth remembering from the conversation, each fact as one sentence that can be read alone.

<conversation>
{conversation}
</conversation>

Reply with JSON: {"memory_list": [{"key": "title", "value": "fact"}]}"""


SHORT_PROMPT = """\
Write down each fact about a person as one sentence.

{conversation}

Reply with JSON: {"memory_list": [{"key": "name", "value": "sentence"}]}"""


class NaiveExtractorOptions(ModuleOptions):
    """Options of `naive_extractor`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"short": {"prompt": SHORT_PROMPT}})

    prompt: str = EXTRACT_PROMPT
    """The prompt; {conversation} is filled in."""
    max_tokens: int = Field(1024, ge=1)
    """The longest reply, in tokens."""
    namespaces: Namespaces = "joint"
    """The memory that an entry joins: one for all (joint), or its speaker's."""


@MODULES.register("naive_extractor")
class NaiveExtractor(Extractor[NaiveExtractorOptions]):
    """Extracts facts worth remembering from a conversation, as structured entries."""

    steps = ("extract",)

    def dialogue(self, episode: Episode, utterances: Sequence[Utterance]) -> Asking[tuple[Candidate, ...]]:
        if not utterances:
            return ()
        conversation = render_conversation(utterances)
        episode.note_reading(len(self.codec.offsets(conversation)))
        prompt = fill(self.options.prompt, {"conversation": conversation})
        reply = yield Ask("extract", (Message("user", prompt),), self.options.max_tokens)
        extraction = parse_extraction(reply.text)
        episode.check("extract", extraction.form)
        return with_provenance(extraction.candidates, utterances, self.options.namespaces)
