"""Options that look over a whole optimizer step train the same weights in two processes as in one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_grpo import SilentRun, weights_of

from memfactory.config import load_config
from memfactory.environment import process_rank
from memfactory.envs.rewards.base import RewardFunction
from memfactory.registry import REWARDS
from processes import in_processes
from small_trainer import grpo_trainer

CONFIG = """
model: {{path: {model}}}
agent: {{name: memory_agent, chunk_tokens: 64, memory_tokens: 4, answer_tokens: 4}}
env: {{name: longcontext, rewards: {{test_member_parity: 1.0}}}}
data: {{train: rows.jsonl}}
train:
  name: grpo
  steps: 2
  prompts_per_step: 3
  group_size: 4
  minibatches: 2
  rollout_prompts: 1
  eval_at_start: false
  optimizer: {{learning_rate: 1.0e-2, epsilon: 1.0e-2}}
  loss: {loss}
trackers: []
"""
LOSSES = {
    "clip_cov": "{objective: {name: clip_cov, fraction: 0.3, low: -9, high: 9}, entropy_coef: 0.05}",
    "kl_cov": "{objective: {name: kl_cov, fraction: 0.3}}",
    "KL in the reward": "{kl_coef: 0.1, kl_in_reward: true, kl_target: 0.001, kl_horizon: 20, reference_sync_steps: 1}",
}


@REWARDS.register("test_member_parity")
class MemberParity(RewardFunction):
    """The number of the attempt, mod 2."""

    def score(self, episodes):
        return [float(episode.index % 2) for episode in episodes]


@pytest.fixture
def train(tmp_path: Path, small_model_path: Path) -> Callable[[int, int, str], int]:
    rows = [{"context": f"Fact {n}.", "input": f"What is {n}", "answers": ["x"], "index": n} for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def work(rank: int, of: int, loss: str) -> int:
        path = tmp_path / f"{of}-{rank}.yaml"
        path.write_text(CONFIG.format(model=small_model_path, loss=LOSSES[loss]))
        resolved = load_config(path)
        run = SilentRun(tmp_path / f"run-{of}")
        run.main = process_rank() == 0
        trainer = grpo_trainer(resolved, run)
        trainer.train()
        torch.save(
            (trainer.trained.changes, trainer.trained.kl.value, weights_of(trainer)), tmp_path / f"{rank}-of-{of}.pt"
        )
        return 0

    return work


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_train_the_weights_of_one(
    train: Callable[[int, int, str], int], tmp_path: Path, loss: str
) -> None:
    train(0, 1, loss)
    codes = in_processes(2, lambda rank: train(rank, 2, loss), tmp_path)
    assert codes == [0, 0], (tmp_path / "rank-0.txt").read_text() + (tmp_path / "rank-1.txt").read_text()
    changes, kl, expected = torch.load(tmp_path / "0-of-1.pt")
    assert changes == 4
    for rank in range(2):
        own, own_kl, weights = torch.load(tmp_path / f"{rank}-of-2.pt")
        assert own == changes and own_kl == pytest.approx(kl, rel=1e-6)
        assert all(torch.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(expected, weights, strict=True))
