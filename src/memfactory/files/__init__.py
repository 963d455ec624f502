"""Files and folders on disk: atomic writes, JSON lines, locks, and what a checkpoint folder must hold."""
