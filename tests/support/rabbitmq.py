"""Real RabbitMQ nodes (Debian: apt-get install rabbitmq-server), alone or as a cluster, on ports of loopback.

A node is one Erlang VM whose shell reads this process' pipe: a test asks the broker itself, in milliseconds
where rabbitmqctl takes a second, also when the node hears no other. The end of the pipe ends the node: none
outlives its test run. The nodes of a folder find each other by an epmd of their own; Debian's service, its
data and its port 4369 are not touched.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from tests.support.scratch import run_folder
from tests.support.waiting import wait_until

#: Not /usr/sbin/rabbitmq-server, which becomes the user rabbitmq and works below /var/lib.
PROGRAM = shutil.which("/usr/lib/rabbitmq/bin/rabbitmq-server")
EPMD = shutil.which("epmd")
PLUGINS = ("rabbitmq_consistent_hash_exchange",)
#: Nothing here is large. The limits are those of a machine that other tests use, too.
_CONFIG = """
listeners.tcp.default = 127.0.0.1:{port}
disk_free_limit.absolute = 1MB
vm_memory_high_watermark.absolute = 1GB
raft.wal_max_size_bytes = 32000000
log.file.level = info
"""


_given: set[int] = set()  # ports, by this process


class Place:
    """A folder for nodes, and the port mapper by which they find each other."""

    def __init__(self) -> None:
        assert PROGRAM is not None
        assert EPMD is not None
        self.folder = Path(tempfile.mkdtemp(prefix="rabbit-", dir=run_folder()))
        self.epmd_port, *_ = free_ports(1)
        self._epmd = subprocess.Popen(
            _ends_with_us(EPMD, "-port", str(self.epmd_port), "-address", "127.0.0.1"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: _answers(self.epmd_port), 10, "epmd answers")

    def close(self) -> None:
        self._epmd.kill()
        self._epmd.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


class Node:
    """One node: `start` begins, `wait_ready` waits for it. Both again after `kill` or `stop`: same name, same
    ports, same data.

    config: more lines of rabbitmq.conf. kernel: parameters of Erlang's kernel, like net_ticktime.
    """

    def __init__(
        self,
        place: Place,
        name: str = "rabbit",
        *,
        plugins: Sequence[str] = PLUGINS,
        config: str = "",
        kernel: Mapping[str, int] | None = None,
    ) -> None:
        self.name = f"{name}@localhost"
        self.port, self._distribution_port = free_ports(2)
        self._folder = place.folder / name
        self._folder.mkdir()
        self._epmd_port = place.epmd_port
        (self._folder / "plugins").write_text(f"[{','.join(plugins)}].\n")
        (self._folder / "rabbitmq.conf").write_text(_CONFIG.format(port=self.port) + config)
        self._arguments = " ".join(f"-kernel {key} {value}" for key, value in (kernel or {}).items())
        self._questions = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Node:
        folder = self._folder
        environment = {
            "HOME": str(folder.parent),  # the cookie's place; nodes of one folder share it
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": self._arguments,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_SECONDS": "0",
        }
        cookie = folder.parent / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text("packhorsetests")
            cookie.chmod(0o400)
        assert PROGRAM is not None
        with self._shell.open("wb") as output:
            self._process = subprocess.Popen(
                _ends_with_us(PROGRAM),
                env=environment,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def wait_ready(self) -> Node:
        """Until clients can connect."""
        wait_until(lambda: self._lives() and _answers(self.port), 120, f"{self.name} answers")
        # a node that has paused because it was in the minority starts from that process; cut off again
        # before that has ended, RabbitMQ forgets to pause
        running = "rabbit:is_running() andalso whereis(rabbit_outside_app_process) == undefined"
        wait_until(lambda: self.ask(running) == "true", 60, f"{self.name} is running")
        return self

    def ask(self, expression: str, timeout_seconds: float = 20.0) -> str:
        """What an Erlang expression is on this node, as Erlang prints it."""
        assert self._process is not None
        assert self._process.stdin is not None
        mark = f"answer {next(self._questions)}"
        self._process.stdin.write(
            f'io:format("~n{mark}: ~0tp :end~n", [catch begin {expression} end]).\n'.encode()
        )
        self._process.stdin.flush()
        pattern = re.compile(f"^{mark}: (.*?) :end$", re.MULTILINE | re.DOTALL)
        found = wait_until(
            lambda: self._lives() and pattern.search(self._output),
            timeout_seconds,
            f"{self.name}: {expression}",
        )
        assert isinstance(found, re.Match)
        return str(found[1])

    def do(self, expression: str) -> None:
        """`ask` for what answers ok."""
        answer = self.ask(expression)
        assert answer == "ok" or answer.startswith("{ok,"), f"{expression}: {answer}"

    def url(self, vhost: str = "/", credentials: str = "") -> str:
        """Without credentials a client is `guest`. credentials: `name:word@`."""
        return f"amqp://{credentials}127.0.0.1:{self.port}/{quote(vhost, safe='')}"

    def add_vhost(self, vhost: str) -> None:
        self.do(f'rabbit_vhost:add(<<"{vhost}">>, <<"tests">>)')
        self.grant(vhost, "guest")

    def grant(self, vhost: str, user: str) -> None:
        everything = ", ".join(['<<".*">>'] * 3)
        self.do(
            f'rabbit_auth_backend_internal:set_permissions(<<"{user}">>, <<"{vhost}">>, {everything}, <<"tests">>)'
        )

    def delete_vhost(self, vhost: str) -> None:
        self.do(f'rabbit_vhost:delete(<<"{vhost}">>, <<"tests">>)')

    def serves(self, name: str) -> bool:
        """Is a client connected to it whose connection has a name that begins so?"""
        return f'<<"{name}' in self.ask(
            "[rabbit_networking:connection_info(Pid, [client_properties])"
            " || Pid <- rabbit_networking:connections_local()]"
        )

    def disk_alarm(self, on: bool) -> None:
        """Let the broker believe that its disk is full: it blocks every connection that publishes."""
        limit = 10**18 if on else 10**6
        self.do(f"rabbit_disk_monitor:set_disk_free_limit({limit})")
        wait_until(lambda: (self.ask("rabbit_alarm:get_alarms()") != "[]") == on, 20, f"disk alarm: {on}")

    def write_queue_metadata(self) -> None:
        """The names and terms of quorum queues to its disk. RabbitMQ 3 does so up to three seconds late:
        killed before that, a node alone has a queue without a leader for ever. In a cluster the others know.
        """
        self.ask("[dets:sync(Table) || Table <- dets:all()]")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in sorted((self._folder / "log").glob("*.log")))

    @property
    def has_paused(self) -> bool:
        """Has it found itself in the minority, and stopped until it hears the others?"""
        return self.ask("rabbit:is_running()") == "false"

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def revive(self) -> None:
        """Running, in whatever way it is not. Afterwards wait_ready."""
        assert self._process is not None
        if self._process.poll() is None:
            self.thaw()
        else:
            self.start()

    def kill(self) -> None:
        """kill -9, as when the machine is gone."""
        assert self._process is not None
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait(10)
        assert self._process.stdin is not None
        self._process.stdin.close()

    def stop(self) -> None:
        """As `systemctl stop` does: clients are told, queues move to other nodes."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(60)

    close = kill

    @property
    def _shell(self) -> Path:
        return self._folder / "shell"

    @property
    def _output(self) -> str:
        return self._shell.read_text(errors="replace")

    def _lives(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self.name} ended:\n{self._output[-4000:]}\n{self.log[-4000:]}"
        return True


def free_ports(count: int) -> list[int]:
    """Of loopback, below those that the kernel gives to connections: a node that is away keeps its own."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(15_000, 32_000)
        if port not in _given and not _answers(port):
            _given.add(port)
            found.append(port)
    return found


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _ends_with_us(*command: str) -> list[str]:
    """The kernel kills it when the thread that has started it ends: also what SIGSTOP has stopped, also when
    this process had no time to clean up. Start it from the main thread.
    """
    return ["setpriv", "--pdeathsig", "KILL", *command]


class Cluster:
    """Three nodes that keep quorum queues together: one may be away."""

    #: A node of which the others hear nothing for about this long is gone for them. Else it is a minute.
    TICK_SECONDS = 4

    def __init__(self, place: Place) -> None:
        self.nodes = [
            Node(
                place,
                f"node{number}",
                config="cluster_partition_handling = pause_minority\n",
                kernel={"net_ticktime": self.TICK_SECONDS},
            )
            for number in (1, 2, 3)
        ]

    def start(self) -> Cluster:
        """Each alone, then the others join the first: quicker than nodes that look for each other, which wait
        in turn for a lock.
        """
        first, *others = self.nodes
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait_ready()
        for node in others:
            node.do(
                "rabbit:stop(), rabbit_mnesia:reset(),"
                f" rabbit_mnesia:join_cluster('{first.name}', disc), rabbit:start()"
            )
        return self.wait_whole()

    def wait_whole(self) -> Cluster:
        """Until clients can connect to each node, and each node sees all.

        A node that was frozen hears the others again before it can pause; its metadata then remain apart
        from theirs until it is restarted, as an operator would do.
        """
        for node in self.nodes:
            node.wait_ready()
        wait_until(lambda: self._is_whole() or self._apart(), 90, "all see all, or one is apart")
        for node in self._apart():
            node.kill()
            node.start().wait_ready()
        wait_until(self._is_whole, 90, "all see all")
        return self

    def _is_whole(self) -> bool:
        return all(self.seen_by(node) == 3 for node in self.nodes)

    def _apart(self) -> list[Node]:
        """Who is alone with its metadata, although it reaches the others. These wait for it in vain."""
        return [
            node
            for node in self.nodes
            if self.seen_by(node) == 1 and node.ask("rabbit_node_monitor:partitions()") != "[]"
        ]

    def wait_away(self, away: Node) -> None:
        """Until the others know that it is. A node that is away only for some of them makes more of them
        pause when it is back.
        """
        for node in self.nodes:
            if node is not away:
                wait_until(
                    lambda node=node: self.seen_by(node) < 3,
                    30,
                    f"{node.name} knows that {away.name} is away",
                )

    def seen_by(self, node: Node) -> int:
        """How many nodes it can reach, with itself."""
        return int(node.ask("length(rabbit_nodes:all_running())"))

    def url(self, vhost: str = "/", credentials: str = "") -> str:
        """Of all nodes: a client takes the next one when one does not answer."""
        return ";".join(node.url(vhost, credentials) for node in self.nodes)

    def cut_off(self, node: Node, *only: Node) -> None:
        """It lives and answers clients, and it and the others do not hear each other: each has the other's
        wrong password. only: those, and no others.
        """
        others = ",".join(f"'{other.name}'" for other in only or self.nodes if other is not node)
        node.ask(
            f"[erlang:set_cookie(Other, cut) || Other <- [{others}]],"
            f" [erlang:disconnect_node(Other) || Other <- [{others}]]"
        )

    def join_again(self, node: Node) -> None:
        """Afterwards wait_whole."""
        for other in self.nodes:
            if other is not node:
                node.ask(f"erlang:set_cookie('{other.name}', erlang:get_cookie())")

    def close(self) -> None:
        for node in self.nodes:
            node.close()
