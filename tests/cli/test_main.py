"""``kshot`` itself: light to start, exit statuses, quiet where its reader goes away."""

import os
import signal
import subprocess
import sys
import time

import pytest

import kshot
from kshot.cli.main import COMMANDS, main

KSHOT = (sys.executable, "-m", "kshot")


def _run(*args: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*KSHOT, *args], capture_output=True, text=True, timeout=200, **options)


def test_help_is_short_and_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 30
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert main([]) == 0
    assert capsys.readouterr().out == text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kshot {kshot.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_its_defaults(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: kshot {command}" in text
    assert "examples:" in text or "kshot" in text


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from kshot.cli.main import main; main(['--help']); main(['--version']); "
        "heavy = {'torch', 'numpy', 'tyro', 'rich', 'lightning_fabric'} & set(sys.modules); sys.exit(str(heavy or 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stderr.strip() == "0", done.stderr


def test_names_of_the_package_are_found_when_they_are_used():
    for name in kshot.__all__:
        assert getattr(kshot, name) is not None
    assert set(kshot.__all__) <= set(dir(kshot))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kshot.nothing


def test_mistakes_end_with_2_and_without_a_traceback():
    done = _run("train", "protonet", "--data", "nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown data set 'nothing'")
    assert len(done.stderr.splitlines()) == 1


def test_bugs_end_with_1_and_a_traceback():
    code = "import sys, kshot.cli.main as m; m._dispatch = lambda args: {}[0]; sys.argv = ['kshot']; sys.exit(m.main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "KeyError" in done.stderr
    assert done.stderr.rstrip().splitlines()[-1].startswith("This is a bug in kshot")


def test_other_value_errors_are_bugs_too(monkeypatch):
    def broken(args):
        raise ValueError("ours")

    monkeypatch.setattr("kshot.cli.main._dispatch", broken)
    with pytest.raises(ValueError, match="ours"):
        main(["list"])


def test_a_reader_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*KSHOT, "list"], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=100)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 128 + signal.SIGPIPE


def test_signals_are_left_as_they_were_found(capsys):
    before = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    main(["--version"])
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_from_outside_ends_a_run_in_order(tmp_path, number, status):
    out = tmp_path / "run"
    line = ["train", "maml", "--data", "sinusoid", "--steps", "1000000", "--batching", "loop", "--out", str(out)]
    # Where tests run in the background, Ctrl-C would be ignored from birth.
    with subprocess.Popen(
        [*KSHOT, *line, "--log-every", "1"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        deadline = time.monotonic() + 200
        while not (out / "metrics.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        _, said = process.communicate(timeout=100)
    assert process.returncode == status
    assert "all of it is saved. Go on with:\n  kshot train --resume --out" in said
    assert "Traceback" not in said
