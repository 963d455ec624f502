"""The size of a training pass that the config leaves open: bytes bound it on a CPU, and what was set stays."""

from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.memory import counted, turns
from memfactory.config.grpo import GrpoOptions
from memfactory.config.training import TrainerOptions
from memfactory.model.loading import load_architecture, load_chat
from memfactory.model.options import ModelConfig
from memfactory.policy.pass_size import PassSize, pass_size
from memfactory.policy.policy import Policy

# The shape of SmolLM2-135M.
SMOL = LlamaConfig(
    num_hidden_layers=30,
    hidden_size=576,
    intermediate_size=1536,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49152,
)


def test_a_larger_model_takes_fewer_tokens_on_a_cpu():
    # A layer: 4 x (4 x 576 + 4 x 576 + 3 x 192 + 2 x 1536) = 33,024 bytes; 30 of them: 990,720. 0.8 x 2^30 / 990,720 =
    # 867, in multiples of 128: 768. Logits: 2^25 / (4 x 49,152) = 170: 128.
    assert pass_size(TrainerOptions(), SMOL, cpu=True) == PassSize(768, 128, bounded=True)


def test_checkpointing_leaves_room_for_more_tokens():
    # 30 inputs of 4 x 576 bytes and one layer: 69,120 + 33,024 = 102,144; 0.8 x 2^30 / 102,144 = 8,409: 65 x 128.
    assert pass_size(TrainerOptions(gradient_checkpointing=True), SMOL, cpu=True).micro_batch_tokens == 8_320


def test_a_gpu_and_the_embedded_model_take_the_usual_numbers():
    usual = PassSize(16384, 2048)
    assert pass_size(TrainerOptions(), SMOL, cpu=False) == usual
    assert pass_size(TrainerOptions(), load_architecture(ModelConfig()), cpu=True) == usual


def test_numbers_of_the_config_stay():
    options = TrainerOptions(micro_batch_tokens=5000, logprob_chunk_tokens=7)
    assert pass_size(options, SMOL, cpu=True) == PassSize(5000, 7)


def test_a_huge_model_still_gets_a_pass():
    huge = LlamaConfig(num_hidden_layers=2000, hidden_size=4096, vocab_size=10**7)
    assert pass_size(TrainerOptions(), huge, cpu=True) == PassSize(128, 128, bounded=True)


def test_logits_of_a_large_vocabulary_are_never_whole():
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=32768, tie_word_embeddings=True))
    config = ModelConfig(device="cpu")
    chat = load_chat(config)
    chat.vocab_size = 32768
    policy = Policy(model, chat, config, GrpoOptions())
    work = turns(2, 20, 1024)
    measures, _, most = counted(lambda: policy.update(work))
    assert measures["tokens/trained"] == 2048
    # Logits of 256 tokens are 256 x 32,768 x 4 bytes = 32 MiB: they, their logarithms and their exponentials make 96.
    # Gradients and moments of 2.1 million weights and the activations take less than 64 more. All logits at one time
    # would be 3 x 256 MiB.
    assert most < 224 * 2**20
