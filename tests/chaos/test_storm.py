"""Many threads that send while all around them changes: each answer is right. The long form is storm.py."""

from __future__ import annotations

from random import randrange

import pytest
from storm import Storm
from support.observer import BreakableKafka


@pytest.mark.timeout(200)
def test_in_a_storm_every_message_has_one_answer_and_it_is_right(private_kafka: BreakableKafka) -> None:
    storm = Storm(private_kafka, randrange(10**6))
    complaints = storm.run(1.0)
    print(storm.report())
    assert not complaints, f"{storm.report()}\n" + "\n".join(complaints[:20])
    assert storm.happened["acknowledged"] > 0
