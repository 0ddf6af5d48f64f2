"""Worlds of forked ranks: any failure of a rank is a value, detected soon, and leaves nothing behind."""

import time
from collections.abc import Iterator

import psutil
import pytest

from harness.launch.local import LocalLauncher
from harness.launch.outcome import Done, Failure, Hung, Job, Killed, Outcome, OutOfMemory, Raised, Unsupported, describe
from tests.launch.worlds import JOBS, LONG, NOTICED, gone, run


@pytest.fixture(scope="module")
def launcher() -> Iterator[LocalLauncher]:
    with LocalLauncher() as launcher:
        launcher.world(1, JOBS, JOBS).close()  # imports torch in the server before times are measured
        yield launcher


def timed(launcher: LocalLauncher, name: str, timeout: float = LONG) -> tuple[tuple[Outcome, ...], float]:
    start = time.monotonic()
    outcomes = run(launcher, name, timeout)
    return outcomes, time.monotonic() - start


def test_all_ranks_of_a_world_join_one_collective(launcher: LocalLauncher) -> None:
    assert run(launcher, "total") == (Done(0, 3.0), Done(1, 3.0))


def test_a_process_id_that_comes_round_again_is_a_new_rank(launcher: LocalLauncher) -> None:
    (server,) = launcher._servers.values()
    server.ended |= dict.fromkeys(range(2**22), -9)  # earlier ranks have used every process id
    assert run(launcher, "total") == (Done(0, 3.0), Done(1, 3.0))
    server.ended.clear()


def test_a_ranks_garbage_collections_leave_out_what_was_imported(launcher: LocalLauncher) -> None:
    for outcome in run(launcher, "frozen"):
        assert isinstance(outcome, Done)
        assert outcome.value > 100_000


def test_a_rank_need_not_import_what_every_case_runs(launcher: LocalLauncher) -> None:
    for outcome in run(launcher, "imported"):
        assert outcome == Done(outcome.rank, True)


def test_a_world_runs_job_after_job_with_its_state_and_a_fresh_one_has_none(launcher: LocalLauncher) -> None:
    world = launcher.world(1, JOBS, JOBS)
    asked = [world.run(Job(f"{JOBS}:remembers", {}), LONG)[0] for _ in range(3)]
    world.close()
    assert [*asked, *run(launcher, "remembers", size=1)] == [Done(0, 1), Done(0, 2), Done(0, 3), Done(0, 1)]


def test_a_rank_that_raises_is_a_value_and_comes_first(launcher: LocalLauncher) -> None:
    outcomes, seconds = timed(launcher, "one_raises")
    waiting, raised = outcomes
    assert isinstance(raised, Raised)
    assert "ValueError: rank 1 is wrong" in raised.text
    assert not raised.echo
    assert isinstance(waiting, Hung)
    assert describe(outcomes).startswith("ValueError: rank 1 is wrong\n\nrank 1 · Raised")
    assert "it is waiting in all_reduce" in waiting.text
    assert seconds < NOTICED


@pytest.mark.parametrize(
    ("job", "timeout", "printed"),
    [("prints_and_raises", LONG, "rank 0 is about to fail"), ("prints_and_hangs", 2.0, "waiting for nobody")],
)
def test_the_output_of_a_rank_is_kept_with_its_failure(
    launcher: LocalLauncher, job: str, timeout: float, printed: str
) -> None:
    (outcome, _) = run(launcher, job, timeout)
    assert isinstance(outcome, Failure)
    assert outcome.text.strip().endswith(f"the end of its output:\n{printed}")


def test_a_fault_of_the_users_files_is_told_without_a_traceback(launcher: LocalLauncher) -> None:
    outcomes, _ = timed(launcher, "is_given_a_wrong_file")
    texts = [outcome.text for outcome in outcomes if isinstance(outcome, Raised)]
    assert texts == ["text.jsonl, line 3 is not JSON"] * len(outcomes)


@pytest.mark.parametrize(("job", "how"), [("one_is_killed", "killed by SIGKILL"), ("one_exits", "exit status 3")])
def test_a_rank_that_dies_is_noticed_at_once_and_comes_first(launcher: LocalLauncher, job: str, how: str) -> None:
    outcomes, seconds = timed(launcher, job)
    assert isinstance(outcomes[1], Killed)
    assert how in outcomes[1].text
    assert describe(outcomes).startswith(f"{outcomes[1].message}\n\nrank 1 · Killed")
    assert how in outcomes[1].message
    assert seconds < NOTICED


def test_the_end_of_a_dead_ranks_output_is_in_its_outcome(launcher: LocalLauncher) -> None:
    dead = run(launcher, "one_exits")[1]
    assert isinstance(dead, Killed)
    assert "rank 1 has had enough" in dead.text


@pytest.mark.parametrize(
    ("job", "where"),
    [
        ("one_never_enters", "all_reduce\n"),
        ("one_never_starts_what_the_other_waits_for", "'end = [lambda: work.wait()]'\n"),
        ("one_never_enters_the_backward_pass", "a backward pass, or a collective inside it\n"),
    ],
)
def test_a_rank_that_never_enters_a_collective_is_told_from_its_waiting_peer(
    launcher: LocalLauncher, job: str, where: str
) -> None:
    timeout = 1.0
    outcomes, seconds = timed(launcher, job, timeout)
    waiting, stuck = outcomes
    assert isinstance(waiting, Hung)
    assert isinstance(stuck, Hung)
    assert f"it is waiting in {where}" in waiting.text
    assert "it is in no collective" in stuck.text
    assert f"in {job}" in stuck.text
    assert describe(outcomes).startswith(f"{stuck.message}\n\nrank 1 · Hung")
    assert timeout <= seconds < timeout + 1.5


def test_a_rank_that_gives_no_stack_is_hung_all_the_same(launcher: LocalLauncher) -> None:
    outcomes = run(launcher, "one_is_stopped", timeout=0.5)
    assert isinstance(outcomes[1], Hung)
    assert "no stack" in outcomes[1].text


def test_a_rank_without_memory_says_so_and_comes_first(launcher: LocalLauncher) -> None:
    outcomes, seconds = timed(launcher, "one_runs_out_of_memory")
    assert isinstance(outcomes[1], OutOfMemory)
    assert "one_runs_out_of_memory" in outcomes[1].text
    assert describe(outcomes).startswith(f"{outcomes[1].message}\n\nrank 1 · OutOfMemory")
    assert seconds < NOTICED


def test_unsupported_is_no_failure_and_the_world_goes_on(launcher: LocalLauncher) -> None:
    world = launcher.world(2, JOBS, JOBS)
    outcomes = world.run(Job(f"{JOBS}:is_unsupported", {}), LONG)
    assert outcomes == tuple(Unsupported(rank, "this engine has no such stage") for rank in range(2))
    assert describe(outcomes) == ""
    assert world.run(Job(f"{JOBS}:total", {}), LONG) == (Done(0, 3.0), Done(1, 3.0))
    world.close()


@pytest.mark.parametrize(
    ("job", "text"),
    [
        ("returns_what_cannot_be_sent", "pickle"),
        ("returns_what_only_it_knows", "cannot be read outside the rank: ModuleNotFoundError"),
    ],
)
def test_a_result_that_cannot_be_sent_or_read_is_a_value_too(launcher: LocalLauncher, job: str, text: str) -> None:
    for outcome in run(launcher, job):
        assert isinstance(outcome, Raised)
        assert text in outcome.text


@pytest.mark.parametrize("job", ["one_raises", "one_is_killed", "one_runs_out_of_memory"])
def test_after_a_failure_the_next_world_works(launcher: LocalLauncher, job: str) -> None:
    run(launcher, job)
    assert run(launcher, "total") == (Done(0, 3.0), Done(1, 3.0))


def test_a_world_that_failed_answers_later_jobs_with_failures(launcher: LocalLauncher) -> None:
    world = launcher.world(2, JOBS, JOBS)
    world.run(Job(f"{JOBS}:one_is_killed", {}), LONG)
    outcomes = world.run(Job(f"{JOBS}:total", {}), 5.0)
    assert all(isinstance(outcome, Killed) for outcome in outcomes)


def test_closed_worlds_and_launchers_leave_no_process_and_no_folder() -> None:
    with LocalLauncher() as launcher:
        launcher.world(1, JOBS, JOBS).close()
        server, folder = psutil.Process(launcher._servers[JOBS, ()].process.pid), launcher._folder
        before = {path.name for path in folder.iterdir()}
        for job in ("pid", "one_raises", "one_is_killed", "leaves_a_child_and_dies"):
            run(launcher, job)
            assert gone([child.pid for child in server.children(recursive=True)], within=1.0)
            assert {path.name for path in folder.iterdir()} == before
    assert gone([server.pid], within=1.0)
    assert not folder.exists()


def test_children_of_a_rank_die_with_it(launcher: LocalLauncher) -> None:
    children = [outcome.value for outcome in run(launcher, "leaves_a_child") if isinstance(outcome, Done)]
    assert len(children) == 2
    assert gone(children, within=1.0)


def test_children_of_a_killed_rank_die_too(launcher: LocalLauncher) -> None:
    (dead,) = run(launcher, "leaves_a_child_and_dies", size=1)
    assert isinstance(dead, Killed)
    assert gone([int(dead.text.rsplit("child ", 1)[1])], within=1.0)


def test_two_launchers_work_side_by_side(launcher: LocalLauncher) -> None:
    with LocalLauncher() as other:
        worlds = [one.world(2, JOBS, JOBS) for one in (launcher, other)]
        pids = [world.run(Job(f"{JOBS}:pid", {}), LONG) for world in worlds]
        assert len({outcome.value for found in pids for outcome in found if isinstance(outcome, Done)}) == 4
        worlds[1].close()
        assert worlds[0].run(Job(f"{JOBS}:total", {}), LONG) == (Done(0, 3.0), Done(1, 3.0))
        worlds[0].close()


def test_a_fresh_world_of_two_costs_less_than_a_quarter_second(launcher: LocalLauncher) -> None:
    """The fastest of ten: other programs can only make it slower."""
    assert min(timed(launcher, "total")[1] for _ in range(10)) < 0.25
