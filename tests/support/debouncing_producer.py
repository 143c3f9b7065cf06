"""One producer of tests/process/test_debounce.py: enqueues in transactions of its own until it is killed.

argv: URL, name. What it has committed stands in the table `sent`."""

from __future__ import annotations

import itertools
import random
import sys

import psycopg

import packhorse


def main(url: str, name: str) -> None:
    choose = random.Random(name)
    with psycopg.connect(url, autocommit=True) as connection:
        for n in itertools.count(1):
            payload = {"producer": name, "n": n}
            with connection.transaction():
                kind = choose.choice(["own", "own", "own", "own", "image", "shared"])
                connection.execute("insert into sent values (%s, %s, %s)", (name, n, kind))
                if kind == "own":
                    packhorse.enqueue(
                        connection, "gather", payload, conversation_key=name, debounce=0.05, max_wait=0.4
                    )
                elif kind == "image":
                    packhorse.enqueue(connection, "image", {"n": n}, conversation_key=name)
                else:
                    packhorse.enqueue(
                        connection, "gather", payload, pending_key="shared", debounce=0.1, max_wait=0.5
                    )
                connection.execute("select pg_sleep(%s)", (choose.random() * 0.03,))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
