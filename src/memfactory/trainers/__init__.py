"""Trainers: GRPO and SFT, and what they share. The only place beside the engines that imports torch."""
