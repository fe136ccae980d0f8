"""Output on a terminal, and elsewhere."""

import contextlib
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from snipjax.training import console


def show_progress() -> None:
    with console.training_progress(total=100, start=40) as bar:
        for step in (60, 80, 100):
            bar.update(step, None if step == 100 else 0.25, 12.5)
            console.say(f"[step {step}]")


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


def test_progress_is_silent_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_progress()
    captured = capsys.readouterr()
    assert captured.out == "[step 60]\n[step 80]\n[step 100]\n"
    assert captured.err == ""


def test_a_terminal_that_is_not_utf_8_gets_ascii(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="ascii"))
    console.show_table("T", ["a"], [["1"]])
    sys.stdout.flush()
    assert "1" in output.getvalue().decode("ascii")


def test_progress_is_a_bar_with_loss_error_and_speed_on_a_terminal() -> None:
    screen, terminal = pty.openpty()
    program = "from tests.training import test_console; test_console.show_progress()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=terminal,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    ) as process:
        os.close(terminal)
        text = ""
        with contextlib.suppress(OSError):  # once the other end is closed, on Linux
            while chunk := os.read(screen, 2**16):
                text += chunk.decode(errors="replace")
    os.close(screen)
    assert process.returncode == 0
    for part in ("60/100", "loss 0.2500", "error 12.50%", "steps/s", "loss nan"):
        assert part in text
    assert text.count("[step 60]") == 1
