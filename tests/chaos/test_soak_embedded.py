"""A short run of the soak, so that it works on the day when a long one is wanted."""

from __future__ import annotations

from soak_embedded import crimes, soak


def test_members_that_come_and_go_in_good_order_lose_and_repeat_nothing_on_an_embedded_broker() -> None:
    figures = soak(5, seed=2)
    assert not crimes(figures), figures
    assert figures["messages"] > 3000
    assert figures["joins"] >= 2
    assert figures["leaves"] >= 1


def test_the_soak_finds_what_is_lost_repeated_or_out_of_order() -> None:
    innocent = dict.fromkeys(("lost", "repeated", "order breaks", "refused", "not committed", "errors"), 0)
    assert not crimes({**innocent, "sent": 5, "messages": 5})
    for crime in innocent:
        assert crimes({**innocent, crime: 1, "sent": 5, "messages": 5}) == [f"{crime}: 1"]
    assert crimes({**innocent, "sent": 5, "messages": 4}) == ["sent and consumed differ"]
