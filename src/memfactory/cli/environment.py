"""`memfactory env`: versions and hardware, ready to be pasted into a bug report."""

from __future__ import annotations

from memfactory.cli.output import echo


def show_environment() -> None:
    """Print versions and hardware for a bug report. Nothing is sent anywhere."""
    from memfactory.environment import describe_environment

    values = dict(describe_environment())
    packages, gpus, memory = values.pop("packages"), values.pop("gpus"), values.pop("memory_bytes")
    lines = {**values, "memory": f"{memory / 2**30:.1f} GiB" if isinstance(memory, int) else None}
    if isinstance(gpus, list):
        lines |= {f"gpu {index}": ", ".join(gpu.values()) for index, gpu in enumerate(gpus)} or {"gpus": "none"}
    lines |= packages if isinstance(packages, dict) else {}
    for name, value in lines.items():
        echo(f"- {name}: {'not installed' if value is None else value}")
