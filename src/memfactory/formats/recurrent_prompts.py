"""The prompts of `recurrent_memory`: the default ones in both orders, and those with names."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

Order = Literal["memory_first", "chunk_first"]

UPDATE_PROMPT = """\
Read the section and rewrite the memory: keep what helps with the problem, add what is new, correct what has changed.

<problem>
{question}
</problem>

<memory>
{memory}
</memory>

<section>
{section}
</section>

Updated memory:"""

CHUNK_FIRST_PROMPT = """\
First read the section, then rewrite the memory that follows it: keep what helps with the problem, add what the section
brings, correct what it changes.

<problem>
{question}
</problem>

<section>
{section}
</section>

<memory>
{memory}
</memory>

Updated memory:"""

UPDATE_PROMPTS: Mapping[Order, str] = MappingProxyType(
    {"memory_first": UPDATE_PROMPT, "chunk_first": CHUNK_FIRST_PROMPT}
)

ANSWER_PROMPT = """\
Solve the problem from the memory and write the answer inside \\boxed{}.

<problem>
{question}
</problem>

<memory>
{memory}
</memory>

Answer:"""

MEMAGENT_UPDATE_PROMPT = """\
Below you find a problem, what is remembered so far, and one section of an article, in which the answer may stand. Study
the section. Then write the memory anew, so that it also holds whatever the section says that helps with the problem.
Everything in the present memory that bears on the problem must remain in it.

<problem>
{question}
</problem>

<memory>
{memory}
</memory>

<section>
{section}
</section>

Updated memory:"""

MEMAGENT_ANSWER_PROMPT = """\
Below you find a problem and what is remembered of an article about it. Solve the problem from the memory, and write the
answer inside \\boxed{}.

<problem>
{question}
</problem>

<memory>
{memory}
</memory>

Your answer:"""

SHORT_UPDATE_PROMPT = """\
{section}

Question: {question}
Note so far: {memory}
Copy the sentence that answers the question:"""

SHORT_ANSWER_PROMPT = """\
{memory}

Question: {question}
Answer in a few words:"""

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "short": {
            "prompts": {"update": SHORT_UPDATE_PROMPT, "answer": SHORT_ANSWER_PROMPT},
            "order": "chunk_first",
            "empty_memory": "nothing yet",
            "trim_chunks": True,
        },
        "memagent": {"prompts": {"update": MEMAGENT_UPDATE_PROMPT, "answer": MEMAGENT_ANSWER_PROMPT}},
    }
)
"""short: plain words for a small model; the answer has no box around it. memagent: the information and the order of
MemAgent's published prompts, in other words (arXiv 2507.02259)."""
