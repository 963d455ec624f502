"""Where tokens lie in a text, from a tokenizer file alone: for runs whose model speaks through an API. No torch."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from memfactory.errors import ConfigError


class FileCodec:
    """A `Codec` on a tokenizer.json: `tiny`, a model folder, a file, or a hub id whose file is cached or reachable."""

    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer

        if path == "tiny" and not (resources.files("memfactory") / "assets" / "tiny").is_dir():
            raise ConfigError("the model 'tiny' is not in this installation of memfactory")
        folder = Path(str(resources.files("memfactory") / "assets" / "tiny")) if path == "tiny" else Path(path)
        file = folder / "tokenizer.json" if folder.is_dir() else folder
        try:
            self._tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else Tokenizer.from_pretrained(path)
        except Exception as error:
            raise ConfigError(
                f"the tokenizer {path!r} that measures the chunks cannot be loaded ({error}); name a local folder, a "
                "tokenizer.json, or `tiny` for rough lengths"
            ) from error

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The half-open character span of every token of `text`, in order."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)
