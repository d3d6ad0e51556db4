from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitness.errors import JudgeStopped, ScoringSetupError
from fitness.spending import Purse, Spent, Usage, read_spending

SETTING = "fitness.judge"


def purse(
    path: Path | None, setting: str = SETTING, max_usd: float | None = None, max_calls: int | None = None
) -> Purse:
    return Purse(path, setting, max_usd=max_usd, max_calls=max_calls)


async def call(purse: Purse, most_usd: float, usd: float) -> None:
    await purse.settle(await purse.reserve(most_usd), Usage(10, 2), usd)


CALLS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 5)), min_size=1, max_size=15)


@settings(max_examples=40, deadline=None)
@given(CALLS, st.floats(0.01, 4) | st.none(), st.integers(1, 12) | st.none())
def test_caps_hold_whatever_is_under_way_and_refuse_only_what_could_exceed_them(
    calls: Sequence[tuple[float, float, int]], max_usd: float | None, max_calls: int | None
) -> None:
    async def run() -> None:
        tested = purse(None, max_usd=max_usd, max_calls=max_calls)
        under_way: dict[int, float] = {}
        paid: list[float] = []

        async def one(most_usd: float, share: float, pauses: int) -> None:
            try:
                number = await tested.reserve(most_usd)
            except JudgeStopped:
                assert not under_way
                no_usd = max_usd is not None and math.fsum(paid) + most_usd > max_usd - 1e-9
                assert no_usd or (max_calls is not None and len(paid) == max_calls)
                return
            under_way[number] = most_usd
            assert max_usd is None or math.fsum([*paid, *under_way.values()]) <= max_usd + 1e-9
            assert max_calls is None or len(paid) + len(under_way) <= max_calls
            for _ in range(pauses):
                await asyncio.sleep(0)
            paid.append(share * most_usd)
            del under_way[number]
            await tested.settle(number, Usage(3, 1), share * most_usd)

        await asyncio.wait_for(asyncio.gather(*(one(*drawn) for drawn in calls)), 20)
        assert tested.spent == Spent(len(paid), 0, 3 * len(paid), len(paid), pytest.approx(math.fsum(paid), abs=1e-9))
        tested.close()

    asyncio.run(run())


def test_a_call_without_an_end_counts_with_its_most_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "spending.db"

    async def killed() -> None:
        first = purse(path)
        await call(first, 0.5, 0.1)
        await first.reserve(0.5)

    asyncio.run(killed())
    again = purse(path, max_usd=1.0)
    assert again.spent == Spent(2, 0, 10, 2, pytest.approx(0.6))
    with pytest.raises(JudgeStopped):
        asyncio.run(again.reserve(0.5))
    asyncio.run(call(again, 0.4, 0.3))
    again.close()
    assert read_spending(path) == {SETTING: Spent(3, 0, 20, 4, pytest.approx(0.9))}


def test_the_judges_of_a_run_are_counted_apart(tmp_path: Path) -> None:
    path = tmp_path / "spending.db"
    first, final = purse(path, max_calls=1), purse(path, "fitness.final_judge", max_calls=2)
    asyncio.run(call(first, 0.5, 0.1))
    asyncio.run(call(final, 0.5, 0.2))
    final.cached()
    asyncio.run(call(final, 0.5, 0.2))
    first.close()
    final.close()
    assert read_spending(path) == {
        SETTING: Spent(1, 0, 10, 2, pytest.approx(0.1)),
        "fitness.final_judge": Spent(2, 1, 20, 4, pytest.approx(0.4)),
    }


def test_what_the_cache_knew_is_counted_over_several_processes(tmp_path: Path) -> None:
    for count in (1, 2):
        opened = purse(tmp_path / "spending.db")
        opened.cached()
        assert opened.spent.cached == count
        opened.close()


@pytest.mark.parametrize(
    ("caps", "said"),
    [
        ({"max_calls": 1}, r"^fitness\.judge\.max_calls: the cap of 1 calls .* --set fitness\.judge\.max_calls=2$"),
        (
            {"max_usd": 0.3},
            r"^fitness\.judge\.max_usd: the cap of \$0\.3 .*\$0\.1000 are spent.*\$0\.2500.*"
            r" --set fitness\.judge\.max_usd=1\.1$",
        ),
    ],
)
def test_a_cap_that_is_reached_is_named_with_its_remedy(caps: dict[str, float], said: str) -> None:
    async def run() -> None:
        tested = Purse(None, SETTING, **{"max_usd": None, "max_calls": None, **caps})  # type: ignore[arg-type]
        await call(tested, 0.25, 0.1)
        await tested.reserve(0.25)

    with pytest.raises(JudgeStopped, match=said):
        asyncio.run(run())


SPEND = """
import asyncio, sys
from pathlib import Path
from fitness.spending import Purse, Usage

async def spend(path, setting, count):
    purse = Purse(Path(path), setting, max_usd=None, max_calls=None)
    for _ in range(int(count)):
        await purse.settle(await purse.reserve(1.0), Usage(3, 1), 0.25)
    purse.close()

asyncio.run(spend(*sys.argv[1:]))
"""


def test_processes_that_share_a_file_lose_no_call(tmp_path: Path) -> None:
    path = tmp_path / "spending.db"
    settings = [SETTING, SETTING, "fitness.final_judge"]
    commands = [[sys.executable, "-c", SPEND, str(path), setting, "10"] for setting in settings]
    assert [process.wait(60) for process in [subprocess.Popen(command) for command in commands]] == [0, 0, 0]
    assert read_spending(path) == {
        SETTING: Spent(20, 0, 60, 20, 5.0),
        "fitness.final_judge": Spent(10, 0, 30, 10, 2.5),
    }


FULL_DISK = """
import asyncio, resource, sys
from pathlib import Path
from fitness.errors import JudgeStopped
from fitness.spending import Purse, Usage

async def fill(path):
    purse = Purse(path, "fitness.judge", max_usd=2.0, max_calls=None)
    first = await purse.reserve(1.0)
    # From here on files may not grow, and a rollback journal has to.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))
    waiting = asyncio.create_task(purse.reserve(1.5))
    await asyncio.sleep(0.05)
    for one in (purse.settle(first, Usage(), 0.1), waiting, purse.reserve(0.5)):
        try:
            await asyncio.wait_for(one, 10)
        except JudgeStopped as error:
            print(error)
    print(purse.spent.usd)

asyncio.run(fill(Path(sys.argv[1])))
"""


def test_on_a_full_disk_nothing_more_is_asked_and_nobody_waits_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "spending.db"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=60)
    settled, waited, asked, usd = done.stdout.splitlines()
    assert settled.startswith("fitness.judge: the cost of a call cannot be written down (")
    assert "Make room on the disk" in settled
    assert "fitness.judge.max_usd" in waited  # the first call keeps counting with its most
    assert asked == settled
    assert usd == "1.0"
    assert read_spending(path)["fitness.judge"].usd == 1.0


@pytest.mark.parametrize("content", [b"no database" * 200, None])
def test_a_file_that_is_no_purse_is_the_users_to_mend(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "spending.db"
    path.mkdir() if content is None else path.write_bytes(content)
    for use in (purse, read_spending):
        with pytest.raises(ScoringSetupError, match=r"spending\.db.* cannot be used: .*move it away"):
            use(path)


def test_where_no_judge_was_asked_nothing_was_spent(tmp_path: Path) -> None:
    assert read_spending(tmp_path / "spending.db") == {}
