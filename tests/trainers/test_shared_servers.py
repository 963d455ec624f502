"""Two processes that train with a vLLM server: the first syncs weights, both request replies of the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from safetensors import safe_open
from test_lost_work import command
from transformers import AutoModelForCausalLM

from memfactory.engines.base import sample
from memfactory.engines.options import VllmServerConfig
from memfactory.engines.vllm.server import VllmServerEngine
from memfactory.envs.rewards.base import RewardFunction
from memfactory.errors import ConfigError, EngineError
from memfactory.model.loading import load_chat
from memfactory.model.options import ModelConfig
from memfactory.policy.processes import wait_for_all
from memfactory.registry import REWARDS
from memfactory.trainers.weight_sync import sync_weights
from memfactory.types import Message, Sampling
from processes import in_processes
from small_policy import small_policy
from vllm_server_double import VllmServerDouble

ASK = ((Message("user", "The code of Alice"),), Sampling(2))
CONFIG = """
model: {{path: {model}, device: cpu}}
agent: {{name: memory_agent, chunk_tokens: 64, memory_tokens: 4, answer_tokens: 4}}
env: {{name: longcontext, rewards: {{test_server_parity: 1.0}}}}
data: {{train: rows.jsonl, eval: {{held: rows.jsonl}}}}
eval: {{limit: 2}}
engine: {{kind: vllm_server, url: {url}, startup_timeout: 0, retries: 0}}
train:
  name: grpo
  steps: 2
  prompts_per_step: 2
  group_size: 2
  save_every: 1
  eval_at_start: true
  optimizer: {{learning_rate: 1.0e-2}}
trackers: []
"""


@REWARDS.register("test_server_parity")
class Parity(RewardFunction):
    """The number of the attempt, mod 2."""

    def score(self, episodes):
        return [float(episode.index % 2) for episode in episodes]


class Server(VllmServerDouble):
    """Answers by the seed. `tensors` are the weights of its last sync. It is started anew before its reply
    number `restart_at`.
    """

    def __init__(self):
        super().__init__(context=512)
        self.tensors, self.replies, self.restart_at = {}, 0, None

    def called(self, body):
        if body["method"] == "memfactory_receive":
            self.tensors = {}
            for file in sorted(Path(body["args"][0]).iterdir()):
                with safe_open(file, framework="pt") as opened:
                    self.tensors |= {name: opened.get_tensor(name) for name in opened.keys()}
        return super().called(body)

    def completed(self, body):
        answer = super().completed(body)
        if "return_token_ids" in body and isinstance(answer, dict):
            self.replies += 1
            if self.replies == self.restart_at:
                self.held, self.adapters = None, {}
            answer["choices"][0]["token_ids"] = [5 + body["seed"] % 7, 6]
        return answer

    @property
    def versions(self):
        """The versions that it received, in order."""
        return [body["args"][1] for body in self.asked("/collective_rpc") if body["method"] == "memfactory_receive"]


@pytest.fixture
def server():
    double = Server()
    yield double
    double.close()


@pytest.fixture
def second():
    double = Server()
    yield double
    double.close()


@pytest.fixture
def work(tmp_path, small_model_path, server, monkeypatch):
    rows = [{"context": f"Fact {n}.", "input": f"What is {n}", "answers": ["x"], "index": n} for n in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(CONFIG.format(model=small_model_path, url=server.url))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(work: Path, *words: str) -> tuple[list[int], str]:
    """The exit codes of both processes, and all that they say."""
    codes = in_processes(2, lambda rank: command(["train", "run.yaml", "--output", "two", *words]), work)
    return codes, "\n".join(path.read_text() for path in sorted(work.glob("rank-*.txt")))


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())


@pytest.mark.parametrize(("shard", "count"), [("none", 1), ("fsdp2", 2)])
def test_one_process_syncs_and_both_request(work, server, second, shard, count):
    servers = [server, second][:count]
    codes, said = run(work, f"train.shard={shard}", f"engine.url={[double.url for double in servers]}")
    assert codes == [0, 0], said
    final = trained_weights(work / "two" / "final")
    before = trained_weights(work / "two" / "checkpoints" / "step-1") if shard == "none" else {}
    for double in servers:
        # At the start and after each of two steps, and never by both.
        assert len(double.versions) == 3 and len({version.partition("-")[0] for version in double.versions}) == 1
        assert double.versions == server.versions and double.replies > 0
        assert double.tensors.keys() == final.keys()
        assert all(torch.equal(double.tensors[name], value) for name, value in final.items())
        assert not any(torch.equal(double.tensors[name], value) for name, value in before.items())


@pytest.fixture
def together(server, small_model_path, tmp_path):
    """Run `work(engine, weights)` in two processes that share the server; the codes, and what they say."""

    def run_both(work):
        def live(rank):
            PartialState(cpu=True)
            engine, weights = connected(server, small_model_path), small_policy(small_model_path).weights()
            work(engine, weights)
            return 0

        codes = in_processes(2, live, tmp_path)
        return codes, "\n".join(path.read_text() for path in sorted(tmp_path.glob("rank-*.txt")))

    return run_both


def connected(server, path: Path) -> VllmServerEngine:
    model = ModelConfig(path=str(path), device="cpu")
    return VllmServerEngine(model, load_chat(model), VllmServerConfig(url=server.url, startup_timeout=0.0, retries=0))


def test_a_server_that_is_restarted_is_an_error_in_both_processes(server, together):
    def work(engine, weights):
        sync_weights(engine, weights)
        assert [len(reply.tokens.reply_ids) for reply in sample(engine, [ASK, ASK])] == [2, 2]
        wait_for_all()
        # The fifth reply of all is that of a server without these weights.
        with pytest.raises(EngineError, match=f"{server.url} does not hold the weights of the last sync"):
            sample(engine, [ASK, ASK])
        wait_for_all()
        # A new sync takes it back in.
        sync_weights(engine, weights)
        assert len(sample(engine, [ASK])) == 1

    server.restart_at = 5
    codes, said = together(work)
    assert codes == [0, 0], said
    assert len(server.versions) == 2 and server.held == server.versions[-1]


def test_a_sync_that_fails_is_an_error_in_both_processes(server, together):
    def work(engine, weights):
        with pytest.raises(EngineError, match=f"{server.url} did not clear the prefix cache of the former weights"):
            sync_weights(engine, weights)

    server.faults["/reset_prefix_cache"] = [{"success": False}]
    codes, said = together(work)
    assert codes == [0, 0], said
    assert len(server.versions) == 1


def test_any_failure_of_the_first_process_ends_both(together, monkeypatch):
    def fail(engine, weights):
        raise OSError(28, "No space left on device")

    def work(engine, weights):
        raised = OSError if PartialState().is_main_process else EngineError
        with pytest.raises(raised, match="No space left on device") as caught:
            sync_weights(engine, weights)
        if raised is EngineError:
            assert str(caught.value).startswith("the first process could not sync weights (OSError: ")

    monkeypatch.setattr(VllmServerEngine, "update_weights", fail)
    codes, said = together(work)
    assert codes == [0, 0], said


def test_without_a_trainer_several_processes_are_refused(server, small_model_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    engine = connected(server, small_model_path)
    with pytest.raises(ConfigError, match="takes weights from a trainer only; start this command without torchrun"):
        sample(engine, [ASK])
    assert server.held is None
    engine.close()
