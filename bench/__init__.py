"""How fast comit is, and where the time goes; installs as ``comit.bench``."""
