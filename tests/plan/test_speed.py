"""Counted floating-point operations, by hand."""

import pytest
import torch

from memfactory.config.grpo import GrpoOptions
from memfactory.config.losses import LossOptions
from memfactory.config.optimizer import LoraOptions
from memfactory.plan.flops import device_metrics, device_peak, training_flops
from memfactory.plan.footprint import Architecture
from memfactory.policy.batch import TrainingTurn

SIZES = Architecture(
    parameters=110,
    head_parameters=10,
    layers=2,
    hidden=3,
    intermediate=6,
    vocabulary=7,
    attention_width=5,
    kv_width=5,
    max_positions=64,
)
TURNS = [
    TrainingTurn((1, 2, 3), (4,), 1.0, 0, 0, "update"),
    TrainingTurn((1, 2), (3, 4), 1.0, 0, 0, "answer"),
]
# Body 2 x 100 x 8 tokens, head 2 x 7 x 3 x 3 reply tokens, attention 4 x 2 layers x 5 wide x (16 + 16) / 2.
FORWARD = 1600 + 126 + 640


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        (GrpoOptions(), 3),
        (GrpoOptions(lora=LoraOptions()), 2),
        (GrpoOptions(loss=LossOptions(kl_coef=0.1)), 4),
        (GrpoOptions(loss=LossOptions(kl_coef=0.1), minibatches=2), 5),
        (GrpoOptions(epochs=2), 3 * 2 + 1),
        # With the KL in the reward both log-probabilities are needed before there is an advantage.
        (GrpoOptions(loss=LossOptions(kl_coef=0.1, kl_in_reward=True)), 3 + 2),
        # Tokens are chosen by a forward pass before each update.
        (GrpoOptions(epochs=2, loss=LossOptions(objective="clip_cov")), 3 * 2 + 1 + 2),
    ],
)
def test_training_costs_so_many_forward_passes(options, passes):
    assert training_flops(SIZES, TURNS, options) == FORWARD * passes


def test_a_processor_has_no_peak_in_the_table_and_no_memory_metric():
    assert device_peak(torch.device("cpu")) is None
    assert device_metrics(torch.device("cpu")) == {}
