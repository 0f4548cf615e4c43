"""What listens to ``events.py`` and tells people."""
