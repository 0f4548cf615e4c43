"""Brokers for development and tests. Production is Apache Kafka."""
