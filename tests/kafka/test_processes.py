"""An app and the processes that are forked from its own: they die as any process does, and never touch its group."""

from __future__ import annotations

import signal
from pathlib import Path

from support.harness import Process
from support.observer import Observer, wait_until

FORKING = """
    import multiprocessing, signal
    from karafka_lite import App, ConfigurationError

    topic, out, group = sys.argv[1:]
    app = App(group, bootstrap_servers=BROKERS, auto_commit_interval_ms=100, concurrency=1, session_timeout_ms=45_000,
              fetch_max_wait_ms=100)
    fork = multiprocessing.get_context("fork")

    def forever():
        while True:
            time.sleep(1)

    def terminated(batch, ctx):
        child = fork.Process(target=forever)
        child.start()
        child.terminate()
        child.join(20)
        return child.exitcode

    def pool_left(batch, ctx):
        with fork.Pool(2) as pool:
            try:
                pool.apply_async(forever).get(0.05)
            except multiprocessing.TimeoutError:
                pass
        return "left"

    def forked(then):
        def wait(batch, ctx):
            child = os.fork()
            if not child:
                return then(batch, ctx)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return wait

    def fail(batch, ctx):
        raise ValueError("in the child")

    def ask_the_parents_app(batch, ctx):
        asked = [
            lambda: ctx.mark_as_consumed(batch.last), lambda: ctx.commit_offsets(sync=True),
            lambda: ctx.produce(out, b"x"), lambda: ctx.seek("earliest"), lambda: ctx.pause(10),
            app.start, app.stop, app.run,
        ]
        refused = 0
        for ask in asked:
            try:
                ask()
            except ConfigurationError as error:
                refused += "belongs to the process that started it" in str(error)
        os._exit(len(asked) - refused)

    stories = [terminated, pool_left, forked(lambda batch, ctx: sys.exit(3)), forked(fail),
               forked(lambda batch, ctx: 0), forked(ask_the_parents_app)]

    @app.topic(topic, max_messages=1)
    def work(batch, ctx):
        parent = os.getpid()
        end = stories[batch.first_offset](batch, ctx)
        if os.getpid() == parent:
            say(story=batch.first_offset, end=end)

    sys.exit(app.run())
"""


def test_a_child_of_a_handler_dies_as_any_process_does_and_a_hang_up_ends_the_parent_in_good_order(
    kafka: Observer, tmp_path: Path
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(6))
    with Process(kafka, FORKING, tmp_path, topic, kafka.topic(), group) as process:
        process.until(lambda fact: fact.get("story") == 5)
        assert [fact["end"] for fact in process.facts] == [-signal.SIGTERM, "left", 3, 1, 0, 0]
        wait_until(lambda: kafka.committed(group, topic) == 6, message="the parent goes on")
        assert len(kafka.members(group)) == 1
        process.signal(signal.SIGHUP)
        process.signal(signal.SIGTERM)  # a terminal that goes sends several: within a second they are one
        assert process.wait(20) == 0
    assert kafka.members(group) == [], "left at once, although its session has 45 s"
    assert process.errors().count("ValueError: in the child") == 1


PRELOADED = """
    from karafka_lite import App, ConfigurationError

    topic, out, group = sys.argv[1:]
    settings = dict(bootstrap_servers=BROKERS, auto_commit_interval_ms=100, fetch_max_wait_ms=100)
    app, other = App(group, **settings), App(group + "-of-the-child", **settings)

    @app.topic(topic)
    def work(batch, ctx):
        ctx.produce(out, b"x")
        say(batch=batch.last_offset, child=os.getpid() != parent)

    @other.topic(topic)
    def work_there(batch, ctx):
        say(other=batch.last_offset, child=os.getpid() != parent)

    def start_at_once(answers):
        try:
            app.start()
        except ConfigurationError as error:
            answers.append(str(error))

    parent, answers = os.getpid(), []
    threads = [threading.Thread(target=start_at_once, args=(answers,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say(refused=len(answers))
    while not os.path.exists(sys.argv[0] + ".handled"):
        time.sleep(0.01)

    if not os.fork():  # a worker of a server that has loaded the app before
        for call in (app.stop, app.start):
            try:
                call()
            except ConfigurationError as error:
                say(child=str(error))
        other.start()  # it runs nowhere else
        while not os.path.exists(sys.argv[0] + ".end"):
            time.sleep(0.01)
        say(child_stopped=other.stop())
        sys.exit(0)
    child, status = os.wait()
    say(child_status=status)
    while not os.path.exists(sys.argv[0] + ".over"):
        time.sleep(0.01)
    say(stopped=app.stop())
"""


def test_an_app_that_was_started_before_a_fork_belongs_to_the_parent_and_one_that_was_not_can_be_started_in_the_child(
    kafka: Observer, tmp_path: Path
) -> None:
    topic, group = kafka.topic(), kafka.group()
    kafka.produce(topic, range(3))

    def touch(name: str) -> None:
        (tmp_path / f"program.py.{name}").touch()

    with Process(kafka, PRELOADED, tmp_path, topic, kafka.topic(), group) as process:
        assert process.until(lambda fact: "refused" in fact)["refused"] == 3, "one of four starts counts"
        process.until(lambda fact: fact.get("batch") == 2)
        touch("handled")
        process.until(lambda fact: fact.get("other") == 2, message="the child's own app")
        touch("end")
        assert process.until(lambda fact: "child_status" in fact)["child_status"] == 0
        kafka.produce(topic, range(3))
        assert process.until(lambda fact: fact.get("batch") == 5)["child"] is False, "the parent goes on"
        touch("over")
        assert process.until(lambda fact: "stopped" in fact)["stopped"] is True
        assert process.wait(20) == 0
    told = [fact["child"] for fact in process.facts if isinstance(fact.get("child"), str)]
    assert len(told) == 2
    assert all("this is a fork of it: make and start an App in here" in text for text in told)
    assert kafka.committed(group, topic) == 6
