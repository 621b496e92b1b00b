"""The commands of ``tide``, one file each: a dataclass of the options, and ``run()``."""
