"""A memory item out of a row: the published schema's field names and ours."""

from __future__ import annotations

from typing import Annotated

from pydantic import AliasChoices, BeforeValidator, Field

from memfactory.data.fields import AliasedModel, AnyText, Text
from memfactory.types import MemoryItem

NOBODY = "default_user"
"""The published schema's user of a memory that belongs to nobody in particular."""


def _number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class ItemRow(AliasedModel):
    """The fields of an item in a row; a null field counts as missing."""

    id: Annotated[Text, BeforeValidator(_number_as_text)] = Field(description="a text or a whole number")
    value: Text
    key: AnyText = ""
    kind: AnyText = Field("fact", validation_alias=AliasChoices("memory_type", "kind"))
    tags: tuple[AnyText, ...] = Field((), description="a list of texts")
    sources: tuple[AnyText, ...] = Field((), description="a list of texts")
    created_at: AnyText = ""
    updated_at: AnyText = ""
    version: int = Field(1, strict=True, ge=1, description="a whole number from 1")
    namespace: AnyText = Field("", validation_alias=AliasChoices("namespace", "user_id"))

    def item(self) -> MemoryItem:
        """The memory item that the row describes."""
        return MemoryItem(
            id=self.id,
            key=self.key,
            value=self.value,
            kind=self.kind,
            tags=self.tags,
            sources=self.sources,
            created_at=self.created_at or None,
            updated_at=self.updated_at or None,
            version=self.version,
            namespace="" if self.namespace == NOBODY else self.namespace,
        )
