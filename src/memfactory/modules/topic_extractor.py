"""The module `topic_extractor`: RMM's prospective reflection, a session summed up by topic (arXiv 2503.08026)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from memfactory.components import ModuleOptions
from memfactory.dialogue import Ask, Asking, Module
from memfactory.episode import Episode
from memfactory.formats.parse import Topic, parse_topics
from memfactory.formats.provenance import Namespaces, sourced, traced
from memfactory.formats.render import bracketed, spoken
from memfactory.registry import MODULES
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


class TopicExtractorOptions(ModuleOptions):
    """Options of `topic_extractor`."""

    prompt: str = TOPIC_PROMPT
    """The wording; {conversation} and {speaker} are filled in."""
    max_tokens: int = Field(1024, ge=1)
    """The longest reply, in tokens."""
    each_speaker: bool = True
    """Whether the session is summed up once for each speaker, as in RMM, or once for all."""
    namespaces: Namespaces = "joint"
    """Whose memory a topic joins: one for all, or that of the speaker it is about."""


@MODULES.register("topic_extractor")
class TopicExtractor(Module):
    """Sums up a session topic by topic, for each of its speakers."""

    Options: ClassVar[type[TopicExtractorOptions]] = TopicExtractorOptions
    options: TopicExtractorOptions
    roles = ("extractor",)
    steps = ("extract",)

    def dialogue(self, episode: Episode) -> Asking:
        options, heard = self.options, episode.heard
        episode.candidates = ()
        speakers = list(dict.fromkeys(turn.speaker for turn in heard))
        conversation = bracketed([spoken([turn]) for turn in heard])
        if heard:
            episode.note_reading(len(self.codec.offsets(conversation)))
        for speaker in speakers if options.each_speaker else [" and ".join(speakers)] if speakers else []:
            prompt = fill(options.prompt, {"conversation": conversation, "speaker": speaker})
            reply = yield Ask("extract", (Message("user", prompt),), options.max_tokens)
            found = parse_topics(reply.text, len(heard))
            own = speaker if options.each_speaker else None
            episode.candidates += tuple(self._candidate(topic, heard, own) for topic in found.topics)
            episode.check("extract", found.form)

    def _candidate(self, topic: Topic, heard: Sequence[Utterance], speaker: str | None) -> Candidate:
        """The topic as an entry, said in the turns it refers to, or in those whose words it shares."""
        candidate, turns = Candidate(topic.summary), [heard[place] for place in sorted(topic.places)]
        (found,) = [sourced(candidate, turns, heard)] if turns else traced([candidate], heard, "speaker")
        if self.options.namespaces == "joint":
            return replace(found, namespace="")
        return found if speaker is None else replace(found, namespace=speaker)
