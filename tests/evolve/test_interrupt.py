from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from evolve.interrupt import Interrupt


def send(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def reached(interrupt: Interrupt, *numbers: int) -> int:
    """After how many of these signals the work still went on."""
    survived = 0

    def work() -> None:
        nonlocal survived
        with interrupt.finishing():
            for number in numbers:
                send(number)
                survived += 1

    with interrupt.listening(), pytest.raises(KeyboardInterrupt):
        work()
    return survived


def test_the_first_lets_what_is_in_flight_finish() -> None:
    said: list[str] = []
    interrupt = Interrupt(say=said.append)
    assert reached(interrupt, signal.SIGINT) == 1
    assert interrupt.wished
    assert said == ["Stopping after the evaluations in flight; interrupt again to stop at once."]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_stops_at_once(number: int) -> None:
    assert reached(Interrupt(), number, number) == 1


def test_the_impatient_stop_at_once() -> None:
    assert reached(Interrupt(patient=False), signal.SIGINT) == 0


def test_with_nothing_in_flight_the_first_stops_at_once() -> None:
    interrupt = Interrupt()
    with interrupt.listening(), pytest.raises(KeyboardInterrupt):
        send()


def test_the_handlers_of_before_come_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupt().listening():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_interrupt_while_tidying_up_ends_the_process_with_130() -> None:
    script = textwrap.dedent(
        """
        import os, signal, time
        from evolve.interrupt import Interrupt
        interrupt = Interrupt()
        with interrupt.listening(), interrupt.finishing():
            try:
                for _ in range(2):
                    os.kill(os.getpid(), signal.SIGINT)
            finally:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(30)
        """
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=25, check=False).returncode == 130
