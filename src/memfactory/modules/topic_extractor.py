"""The module `topic_extractor`: RMM's prospective reflection summarizes a session by topic (arXiv 2503.08026)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import Field

from memfactory.components import ModuleOptions
from memfactory.dialogue import Ask, Asking
from memfactory.episode import Episode
from memfactory.formats.parse import Topic, parse_topics
from memfactory.formats.provenance import Namespaces, from_turns, with_provenance
from memfactory.formats.render import bracketed_list, render_conversation
from memfactory.registry import MODULES
from memfactory.roles import Extractor
from memfactory.text import fill
from memfactory.types import Candidate, Message, Utterance

TOPIC_PROMPT = """\
Sum up what the session tells about {speaker}, topic by topic: one sentence for each topic, which can be read alone,
with the numbers of the turns that it comes from.

<session>
{conversation}
</session>

Reply with JSON: {"extracted_memories": [{"summary": "one sentence", "reference": [0, 2]}]}
If the session tells nothing about {speaker}, reply NO_TRAIT."""


SHORT_PROMPT = """\
{conversation}

Sum up what {speaker} tells, with the numbers of the lines.
Reply with JSON: {"extracted_memories": [{"summary": "one sentence", "reference": [0]}]}"""


class TopicExtractorOptions(ModuleOptions):
    """Options of `topic_extractor`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"short": {"prompt": SHORT_PROMPT}})

    prompt: str = TOPIC_PROMPT
    """The prompt; {conversation} and {speaker} are filled in."""
    max_tokens: int = Field(1024, ge=1)
    """The longest reply, in tokens."""
    each_speaker: bool = True
    """Whether the session is summarized once for each speaker, as in RMM, or once for all."""
    namespaces: Namespaces = "joint"
    """The memory that a topic joins: one for all (joint), or that of the speaker it is about."""


@MODULES.register("topic_extractor")
class TopicExtractor(Extractor[TopicExtractorOptions]):
    """Summarizes a session topic by topic, for each of its speakers."""

    steps = ("extract",)

    def dialogue(self, episode: Episode, utterances: Sequence[Utterance]) -> Asking[tuple[Candidate, ...]]:
        if not utterances:
            return ()
        options = self.options
        speakers = list(dict.fromkeys(turn.speaker for turn in utterances))
        conversation = bracketed_list([render_conversation([turn]) for turn in utterances])
        episode.note_reading(len(self.codec.offsets(conversation)))
        candidates: list[Candidate] = []
        for speaker in speakers if options.each_speaker else [" and ".join(speakers)]:
            prompt = fill(options.prompt, {"conversation": conversation, "speaker": speaker})
            reply = yield Ask("extract", (Message("user", prompt),), options.max_tokens)
            reply_topics = parse_topics(reply.text, len(utterances))
            episode.check("extract", reply_topics.form)
            owner = speaker if options.each_speaker else None
            candidates += [self._candidate(topic, utterances, owner) for topic in reply_topics.topics]
        return tuple(candidates)

    def _candidate(self, topic: Topic, utterances: Sequence[Utterance], speaker: str | None) -> Candidate:
        """The topic as a candidate, from the turns that it refers to, else from those whose words it shares."""
        candidate, turns = Candidate(topic.summary), [utterances[place] for place in sorted(topic.places)]
        if turns:
            candidate = from_turns(candidate, turns, utterances)
        else:
            (candidate,) = with_provenance([candidate], utterances, "speaker")
        if self.options.namespaces == "joint":
            return replace(candidate, namespace="")
        return candidate if speaker is None else replace(candidate, namespace=speaker)
