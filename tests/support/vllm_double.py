"""A stand-in for the package vllm that notes what it is told, for what cannot run without a GPU: sleeping, waking."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

from memfactory.engines.options import VllmEngineConfig
from memfactory.engines.vllm.engine import VllmEngine
from memfactory.model.loading import load_chat
from memfactory.model.options import ModelConfig


class FakeEngine:
    """vLLM's engine core: it answers each request with the two ids 5 and 6 in one step."""

    def __init__(self, events, context):
        self.events, self.asked, self.folders = events, {}, []
        self.model_config = SimpleNamespace(max_model_len=context)
        self.engine_core = SimpleNamespace(shutdown=lambda: events.append("shutdown"))

    def add_request(self, number, prompt, params, lora_request=None):
        self.asked[number] = params
        self.events.append(("asked", None if lora_request is None else lora_request.name))

    def step(self):
        finished, self.asked = self.asked, {}
        logprobs = [{5: SimpleNamespace(logprob=-1.0)}, {6: SimpleNamespace(logprob=-2.0)}]
        said = SimpleNamespace(token_ids=[5, 6], logprobs=logprobs, finish_reason="length")
        return [SimpleNamespace(finished=True, request_id=number, outputs=[said]) for number in finished]

    def abort_request(self, numbers):
        self.asked.clear()

    def add_lora(self, request):
        files = sorted(path.name for path in Path(request.path).iterdir() if path.suffix != ".md")
        self.folders.append(request.path)
        self.events.append(("add_lora", request.number, files))

    def remove_lora(self, number):
        self.events.append(("remove_lora", number))


def install(monkeypatch, *, forgets=True):
    """Put the stand-in where vllm is imported from; the list of what it is told from then on."""
    events = []

    class LLM:
        def __init__(self, **options):
            events.append(("start", options))
            self.llm_engine = FakeEngine(events, 64)

        def collective_rpc(self, method, kwargs):
            events.append((method, sorted(name for name, _ in kwargs["weights_iterator"])))

        def reset_prefix_cache(self):
            events.append("forget")
            return forgets

        def sleep(self, level):
            events.append(("sleep", level))

        def wake_up(self):
            events.append("wake")

    platform = SimpleNamespace(is_unspecified=lambda: False, is_cpu=lambda: False)
    modules = {
        "vllm": {
            "__version__": "0.32.0",
            "LLM": LLM,
            "SamplingParams": lambda **fields: SimpleNamespace(**fields),
            "TokensPrompt": lambda prompt_token_ids: prompt_token_ids,
        },
        "vllm.platforms": {"current_platform": platform},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(FINAL_ONLY="final")},
        "vllm.lora": {},
        "vllm.lora.request": {
            "LoRARequest": lambda name, number, path: SimpleNamespace(
                name=name, number=number, path=path, lora_int_id=number
            )
        },
    }
    for name, attributes in modules.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    return events


def engine_over_the_double(monkeypatch, path: Path, *, rank: int | None = None, forgets: bool = True, **options):
    """A VllmEngine over the stand-in, and the list of what that is told."""
    events = install(monkeypatch, forgets=forgets)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")
    config = ModelConfig(path=str(path), device="cpu")
    monkeypatch.setattr("memfactory.engines.vllm.engine.prepare_platform", lambda model, config: None)
    engine = VllmEngine(config, load_chat(config), VllmEngineConfig(**options), rank=rank)
    return engine, events
