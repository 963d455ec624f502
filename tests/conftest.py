"""What every test shares: one thread, no network, and a small random model with its tokenizer."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from chat_server import ChatServer

# Whoever runs the tests in the background has them ignore these; the runs in them, and their children, must not.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

# Processes that tests start import what the tests share, too.
SUPPORT = os.path.join(os.path.dirname(__file__), "support")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (SUPPORT, os.environ.get("PYTHONPATH"))))

# Before torch is imported anywhere: one thread, so that tests running side by side do not fight over the cores.
os.environ["OMP_NUM_THREADS"] = "1"
# What the tests trust is no business of who runs them.
# It is gone with the process that runs them.
STATE = tempfile.TemporaryDirectory(prefix="memfactory-tests-")
os.environ["XDG_STATE_HOME"] = STATE.name
os.environ["MEMFACTORY_TRUSTED"] = os.path.join(STATE.name, "trusted.json")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

SENTENCES = (
    "Read the section and rewrite the memory: keep what helps with the problem, add what is new.",
    "The code of Alice is seven. The code of Bob is nine. The city of Carol is Rome.",
    "What is the code of Alice? Write the answer inside \\boxed{}.",
    "<problem> What is the city of Carol? </problem> <memory> No previous memory </memory> Updated memory:",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def small_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Qwen3 (2 layers of 64) and a byte-level tokenizer of about 400 tokens with ChatML."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    from small_sizes import small_sizes

    folder = tmp_path_factory.mktemp("small_model")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(**small_sizes(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_gguf_path(small_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file in Q8_0 of a random Llama with the tokenizer of `small_model_path`; the plain folder is `plain`
    beside it."""
    from small_gguf import write_gguf, write_llama

    folder = tmp_path_factory.mktemp("small_gguf")
    write_llama(folder / "plain", small_model_path)
    return write_gguf(folder / "plain", folder / "small.gguf", "Q8_0")


@pytest.fixture
def chat_server() -> Iterator[ChatServer]:
    """A chat endpoint that reads with recurrent memory until a test gives it another `reply`."""
    server = ChatServer()
    yield server
    server.close()


@pytest.fixture
def own_components() -> Iterator[None]:
    """Components that the test registers are gone afterwards.

    Those that come with MemFactory stay: their files register them once, when they are first imported.
    """
    from memfactory.registry import ALL

    before = [dict(registry._registered) for registry in ALL]
    modules = set(sys.modules)
    yield
    # A plugin that is loaded again in a later test registers its components again.
    for name in set(sys.modules) - modules:
        if name.startswith("memfactory_plugin_"):
            del sys.modules[name]
    for registry, held in zip(ALL, before, strict=True):
        builtin = {name: one for name, one in registry._registered.items() if registry.is_builtin(name)}
        registry._registered = {**builtin, **held}
