"""The plan of vLLM beside the policy: what it reserves, what its cache holds, and when it cannot start."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from memfactory.config import load_config
from memfactory.engines.options import VllmEngineConfig
from memfactory.model.loading import load_architecture
from memfactory.model.options import ModelConfig
from memfactory.plan.footprint import architecture, phase_bytes
from memfactory.plan.memory import Device
from memfactory.plan.plan import make_plan
from memfactory.plan.vllm import GIB, VllmMemory, check_vllm, vllm_memory, vllm_row

GPU = Device("a GPU of 80 GB", round(79.2 * 2**30), cuda=True)
CONFIGS = Path(__file__).parents[2] / "configs"
QWEN = "Qwen/Qwen3-4B-Instruct-2507"


@pytest.fixture
def planned(tmp_path):
    """The plan of the published 4B config on vLLM, for a GPU of 80 GB."""
    row = {"context": "One two three. " * 5000, "input": "Which number comes last?", "answers": ["three"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")

    def plan(engine, device=GPU):
        overrides = [f"data.train={tmp_path / 'rows.jsonl'}", f"engine={engine}"]
        return make_plan(load_config(CONFIGS / "memagent_qwen3_4b.yaml", overrides), device)

    return plan


def judged(memory, longest, **options):
    problems, warnings = [], []
    check_vllm(VllmEngineConfig(**options), memory, longest, problems, warnings)
    return problems, warnings


def test_weights_and_passes_leave_the_rest_of_what_is_reserved_to_the_cache():
    sizes = architecture(load_architecture(ModelConfig(path=QWEN)))
    options = {"gpu_memory_utilization": 0.5, "max_num_seqs": 8, "max_num_batched_tokens": 1000}
    found = vllm_memory(VllmEngineConfig(**options, enforce_eager=True), sizes, "bfloat16", 80 * GIB, 500)
    # 2 bytes a weight; 1,000 tokens x 2 bytes x (3 x 9,728 + 4 x 2,560); 8 rows x 151,936 x 16; libraries.
    assert found.weights == 2 * (sizes.parameters + 500)
    assert found.passes == 1000 * 2 * (3 * 9728 + 4 * 2560) + 8 * 151_936 * 16 + GIB // 2
    assert found.reserved == 40 * GIB and found.token == 147_456
    assert found.cache == 40 * GIB - found.weights - found.passes
    graphs = vllm_memory(VllmEngineConfig(**options), sizes, "bfloat16", 80 * GIB, 500)
    assert graphs.passes - found.passes == GIB // 2


# Of 100 bytes vLLM reserves 40; 20 hold weights, 10 passes, and 10 are cache of 2 bytes a token: 5 tokens.
SMALL = VllmMemory(capacity=100, reserved=40, weights=20, passes=10, token=2)


def test_the_row_counts_the_longest_conversations_that_the_cache_holds():
    assert vllm_row(SMALL, 2)[1].endswith(", 5 tokens, 2.5 of the longest conversations")
    assert vllm_row(SMALL, 0)[1].endswith("of cache, 5 tokens")


def test_a_length_that_the_cache_cannot_hold_is_a_problem_with_its_remedy():
    assert judged(SMALL, 1) == ([], [])
    ((problem,), _) = judged(SMALL, 3, max_model_len=6)
    # 20 + 10 + 6 x 2 of 100 bytes.
    assert "write engine.max_model_len: null (the longest conversation has 3 tokens)" in problem
    assert "raise engine.gpu_memory_utilization to 0.42" in problem
    ((problem,), _) = judged(SMALL, 50)
    assert "utilization to" not in problem and "use another model" in problem
    ((problem,), _) = judged(SMALL, 4, max_model_len=3)
    assert "a conversation of 4 tokens (prompt and longest reply) does not fit engine.max_model_len (3)" in problem


def test_a_cache_of_few_conversations_is_warned_of():
    ((), (warning,)) = judged(SMALL, 2)
    assert "holds 2.5 of the longest conversations (2 tokens)" in warning


def test_the_published_4b_config_starts_on_vllm(planned):
    found = planned("{kind: vllm, gpu_memory_utilization: 0.5}")
    assert not [problem for problem in found.problems if "vLLM" in problem or "GiB are needed" in problem]
    assert found.memory["vLLM, awake"] == round(0.5 * GPU.capacity)
    # Weights 15.0, 8-bit moments 7.6, reference 8.2 and vLLM's 39.6 GiB.
    assert phase_bytes(found.memory)["rollout"] / GIB == pytest.approx(70.4, abs=0.2)
    assert "of the longest conversations" in dict(found.work)["vLLM"]


def test_the_models_own_length_does_not_fit_the_published_4b_config(planned):
    (problem,) = [text for text in planned("{kind: vllm, max_model_len: 262144}").problems if "vLLM" in text]
    assert problem.startswith("vLLM does not start: of the 31.7 GiB that it reserves")
    assert "262,144 tokens needs 36.0; write engine.max_model_len: null (the longest conversation has" in problem


def test_a_gpu_too_small_for_a_second_copy_of_the_weights_is_a_problem(planned):
    found = planned("{kind: vllm}", Device("a GPU of 16 GiB", 16 * 2**30, cuda=True))
    assert [text for text in found.problems if text.startswith("vLLM does not start: of the 6.4 GiB")]


@pytest.mark.parametrize(
    ("engine", "refused"),
    [
        ("vllm", True),
        ("vllm_server", False),
        ("{kind: vllm_server, url: ['http://127.0.0.1:1']}", False),
        ("hf", False),
    ],
)
def test_only_vllm_in_the_training_process_is_refused_in_several(planned, engine, refused):
    found = planned(engine, replace(GPU, processes=2))
    told = [text for text in found.problems if "serves a run of one process" in text]
    assert bool(told) is refused and not [text for text in found.problems if "vllm_server'" in text]
    assert all("vllm_server for servers that all processes share" in text for text in told)
