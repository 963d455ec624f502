"""RMM's linear reranker: its maths against derivations by hand and autograd, and what the module learns from."""

from __future__ import annotations

import math

import numpy
import pytest
from safetensors.numpy import save_file

from memfactory.engines.scripted import ScriptedEngine
from memfactory.episode import Episode
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.memory.bank import BankSource
from memfactory.modules.linear_maps import (
    ResidualMap,
    choose,
    identity,
    map_gradients,
    score_gradient,
    scores,
    softmax,
)
from memfactory.modules.linear_reranker import LinearReranker, LinearRerankerOptions
from memfactory.play import PlaySettings, Sampler, play
from memfactory.registry import Options
from memfactory.seeds import stream_seed
from memfactory.types import MemoryItem, Task
from retrieving import Retrieving
from word_codec import NoCodec

QUERY = numpy.array([1.0, 0.0])
MEMORIES = numpy.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
NOISE = numpy.array([0.0, 0.5, 0.2])
STILL = identity(2, None)
ITEMS = tuple(
    MemoryItem(f"m{number}", "", text, sources=(f"D{number}",))
    for number, text in enumerate(("red fish", "red cat", "blue dog", "green bird"), start=1)
)


# The maths


def test_the_closed_form_gives_the_worked_example():
    # s = (1, 0, .5); s + g = (1, .5, .7); over t = .5: (2, 1, 1.4); the two largest are 0 and 2.
    found = scores(STILL, STILL, QUERY, MEMORIES)
    assert found.tolist() == [1.0, 0.0, 0.5]
    chosen = choose(found, NOISE, 2)
    assert chosen == (0, 2)
    assert softmax((found + NOISE) / 0.5) == pytest.approx([0.521732, 0.191935, 0.286333], abs=1e-6)
    # Memory 0 is cited, 2 is not: A = (.5, -1.5), sum -1. dS = (A + p) / .5.
    by_score = score_gradient("paper", found, NOISE, chosen, numpy.array([0.5, -1.5]), 0.5)
    query, memory = map_gradients(STILL, STILL, QUERY, MEMORIES, by_score)
    value = 0.829797830399
    assert numpy.outer(*query) == pytest.approx(numpy.array([[value, 0], [-value, 0]]), abs=1e-12)
    assert numpy.outer(*memory) == pytest.approx(numpy.array([[value, -value], [0, 0]]), abs=1e-12)


def objective(torch, estimator, s, noise, chosen, advantages, temperature):
    """What each estimator climbs, written down as it is defined."""
    if estimator == "plackett_luce":
        left, total = list(range(len(s))), 0.0
        for place in chosen:
            total = total + s[place] - torch.logsumexp(s[left], 0)
            left.remove(place)
        return advantages.sum() * total
    logits = (s + noise) / temperature if estimator == "paper" else s
    return (advantages * torch.log_softmax(logits, 0)[list(chosen)]).sum()


@pytest.mark.parametrize("estimator", ["paper", "softmax", "plackett_luce"])
def test_gradients_agree_with_autograd(estimator):
    import torch

    draw = numpy.random.default_rng(3)
    query, memories = draw.standard_normal(5), draw.standard_normal((6, 5))
    maps = [ResidualMap(draw.standard_normal((5, 5)) / 4) for _ in range(2)]
    noise, advantages = draw.gumbel(size=6), draw.standard_normal(3)
    found = scores(*maps, query, memories)
    chosen = choose(found, noise, 3)
    by_score = score_gradient(estimator, found, noise, chosen, advantages, 0.5)
    ours = [numpy.outer(*pair) for pair in map_gradients(*maps, query, memories, by_score)]

    weights = [torch.tensor(one.left, requires_grad=True) for one in maps]
    q, m = torch.tensor(query), torch.tensor(memories)
    s = (m + m @ weights[1].T) @ (q + weights[0] @ q)
    objective(torch, estimator, s, torch.tensor(noise), chosen, torch.tensor(advantages), 0.5).backward()
    for own, weight in zip(ours, weights, strict=True):
        assert own == pytest.approx(weight.grad.numpy(), abs=1e-12)


def test_a_map_of_low_rank_moves_as_autograd_says():
    import torch

    draw = numpy.random.default_rng(4)
    start = ResidualMap(draw.standard_normal((5, 2)), draw.standard_normal((5, 2)))
    outward, inward = draw.standard_normal((3, 5)), draw.standard_normal((3, 5))
    moved = start.moved(outward, inward, 0.1)
    left, right = (torch.tensor(array, requires_grad=True) for array in (start.left, start.right))
    ((left @ right.T) * torch.tensor(outward.T @ inward)).sum().backward()
    assert moved.left == pytest.approx(start.left + 0.1 * left.grad.numpy(), abs=1e-12)
    assert moved.right == pytest.approx(start.right + 0.1 * right.grad.numpy(), abs=1e-12)


def test_a_map_of_low_rank_is_the_product_of_its_parts_and_starts_as_the_identity():
    draw = numpy.random.default_rng(5)
    low = ResidualMap(draw.standard_normal((4, 2)), draw.standard_normal((4, 2)))
    vectors = draw.standard_normal((3, 4))
    assert low(vectors) == pytest.approx(ResidualMap(low.left @ low.right.T)(vectors), abs=1e-12)
    assert (identity(4, 2)(vectors) == vectors).all() and (identity(4, None)(vectors) == vectors).all()
    # It can learn: one step from the start changes what it gives.
    assert not numpy.allclose(identity(4, 2).moved(vectors, vectors, 0.1)(vectors), vectors)


def test_the_temperature_changes_the_gradient_but_not_what_is_chosen():
    found = scores(STILL, STILL, QUERY, MEMORIES)
    advantages = numpy.array([0.5, -1.5])
    cold, warm = (score_gradient("paper", found, NOISE, (0, 2), advantages, t) for t in (0.5, 2.0))
    assert not numpy.allclose(cold, warm)
    for temperature in (0.1, 0.5, 3.0):
        assert choose(found / temperature, NOISE / temperature, 2) == choose(found, NOISE, 2)


@pytest.mark.parametrize("estimator", ["paper", "softmax", "plackett_luce"])
def test_where_all_are_chosen_there_is_nothing_to_learn(estimator):
    # P(all of them) = 1 whatever the scores are. One public implementation learns from it all the same.
    found = scores(STILL, STILL, QUERY, MEMORIES)
    gradient = score_gradient(estimator, found, NOISE, (0, 2, 1), numpy.array([0.5, 0.5, -1.5]), 0.5)
    assert (gradient == 0).all()


def test_of_equal_scores_the_first_is_chosen():
    assert choose(numpy.array([1.0, 2.0, 2.0, 1.0]), numpy.zeros(4), 3) == (1, 2, 0)


def test_draws_come_from_the_softmax_without_replacement():
    # P(first = 0, second = 2) = p0 p2 / (1 - p0) with p = softmax(1, 0, .5).
    found, draw = numpy.array([1.0, 0.0, 0.5]), numpy.random.default_rng(0)
    drawn = [choose(found, draw.gumbel(size=3), 2) for _ in range(20_000)]
    p = softmax(found)
    expected = p[0] * p[2] / (1 - p[0])
    # Within four standard deviations of a share over 20,000 draws.
    assert drawn.count((0, 2)) / 20_000 == pytest.approx(expected, abs=4 * math.sqrt(expected / 20_000))


def test_the_plackett_luce_estimator_is_unbiased():
    found, rewards = numpy.array([0.3, -0.2, 0.5]), numpy.array([1.0, -1.0, -1.0]) - 0.5
    # E[sum A] over ordered pairs (i, j) of distinct items: sum p_i p_j / (1 - p_i) (A_i + A_j), derived numerically.

    def expected(s):
        p = softmax(s)
        pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
        return sum(p[i] * p[j] / (1 - p[i]) * (rewards[i] + rewards[j]) for i, j in pairs)

    true = [(expected(found + step) - expected(found - step)) / 2e-6 for step in 1e-6 * numpy.eye(3)]
    draw, total, squares, count = numpy.random.default_rng(1), numpy.zeros(3), numpy.zeros(3), 20_000
    for _ in range(count):
        chosen = choose(found, draw.gumbel(size=3), 2)
        gradient = score_gradient("plackett_luce", found, NOISE, chosen, rewards[list(chosen)], 0.5)
        total, squares = total + gradient, squares + gradient**2
    error = numpy.sqrt((squares / count - (total / count) ** 2) / count)
    assert (numpy.abs(total / count - true) < 4 * error).all() and (error < 0.02).all()


def test_a_map_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"one array \[d, d\] or two \[d, r\], got \[\(2, 3\)\]"):
        ResidualMap(numpy.zeros((2, 3)))


# The module


def reranker(**options) -> LinearReranker:
    return LinearReranker(LinearRerankerOptions.model_validate(options), NoCodec())


BANKS = BankSource()


def retrieved(module, question="red cat", items=ITEMS, evidence=(), seed=0, index=0) -> Episode:
    task = Task("t", question, ("gold",), memory=tuple(items), evidence=tuple(evidence))
    agent = Retrieving(Options(), {"retriever": module}, BANKS)
    engine = ScriptedEngine(lambda messages, sampling: "")
    (episode,) = play(
        Sampler(agent, {"policy": engine}), [Episode(task, index=index, seed=seed)], PlaySettings(frozen=True)
    )
    assert not engine.requests
    return episode


def ids(episode: Episode) -> list[str]:
    return [item.id for item in episode.retrieved]


def test_an_untrained_reranker_keeps_the_order_of_the_search():
    assert ids(retrieved(reranker(keep=2))) == ["m2", "m1"]
    assert ids(retrieved(reranker(keep=2), items=())) == []


def test_noise_is_drawn_only_while_it_learns_and_is_fixed_by_seed_and_attempt():
    module = reranker(keep=2)
    assert retrieved(module).selection.noise == (0.0, 0.0, 0.0, 0.0)
    module.learning = True
    first, again, other = retrieved(module), retrieved(module), retrieved(module, index=1)
    assert first.selection == again.selection
    assert first.selection.noise != other.selection.noise
    drawn = numpy.random.default_rng(stream_seed(0, 0, "gumbel")).gumbel(size=4)
    assert first.selection.noise == tuple(drawn)
    assert [first.selection.texts[place] for place in first.selection.chosen] == [i.value for i in first.retrieved]


def learn_once(module, **given) -> tuple[Episode, dict[str, float]]:
    """One attempt that cites its last memory, learnt from."""
    module.learning = True
    episode = retrieved(module, **given)
    episode.citations = (episode.retrieved[-1].id,)
    return episode, module.learn([episode])


def test_it_learns_to_rank_what_was_cited_higher():
    module = reranker(keep=2, learning_rate=0.02)
    for seed in range(200):
        module.learning = True
        episode = retrieved(module, seed=seed)
        episode.citations = tuple({"m3"} & {*ids(episode)})
        module.learn([episode])
    module.learning = False
    assert ids(retrieved(module, seed=1))[0] == "m3"


def test_the_step_is_the_mean_of_the_gradients_of_a_batch():
    # Two equal attempts move the maps as far as one; the learning rate scales the step.
    one, two, half = reranker(keep=2), reranker(keep=2), reranker(keep=2, learning_rate=5e-4)
    episode, measured = learn_once(one)
    two.learn([episode, episode])
    half.learn([episode])
    weight, same, smaller = (module.state()["query.left"] for module in (one, two, half))
    numpy.testing.assert_allclose(same, weight, rtol=1e-9, atol=1e-18)
    numpy.testing.assert_allclose(smaller, weight / 2, rtol=1e-9, atol=1e-18)
    assert measured["update_query"] == pytest.approx(float(numpy.linalg.norm(weight)), rel=1e-9)
    assert measured["useful"] == 0.5 and measured["skipped"] == 0.0


def test_a_malformed_citation_skips_the_update_and_none_cited_lowers_all():
    module = reranker(keep=2)
    module.learning = True
    malformed, nothing = retrieved(module), retrieved(module)
    nothing.citations = ()
    assert module.learn([malformed]) == {"skipped": 1.0}
    assert not module.state()["query.left"].any()
    assert module.rewards(nothing).tolist() == [-1.0, -1.0]
    measured = module.learn([malformed, nothing])
    assert (measured["useful"], measured["skipped"]) == (0.0, 0.5)
    assert module.state()["query.left"].any()


def test_an_attempt_that_failed_teaches_nothing():
    module = reranker(keep=2)
    episode = retrieved(module)
    episode.citations, episode.failure = ("m2",), "the judge is down"
    assert module.rewards(episode) is None


def test_maps_that_run_away_are_told_before_they_are_no_numbers():
    module = reranker(keep=2, learning_rate=1e4)
    with pytest.raises(MemFactoryError, match=r"scores have grown beyond 1e\+06; start again with a learning_rate"):
        for seed in range(10):
            learn_once(module, seed=seed)
    assert all(numpy.isfinite(array).all() for array in module.state().values())


def test_gold_evidence_can_take_the_place_of_citations():
    module = reranker(keep=2, signal="evidence")
    assert module.rewards(retrieved(module, evidence=("D1", "D7"))).tolist() == [-1.0, 1.0]
    assert module.rewards(retrieved(module)) is None


def test_few_candidates_are_all_kept_and_teach_nothing():
    module = reranker(keep=5)
    _, measured = learn_once(module)
    assert (measured["update_query"], measured["update_memory"]) == (0.0, 0.0)
    assert not module.state()["memory.left"].any()


@pytest.mark.parametrize("rank", [None, 2])
def test_what_was_learnt_is_written_and_read_back_exactly(tmp_path, rank):
    module = reranker(keep=2, rank=rank)
    learn_once(module)
    save_file(module.state(), tmp_path / "maps.safetensors")
    again = reranker(weights=str(tmp_path / "maps.safetensors"))
    assert {*module.state()} == {*again.state()}
    assert all((array == again.state()[name]).all() for name, array in module.state().items())


def test_weights_that_cannot_be_used_are_told(tmp_path):
    with pytest.raises(ConfigError, match=r"the weights .*none.safetensors cannot be used"):
        reranker(weights=str(tmp_path / "none.safetensors"))
    save_file({"query.left": numpy.zeros((2, 2))}, tmp_path / "half.safetensors")
    with pytest.raises(ConfigError, match=r"expected the arrays query\.left and memory\.left"):
        reranker(weights=str(tmp_path / "half.safetensors"))
    small = {f"{name}.left": numpy.zeros((2, 2)) for name in ("query", "memory")}
    save_file(small, tmp_path / "small.safetensors")
    with pytest.raises(ConfigError, match=r"for vectors of 2 numbers, but memory\.embedder gives 1024"):
        retrieved(reranker(weights=str(tmp_path / "small.safetensors")))
