"""`infer`: answer a question or a file of rows with the agent of a run, a checkpoint, a model or a config."""

from __future__ import annotations

from memfactory.api.sources import Overrides, Source, resolved_config
from memfactory.inference import InferOptions, InferRequest, InferResult, run_inference

DEFAULTS = InferOptions()


def infer(
    source: Source,
    request: str | InferRequest,
    *overrides: Overrides,
    options: InferOptions = DEFAULTS,
    trust: bool = False,
) -> InferResult:
    """Answer a question, or every row of a file.

    >>> import memfactory, tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     document = Path(folder) / "text.txt"
    ...     _ = document.write_text("Irene lives in Oslo. Klaus paints in olive.")
    ...     request = memfactory.InferRequest("Where does Irene live?", documents=document)
    ...     result = memfactory.infer("quickstart", request)
    >>> print(result.answers[0])
    Oslo

    `source` is a run folder, a checkpoint, a model folder, a config or `tiny`, and `overrides` are those of the command
    line. `request` is a question by itself, or an InferRequest with a question and
    documents or a conversation, or with a file of rows. `trust` allows the code of plugins that a run
    folder brings. For several questions about one text, `load_agent` reads the text once.

    Raises ConfigError if source, overrides or options do not fit, DataError for a file that cannot be read. An engine
    that fails is reported in `result.failures`.
    """
    full_request = InferRequest(request) if isinstance(request, str) else request
    return run_inference(resolved_config(source, overrides, "infer", trust=trust), full_request, options)
