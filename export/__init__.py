"""From trained weights to files that engines run; installs as ``comit.export``."""
