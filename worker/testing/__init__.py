"""What an application's own tests need (SPEC W12); `packhorse.testing` has the public names, docs/testing.md
says when to take which.

unit.py calls a handler without a server, captured.py shows what was sent, stub.py is dramatiq's StubBroker
for our actors, queue.py works on a real queue, plugin.py is the pytest plugin. Nothing else imports this
room.
"""
