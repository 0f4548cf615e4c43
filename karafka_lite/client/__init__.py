"""The only importers of kafka-python, beside the embedded broker."""
