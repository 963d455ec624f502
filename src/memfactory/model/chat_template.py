"""A tokenizer's chat template: which one, the form of messages that it takes, and whether it shows their contents."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from memfactory.errors import ConfigError, in_one_line
from memfactory.types import Message, Scalar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("memfactory")
_PROBE = "Which of seven words comes first?"
_REPLY_PROBE = "The fourth of nine words."


class ChatTemplate:
    """Renders messages as the template of `tokenizer` does, under `options`.

    Some templates take a message's content as text, others as a list of parts; the form that shows a probe is used.
    Where the template refuses a system message, its text begins the first user message instead, above a blank line, and
    an empty one is left out.
    Raises ConfigError without a template, or with several of which none is the default.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Scalar], name: str) -> None:
        self._tokenizer, self._options, self._name = tokenizer, dict(options), name
        self._template = _chosen(tokenizer.chat_template, name)
        unused = [option for option in options if not re.search(rf"\b{re.escape(option)}\b", self._template)]
        if unused:
            log.warning("model.template_options: the chat template of %r knows no %s", name, ", ".join(unused))
        self._parts = not self._shows_probe(parts=False) and self._shows_probe(parts=True)
        self._folds_system = self._refuses_system()
        self._has_warned = False

    def render(self, messages: Sequence[Message], *, opening: bool = True) -> str:
        """The conversation as one text, with the opening of the reply behind it unless `opening` is false.

        Raises ConfigError when the template refuses the messages, fails on them, or leaves out the content of one.
        """
        if self._folds_system:
            messages = self._without_system(messages)
        try:
            text = self._rendered(messages, self._parts, opening)
        except Exception as error:
            # A template is a program of somebody else's: it can fail in any way.
            roles = ", ".join(message.role for message in messages)
            refusal = f"the chat template refuses a conversation with the roles {roles}: {in_one_line(error)}"
            raise ConfigError(refusal) from error
        for message in messages:
            # Templates shorten a model's thinking in earlier turns on purpose.
            if message.role != "assistant" and message.content.strip() not in text:
                raise ConfigError(
                    f"the chat template of {self._name!r} leaves out the content of the {message.role} message "
                    f"({message.content.strip()[:60]!r}); name another template in model.chat_template"
                )
        return text

    def closing(self) -> str:
        """The text that the template writes behind the content of an assistant's message; empty if it refuses one."""
        messages = [Message("user", _PROBE), Message("assistant", _REPLY_PROBE)]
        try:
            return self._rendered(messages, self._parts, opening=False).rpartition(_REPLY_PROBE)[2]
        except Exception:  # noqa: BLE001 - `render` reports a template that fails, where it matters
            return ""

    def _without_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with the system's text at the beginning of the user's message that follows it."""
        if len(messages) < 2 or [message.role for message in messages[:2]] != ["system", "user"]:
            return messages
        system, user = messages[:2]
        if not system.content.strip():
            return messages[1:]
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "model %r: its chat template has no system role, so the system prompt begins the first user message",
                self._name,
            )
        return [Message("user", f"{system.content}\n\n{user.content}"), *messages[2:]]

    def _refuses_system(self) -> bool:
        """Whether the template takes a user's message alone, and none behind a system message."""
        user = Message("user", _PROBE)
        try:
            self._rendered([user], self._parts)
        except Exception:  # noqa: BLE001 - it takes no message at all; `render` reports it
            return False
        try:
            self._rendered([Message("system", _REPLY_PROBE), user], self._parts)
        except Exception:  # noqa: BLE001 - a template may refuse in any way
            return True
        return False

    def _rendered(self, messages: Sequence[Message], parts: bool, opening: bool = True) -> str:
        conversation = [
            {
                "role": message.role,
                "content": [{"type": "text", "text": message.content}] if parts else message.content,
            }
            for message in messages
        ]
        text = self._tokenizer.apply_chat_template(
            conversation,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=opening,
            **self._options,
        )
        # Token ids come only with tokenize=True.
        return cast(str, text)

    def _shows_probe(self, *, parts: bool) -> bool:
        try:
            text = self._rendered([Message("user", _PROBE)], parts)
            # A template that wants text writes a list of parts out as it stands.
            return _PROBE in text and "'type'" not in text
        except Exception:  # noqa: BLE001 - not in this form; `render` reports a template that takes neither
            return False


def _chosen(templates: object, name: str) -> str:
    """The template to use: a tokenizer has one, or several by name."""
    if isinstance(templates, str) and templates:
        return templates
    if isinstance(templates, Mapping) and templates:
        if "default" in templates or len(templates) == 1:
            return str(templates.get("default") or next(iter(templates.values())))
        raise ConfigError(
            f"the tokenizer of {name!r} has several chat templates ({', '.join(map(str, templates))}), none of them "
            "the default; write the one you want to a file and name it in model.chat_template"
        )
    raise ConfigError(f"the tokenizer of {name!r} has no chat template; name a Jinja file in model.chat_template")
