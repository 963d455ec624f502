"""The benchmark scripts run, count what they say they count, and both of their sides train alike."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import check, engine, floor, measure, product, step, trl, workloads
from benchmarks.arguments import settings_of
from memfactory.config.grpo import GrpoOptions
from memfactory.engines.hf.packed_weights import can_pack
from memfactory.plan.footprint import Architecture, architecture
from memfactory.policy.batch import TrainingTurn
from memfactory.types import Group, Reply, Reward, Sampling, Task, Tokens, Trajectory, Turn

BENCH = SimpleNamespace(
    check=check,
    engine=engine,
    floor=floor,
    measure=measure,
    product=product,
    step=step,
    trl=trl,
    workloads=workloads,
)
MODEL = "--layers 1 --hidden 64 --intermediate 96 --heads 2 --kv-heads 1 --head-dim 32 --vocabulary 2500".split()
SMALL = [*MODEL, *"--group-size 3 --new-tokens 6 --chunks 2 --chunk-tokens 40 --prompt-tokens 150".split()]


@pytest.fixture(scope="module")
def bench():
    return BENCH


def made(bench, folder: Path, *words: str):
    given = bench.step.arguments([*words, *SMALL])
    work = bench.workloads.Work(given.workload, group_size=3, new_tokens=6, prompt_tokens=150)
    return bench.step.Bench(
        given, work, bench.workloads.write_model(folder / "model", bench.step.model_of(given)), folder
    )


def test_the_benchmark_model_has_5_million_parameters(bench, tmp_path):
    from transformers import AutoConfig

    folder = bench.workloads.write_model(tmp_path / "model", bench.workloads.Size())
    # Embeddings 8192 x 256; a layer: q and o 2 x 256 x 256, k and v 2 x 256 x 128, MLP 3 x 256 x 768, norms 2 x 256 and
    # 2 x 32; the last norm 256.
    layer = 2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 768 + 2 * 256 + 2 * 32
    assert architecture(AutoConfig.from_pretrained(folder)).parameters == 8192 * 256 + 4 * layer + 256 == 5_245_440


def test_equal_beginnings_count_once(bench):
    # The tree 1-2-(3, 4-5) and 6: six tokens; they attend to 1, 2, 3, 3, 4 and 1 positions.
    found = bench.floor.distinct([(1, 2, 4, 5), (6,), (1, 2, 3), (1, 2, 3)])
    assert (found.tokens, found.attended) == (6, 14)


def test_the_floor_counts_each_phase_by_hand(bench):
    sizes = Architecture(
        parameters=110,
        head_parameters=10,
        layers=1,
        hidden=2,
        intermediate=4,
        vocabulary=5,
        attention_width=3,
        kv_width=3,
        max_positions=9,
    )
    turns = [
        Turn("ask", (), Reply("", "length", Tokens((1, 2), (reply, 9), (0.0, 0.0))), trainable=True) for reply in (3, 4)
    ]
    group = Group(Task("t", "q?", ()), tuple(Trajectory(n, (turn,), None, Reward(1.0)) for n, turn in enumerate(turns)))
    training = [TrainingTurn((1, 2), (reply, 9), 1.0, n, 0, "ask") for n, reply in enumerate((3, 4))]
    needed = bench.floor.needed(sizes, [group], training, GrpoOptions(loss={"kl_coef": 0.1}))
    # A token costs 2 x 100, logits 2 x 5 x 2, an attended position 4 x 3. The prompt's first token predicts nothing: in
    # the last layer it needs no query, no output and no MLP (2 x 2 x 3 + 3 x 2 x 4 weights), and attends to nothing.
    spared = 2 * 36 + 12
    assert needed.flops["prefill"] == 2 * 200 + (1 + 2) * 12 - spared
    # One token of each reply is fed again, behind two of the prompt; four are drawn.
    assert needed.flops["decode"] == 2 * 200 + 4 * 20 + (3 + 3) * 12
    # The tree 1-2-(3, 4): four tokens; the last of each reply predicts nothing.
    assert needed.flops["forward"] == 4 * 200 + 4 * 20 + (1 + 2 + 3 + 3) * 12 - spared == needed.flops["reference"]
    assert needed.flops["backward"] == 2 * needed.flops["forward"]
    assert needed.tokens == {"prefill": 2, "decode": 4, "reference": 4, "forward": 4, "backward": 4}
    # Three passes read 110 weights of 4 bytes; contexts 2 + 3, twice, of 2 x 3 values.
    assert bench.floor.decode_bytes([(2, 2), (2, 2)], sizes, "float32", 3) == 3 * 440 + 10 * 24


def test_a_second_counts_in_the_innermost_phase_only(bench):
    clock = bench.measure.Clock(torch.device("cpu"))
    times = iter(range(100))
    clock.now = lambda: next(times)
    clock.reset()
    with clock.phase("forward"), clock.phase("backward"):
        pass
    assert clock.seconds == {"other": 1, "forward": 2, "backward": 1}


def test_operations_are_counted_where_they_are_done(bench):
    clock = bench.measure.Clock(torch.device("cpu"))
    left = torch.ones(3, 4, requires_grad=True)
    query = torch.ones(1, 2, 8, 4)
    packs = can_pack()
    with clock.counting():
        with clock.phase("forward"):
            out = left @ torch.ones(4, 5)
        with clock.phase("backward"):
            out.sum().backward()
        with clock.phase("prefill"):
            torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
        with clock.phase("decode"), torch.inference_mode():
            torch.nn.functional.linear(torch.ones(3, 4), torch.ones(5, 4))
        if packs:
            with clock.phase("weights"), torch.inference_mode():
                packed = torch.ops.mkldnn._reorder_linear_weight(torch.ones(5, 4))
                torch.ops.mkldnn._linear_pointwise(torch.ones(3, 4), packed, None, "none", [], "")
    # One product of 3 x 4 and 4 x 5 each way; two attention products of 8 x 4 and 4 x 8 a head, half of them masked.
    product, attention = 2 * 3 * 4 * 5, 2 * 2 * (2 * 8 * 8 * 4) // 2
    expected = {"forward": product, "backward": product, "prefill": attention, "decode": product}
    assert clock.flops == expected | ({"weights": product} if packs else {})


def test_ragged_lengths_are_the_same_on_every_side(bench):
    lengths = [bench.product.sampled_length(Sampling(30, seed=seed), 1.0) for seed in range(200)]
    assert lengths == [bench.product.sampled_length(Sampling(30, seed=seed), 1.0) for seed in range(200)]
    assert min(lengths) >= 1 and max(lengths) == 30 and len(set(lengths)) > 10


@pytest.mark.parametrize(
    "words", ["rmm", "memory_r1", "memory_agent", "memory_agent --prompts chunk_first", "rmm --ragged 0.7"]
)
def test_product_and_plain_have_equal_losses_and_gradients(bench, capsys, words):
    bench.step.main([*words.split(), *SMALL, "--check"])
    differences = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(differences) == {"loss", "gradient"} and max(differences.values()) < 1e-5


def test_the_check_sees_another_loss(bench, tmp_path):
    sides = made(bench, tmp_path, "rmm", "--set", "train.loss.kl_coef=0.2")
    plain = sides.side("plain")
    plain.options = plain.options.model_copy(update={"loss": plain.options.loss.model_copy(update={"kl_coef": 0.3})})
    assert bench.check.compared(sides.side("product"), plain)["gradient"] > 1e-3


def test_adapters_are_compared_as_well(bench, capsys):
    bench.step.main(["rmm", *SMALL, "--check", "--set", "train.lora.rank=4"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["gradient"] < 1e-5


def test_a_step_is_reported_by_phase_and_profiled(bench, tmp_path, capsys):
    report, profile = tmp_path / "report.json", tmp_path / "profile.md"
    words = ["--sides", "product", "plain", "other", "--other-set", "train.loss.kl_coef=0", "--repeats", "2"]
    files = ["--json", str(report), "--profile", str(profile), "--no-memory"]
    bench.step.main(["rmm", *SMALL, *words, *files])
    found = json.loads(report.read_text())
    product, plain, other = (found["sides"][name] for name in ("product", "plain", "other"))
    # One prompt for three attempts, 5 passes after the prefill of the usual way, which gives the first token.
    assert product["slots"]["prefill"] < plain["slots"]["prefill"] == found["tokens"]["prompts"]
    assert plain["calls"]["decode"] == 5 and found["tokens"]["replies"] == 18
    assert "reference" in product["flops"] and "reference" not in other["flops"] and "old" in plain["flops"]
    assert all(len(side["seconds"]) == 2 for side in (product, plain, other))
    assert found["needed"]["seconds"] > 0 and "| plain |" in capsys.readouterr().out
    assert "## backward" in profile.read_text() and "aten::mm" in profile.read_text()


def test_peak_memory_is_that_of_one_step(bench, tmp_path):
    found = made(bench, tmp_path, "rmm").memory("product")
    assert 0 < found["before"] <= found["peak"]


def test_trl_takes_one_step_at_a_time_on_the_same_prompts(bench, tmp_path):
    pytest.importorskip("trl")
    sides = made(bench, tmp_path, "rmm")
    trl, product = sides.side("trl"), sides.side("product")
    product.step(1)
    for number in (1, 2):
        trl.clock.reset()
        with trl.clock.phase("other"):
            trl.step(number)
        assert trl.trainer.state.global_step == number
    prompts = [len(turn.prompt_ids) for turn in product.turns()]
    assert trl.clock.slots["prefill"] == sum(prompts) and trl.clock.slots["forward"] == sum(prompts) + 3 * 6
    trl.close()


def test_sampling_is_timed_for_every_case(bench, tmp_path, capsys):
    report = tmp_path / "report.json"
    lists = "--batch 2 4 --group 1 4 --prompt-tokens 30 --new-tokens 5 --ragged 0 0.7 --repeats 1".split()
    bench.engine.main([*MODEL, *lists, "--json", str(report)])
    cases = json.loads(report.read_text())["cases"]
    # A group of four does not fit a batch of two.
    assert [(case["case"]["batch"], case["case"]["group"]) for case in cases] == 2 * [(2, 1)] + 2 * [(4, 1)] + 2 * [
        (4, 4)
    ]
    for case in cases:
        assert case["sides"]["hf"]["sampled"] == case["sides"]["generate"]["sampled"]
    assert cases[4]["sides"]["hf"]["sampled"] == 4 * 5
    assert len([line for line in capsys.readouterr().out.splitlines() if "| generate |" in line]) == 6


def test_a_mistake_is_told_without_a_traceback(bench):
    with pytest.raises(SystemExit, match="kl_wait"):
        bench.step.main(["rmm", *SMALL, "--set", "train.loss.kl_wait=1"])
    with pytest.raises(SystemExit, match="memory of the side plain could not be measured"):
        bench.step.main(["rmm", *SMALL, "--sides", "plain", "--set", "train.loss.weighting=prompt"])
    with pytest.raises(SystemExit, match="weighting: token or turn"):
        bench.step.main(["rmm", *SMALL, "--check", "--set", "train.loss.weighting=prompt"])


def test_a_models_own_weights_are_measured(bench, small_model_path, capsys):
    words = f"rmm --model {small_model_path} --weights --group-size 3 --new-tokens 4 --prompt-tokens 120 --check"
    bench.step.main(words.split())
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["gradient"] < 1e-5
    given = bench.step.arguments(words.split())
    assert "model.random_weights=false" in settings_of(given, other=False)


def test_own_weights_need_a_folder(bench):
    with pytest.raises(SystemExit, match="--weights needs --model with the folder of a model, got 'nowhere'"):
        bench.step.main(["rmm", "--model", "nowhere", "--weights"])


def test_an_answer_can_be_shorter_than_a_memory(bench, tmp_path):
    folder = bench.workloads.write_model(tmp_path / "model", "tiny")
    work = bench.workloads.Work("memory_agent", new_tokens=40, answer_tokens=12)
    bench.workloads.configured(work, folder, tmp_path / "side")
    agent = json.loads((tmp_path / "side" / "bench.yaml").read_text())["agent"]
    assert (agent["memory_tokens"], agent["answer_tokens"]) == (40, 12)
