"""The commands of ``tide``, one file each: ``add_parser(subparsers)`` and ``run(args)``. Torch and diffusers are
imported inside ``run``, so that ``tide --help`` answers at once."""
