"""Files and folders on disk: atomic writes, JSON lines, locks, and the required content of checkpoint folders."""
