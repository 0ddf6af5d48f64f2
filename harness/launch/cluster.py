"""Worlds over several nodes. Agents on the nodes hold the ranks; launchers differ only in how they start the agents."""

import contextlib
import itertools
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from multiprocessing.connection import Connection
from typing import Any, Protocol
from weakref import WeakValueDictionary

from harness.launch import wire
from harness.launch.local import DEFAULTS, GRACE, START
from harness.launch.outcome import Failure, Job, Killed, Lost, Outcome
from harness.launch.placement import Cluster, LaunchError, Part, blocks

ARRIVAL = 120.0  # seconds for the agents to call, once the launcher can start them
IMPORTS = 3 * START  # seconds for a node to have a fork server: three attempts
LATE = 15.0  # seconds after a job's time limit for a node's answer


class NodeLost(Exception):
    """The node's agent does not answer any more; the message is the reason."""


class Starter(Protocol):
    """How agents come to the nodes."""

    def start(self, address: str, port: int, key: bytes) -> None:
        """Starts an agent on every node, which calls this address."""

    def pending(self) -> bool:
        """Whether the nodes are still waited for, such as in a queue."""

    def trouble(self) -> str:
        """The reason why further agents will not call; empty as long as they may."""

    def advice(self) -> str:
        """What to do if agents do not call."""

    def stop(self) -> None:
        """Ends what is left. The agents have been told to stop."""


class Node:
    """The session's end of an agent."""

    def __init__(self, connection: Connection, failed: Callable[[int], None]) -> None:
        facts = connection.recv()
        self.name, self.address, self.interface = facts["name"], facts["address"], facts["interface"]
        self.cores, self.pid = facts["cores"], facts["pid"]
        self.versions = {"Python": facts["python"], "PyTorch": facts["torch"]}
        self.lost = ""  # the reason
        self._connection, self._failed = connection, failed
        self._numbers, self._asked = itertools.count(), dict[int, Future[Any]]()
        self._turn, self._sending = threading.Lock(), threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, method: str, *arguments: Any) -> "Future[Any]":
        """The answer of the agent's method; NodeLost if there is none, RuntimeError if it raised."""
        answer: Future[Any] = Future()
        with self._turn:
            number = next(self._numbers)
            if self.lost:
                answer.set_exception(NodeLost(self.lost))
                return answer
            self._asked[number] = answer
        try:
            with self._sending:
                self._connection.send((number, method, arguments))
        except OSError as error:
            self.lose(f"its agent cannot be reached: {error.strerror or error}")
        return answer

    def _read(self) -> None:
        try:
            while True:
                number, result, error = self._connection.recv()
                if number is None:
                    self._failed(result)
                    continue
                with self._turn:
                    answer = self._asked.pop(number, None)
                if answer is not None and error:
                    answer.set_exception(RuntimeError(f"node {self.name}: {error}"))
                elif answer is not None:
                    answer.set_result(result)
        except EOFError:
            self.lose("its agent ended")
        except OSError as error:
            self.lose(f"its agent cannot be reached: {error.strerror or error}")
        except Exception as error:  # what cannot be read: without its number, no answer can be matched any more
            self.lose(f"its agent's message cannot be read: {error!r}")

    def lose(self, reason: str) -> None:
        with self._turn:
            if self.lost:
                return
            self.lost = reason
            asked, self._asked = self._asked, {}
        wire.hang_up(self._connection)
        for answer in asked.values():
            answer.set_exception(NodeLost(reason))


class ClusterWorld:
    """Ranks of one case, in blocks of neighbours on the nodes."""

    def __init__(self, number: int, nodes: Sequence[Node], parts: Sequence[Part]) -> None:
        self.size, self._number = parts[0].size, number
        self.nodes, self.parts = tuple(nodes), tuple(parts)
        self._closed = False

    def run(self, job: Job, timeout: float) -> tuple[Outcome, ...]:
        if self._closed:
            return tuple(Killed(rank, 0.0, "the world was closed before this job") for rank in range(self.size))
        start = time.monotonic()
        answers = [node.ask("run", self._number, job, timeout) for node in self.nodes]
        pending, deadline = set(answers), start + timeout + GRACE + LATE
        outcomes: list[Outcome] = []
        while pending:
            done, pending = wait(pending, max(0.0, deadline - time.monotonic()), FIRST_COMPLETED)
            if not done:
                for node, answer in zip(self.nodes, answers, strict=True):
                    if answer in pending:
                        node.lose("its agent does not answer")
            for node, part, answer in zip(self.nodes, self.parts, answers, strict=True):
                if answer in done:
                    found = _outcomes(node, part, answer, time.monotonic() - start)
                    outcomes += found
                    if any(isinstance(outcome, Lost) for outcome in found):  # a part tells of its other failures itself
                        self.fail()
        if any(isinstance(outcome, Failure) for outcome in outcomes):
            self.close()
        return tuple(sorted(outcomes, key=lambda outcome: outcome.rank))

    def fail(self) -> None:
        """A rank has failed: the ranks on all nodes soon give up."""
        for node in self.nodes:
            node.ask("fail", self._number)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for answer in [node.ask("shut", self._number) for node in self.nodes]:
            with contextlib.suppress(NodeLost, TimeoutError):
                answer.result(LATE)


def _outcomes(node: Node, part: Part, answer: "Future[tuple[Outcome, ...]]", at: float) -> tuple[Outcome, ...]:
    try:
        return answer.result()
    except NodeLost as reason:
        ranks = f"rank{'s'[: len(part.ranks) > 1]} {', '.join(map(str, part.ranks))}"
        return tuple(Lost(rank, at, f"node {node.name} was lost with {ranks}: {reason}") for rank in part.ranks)


class ClusterWatch:
    """All nodes that are left."""

    def __init__(self, nodes: Sequence[Node], number: int) -> None:
        self._nodes, self._number = nodes, number
        for answer in [node.ask("watch", number) for node in nodes]:
            with contextlib.suppress(NodeLost, TimeoutError):
                answer.result(LATE)

    def disturbance(self) -> str:
        found = []
        for node, answer in [(node, node.ask("disturbance", self._number)) for node in self._nodes]:
            with contextlib.suppress(NodeLost, TimeoutError):
                if trouble := answer.result(LATE):
                    found.append(f"{node.name}: {trouble}")
        return "; ".join(found)


class ClusterLauncher:
    """``gpus``: of each node. LaunchError if the nodes do not come, or cannot be used together."""

    def __init__(self, starter: Starter, gpus: int, adapters: Mapping[str, Sequence[str]], cluster: Cluster) -> None:
        self.device, self.gpus, self._cluster = "cuda" if gpus else "cpu", gpus * cluster.nodes, cluster
        self._starter, self._numbers, self._closed = starter, itertools.count(), False
        self._worlds: WeakValueDictionary[int, ClusterWorld] = WeakValueDictionary()
        self.nodes: list[Node] = []
        try:
            self.nodes = self._gather()
            self._check(gpus, adapters)
        except BaseException:
            self.close()
            raise
        self.cores = sum(node.cores for node in self.nodes)

    def _gather(self) -> list[Node]:
        """Starts the agents and waits for their calls. Returns the nodes in the hosts' order, or else by name."""
        key, hosts, found = secrets.token_bytes(32), self._cluster.hosts, list[Node]()
        with wire.listen() as listener:
            address = self._cluster.head or wire.head_address(hosts)
            self._starter.start(address, listener.getsockname()[1], key)
            deadline = time.monotonic() + ARRIVAL
            while len(found) < self._cluster.nodes:
                if connection := wire.accept(listener, key, 0.5):
                    with contextlib.suppress(EOFError, OSError):  # it has ended meanwhile
                        found.append(Node(connection, self._failed))
                    self.nodes = found  # so that they are told to stop, should others not come
                elif trouble := self._starter.trouble():
                    raise LaunchError(trouble)
                elif self._starter.pending():
                    deadline = time.monotonic() + ARRIVAL
                elif time.monotonic() > deadline:
                    raise LaunchError(self._absence(found, address))
        found.sort(key=lambda node: (hosts.index(node.name) if node.name in hosts else 0, len(node.name), node.name))
        for name, count in Counter(node.name for node in found).items():
            if count > 1:
                for place, node in enumerate([node for node in found if node.name == name], 1):
                    node.name = f"{name}#{place}"
        return found

    def _absence(self, found: Sequence[Node], address: str) -> str:
        came = ", ".join(node.name for node in found) or "none"
        called = f"within {ARRIVAL:g} s, {len(found)} of {self._cluster.nodes} nodes have called this machine"
        return f"{called} at {address} ({came}); {self._starter.advice()}"

    def _check(self, gpus: int, adapters: Mapping[str, Sequence[str]]) -> None:
        first = self.nodes[0]
        for node in self.nodes[1:]:
            for what, version in node.versions.items():
                if version != first.versions[what]:
                    there = f"{first.name} has {what} {first.versions[what]}, {node.name} has {version}"
                    raise LaunchError(f"{there}; all nodes must have the same environment")
        for node, answer in [(node, node.ask("prepare", gpus, adapters)) for node in self.nodes]:
            try:
                seen = answer.result(IMPORTS)
            except (NodeLost, TimeoutError) as reason:
                raise LaunchError(f"node {node.name} was lost while it began: {reason}") from None
            if seen < gpus:
                raise LaunchError(
                    f"node {node.name} has {seen} GPUs; use --gpus {seen}: it counts the GPUs of each node"
                )

    @property
    def _left(self) -> list[Node]:
        return [node for node in self.nodes if not node.lost]

    def counts(self, size: int) -> tuple[int, ...]:
        return blocks(size, len(self._left), self._cluster.limit, self._cluster.fill)

    def shortage(self, size: int) -> str:
        left = self._left
        if self.counts(size):
            return ""
        lost = "; ".join(f"node {node.name} was lost: {node.lost}" for node in self.nodes if node.lost)
        names = ", ".join(node.name for node in left) or "no node"
        room = len(left) * self._cluster.limit
        return f"{size} ranks do not fit: {names} {'is' if len(left) < 2 else 'are'} left, for {room} ranks; {lost}"

    def watch(self) -> ClusterWatch:
        return ClusterWatch(self._left, next(self._numbers))

    def world(self, size: int, library: str, module: str, settings: Mapping[str, str] = DEFAULTS) -> ClusterWorld:
        if shortage := self.shortage(size):
            raise LaunchError(shortage)
        left = self._left
        counts = blocks(size, len(left), self._cluster.limit, self._cluster.fill)
        nodes = left[: len(counts)]
        try:
            port, store = nodes[0].ask("ports", 2).result()
        except NodeLost:
            return self.world(size, library, module, settings)  # on the others
        alone = len(nodes) == 1
        parts = [
            Part(counts, place, "127.0.0.1" if alone else nodes[0].address, port, 0 if alone else store, node.interface)
            for place, node in enumerate(nodes)
        ]
        number = next(self._numbers)
        self._worlds[number] = world = ClusterWorld(number, nodes, parts)
        asked = [
            node.ask("open", number, part, library, module, dict(settings))
            for node, part in zip(nodes, parts, strict=True)
        ]
        for node, answer in zip(nodes, asked, strict=True):
            try:
                answer.result(IMPORTS)
            except NodeLost:  # its ranks will be lost when the world runs
                pass
            except TimeoutError:
                node.lose("its agent does not answer")
            except RuntimeError:
                world.close()
                raise
        return world

    def _failed(self, world: int) -> None:
        if found := self._worlds.get(world):
            found.fail()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        status = int(any(node.lost for node in self.nodes))  # torchrun's agents would wait for the lost one's end
        for node in self._left:
            node.ask("stop", status)
        self._starter.stop()

    def __enter__(self) -> "ClusterLauncher":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
