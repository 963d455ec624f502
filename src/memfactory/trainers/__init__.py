"""The training loops: GRPO, supervised fine-tuning and online learning."""
