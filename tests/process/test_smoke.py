"""The whole way, once: enqueue by SQL, a real daemon, done."""

from tests.support.waiting import wait_until


def test_an_enqueued_message_is_done(database, ledger, start_daemon):
    start_daemon(database, ledger).wait_ready()
    database.query("""select enqueue_message('default', 'effect', '{"key": "a"}')""", admin=False)
    wait_until(lambda: ledger.counts("effect")["a"] == 1)
    wait_until(
        lambda: database.query("select state from all_messages where message_type = 'effect'") == [("done",)]
    )
