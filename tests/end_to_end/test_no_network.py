"""Without an endpoint in the config, no command connects to anything or looks up a name."""

from __future__ import annotations

import socket

from memfactory.cli.app import run

CONFIG = """
model: {path: tiny, dtype: float32, cpu_threads: 1}
agent: {name: memory_agent, chunk_tokens: 64, memory_tokens: 8, answer_tokens: 4}
env: {name: longcontext, rewards: {boxed_em: 1.0}}
data: {train: {name: facts, rows: 2}}
train:
  {name: grpo, steps: 1, prompts_per_step: 1, group_size: 2, max_rollouts_per_step: 1, require_variance: false,
   eval_at_start: false, eval_at_end: false}
trackers: [console, swanlab]
"""


def test_no_command_connects_to_anything_by_itself(tmp_path, monkeypatch):
    connections: list[object] = []

    def refuse(*place: object, **options: object) -> None:
        connections.append(place)
        raise OSError("no network here")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.yaml").write_text(CONFIG)
    assert run(["train", "t.yaml", "output=run"]) == 0
    assert run(["infer", "run", "--question", "Which?", "--document", "t.yaml"]) == 0
    assert run(["eval", "run", "--data", "facts", "--limit", "1", "--samples", "1", "--output", "out"]) == 0
    assert connections == []
