"""Makes the embedded model `tiny`, all of its folder, from nothing: `python scripts/make_tiny_model.py`.

Tokenizer and untrained weights come from the two files beside this one, the training from configs/tiny_sft.yaml
through the toolkit's own trainer `sft`. Equal arguments give an equal model on one kind of machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from tiny_tokenizer import make_tokenizer, twins
from tiny_weights import CONTEXT, make_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from memfactory.config import load_config
from memfactory.training import run_training

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 2432
TOKENIZER_SETTINGS = ("clean_up_tokenization_spaces", "eos_token", "model_max_length", "pad_token")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "src/memfactory/assets/tiny", help="the model's folder")
    parser.add_argument("--work", type=Path, default=Path("runs/tiny"), help="where the untrained model and run go")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/tiny_sft.yaml", help="the recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="key=value overrides of the recipe")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    untrained = arguments.work / "untrained"
    write_untrained(untrained, arguments.seed)
    settings = [f"model.path={untrained}", f"output={arguments.work / 'run'}", f"seed={arguments.seed}"]
    resolved = load_config(arguments.config, [*settings, *arguments.overrides], command="train")
    run = run_training(resolved)
    ship(run / "final", arguments.output)
    print(f"wrote {arguments.output}: {sum(p.stat().st_size for p in arguments.output.iterdir()) / 1e6:.1f} MB")


def write_untrained(folder: Path, seed: int) -> None:
    """Write the tokenizer and the model as they are before training."""
    tokenizer = make_tokenizer(VOCABULARY)
    model = make_model(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, twins(tokenizer), seed)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def ship(trained: Path, folder: Path) -> None:
    """Write a trained model as the package holds it: weights rounded to bfloat16 (half the size)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    AutoModelForCausalLM.from_pretrained(trained, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(trained, model_max_length=CONTEXT).save_pretrained(folder)
    shutil.copy(trained / "generation_config.json", folder)
    settings = folder / "tokenizer_config.json"
    values = json.loads(settings.read_text(encoding="utf-8"))
    # The class name that every version of transformers knows, and nothing of the machine it was made on.
    values = {key: values[key] for key in TOKENIZER_SETTINGS} | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)


if __name__ == "__main__":
    main()
