"""What knows Kafka: the only importer of kafka-python, beside ``broker/``.

It is imported where it is first needed: kafka-python takes longer to import than all of our own modules.
"""

import warnings

with warnings.catch_warnings():  # kafka-python 3.0 reads a file of its own in a way that Python 3.11 deprecates
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka as kafka
