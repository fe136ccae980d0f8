"""What is printed on a terminal, and what is not printed elsewhere."""

import os
import pty
import subprocess
import sys

import pytest

from snipjax.training import console

PROGRAM = """
import time
from snipjax.training import console
with console.training_progress(total=100, start=40) as bar:
    for step in (60, 80, 100):
        bar.update(step, None if step == 100 else 0.25, 12.5)
        console.say(f"[step {step}]")
        time.sleep(0.2)
"""


def test_a_message_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    message = "[bold]" + "a long line " * 30 + "runs/x[1].json"
    console.say(message)
    assert capsys.readouterr().out == message + "\n"


def test_a_table_keeps_its_figures_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    columns = [f"column {i}" for i in range(8)]
    console.show_table("Title", columns, [["123,456,789"] * 8, ["[x]"] * 8])
    output = capsys.readouterr().out
    assert output.count("123,456,789") == 8
    assert output.count("[x]") == 8
    assert "\x1b" not in output


def test_progress_is_silent_where_there_is_no_terminal() -> None:
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, check=True, text=True
    )
    assert output.stdout == "[step 60]\n[step 80]\n[step 100]\n"
    assert output.stderr == ""


def test_a_terminal_that_is_not_utf_8_gets_ascii() -> None:
    program = (
        "from snipjax.training import console; console.show_table('T', ['a'], [['1']])"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


@pytest.fixture
def terminal_output() -> str:
    screen, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=terminal, env=environment
    ) as process:
        os.close(terminal)
        chunks = []
        try:
            while chunk := os.read(screen, 2**16):
                chunks.append(chunk)
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(screen)
    assert process.returncode == 0
    return b"".join(chunks).decode()


def test_progress_is_a_bar_with_loss_error_and_speed_on_a_terminal(
    terminal_output: str,
) -> None:
    for text in ("40/100", "60/100", "loss 0.2500", "error 12.50%", "steps/s"):
        assert text in terminal_output
    assert "loss nan" in terminal_output
    assert terminal_output.count("[step 60]") == 1
