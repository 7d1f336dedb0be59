"""How `python -m surefoot.MODULE` ends."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from surefoot.core.programs import exit_code
from surefoot.paper import figures, tables
from surefoot.report import benchmarks, calibration


def test_a_reader_that_is_gone_ends_it_in_silence() -> None:
    code = (
        "import sys; from surefoot.core.programs import exit_code;"
        "sys.stdin.read(); sys.exit(exit_code(lambda: print('x' * 100_000)))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdin
        assert program.stdout
        assert program.stderr
        program.stdout.close()
        program.stdin.close()
        said = program.stderr.read()
    assert (program.returncode, said) == (141, b"")


def test_what_is_not_expected_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: print(1 / 0))


@pytest.mark.parametrize("module", [tables, figures, benchmarks, calibration])
@pytest.mark.parametrize("text", [None, "# not JSON", "[1]", '{"a": 1}'])
def test_a_wrong_file_is_one_sentence(
    module: ModuleType, text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "records.jsonl"
    if text is not None:
        file.write_text(text)
    folder = module is tables
    assert module.main([str(tmp_path if folder else file)]) == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert said.startswith("surefoot: ")
    assert said.count("\n") == 1


def test_a_damaged_line_of_a_training_is_told_with_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(__file__).parents[1] / "results" / "mnist" / "sat-r1" / "0"
    for name in ("records.jsonl", "recipe.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "metrics.jsonl").write_text('{"seconds": 1}\n{"sec')
    assert tables.main([str(tmp_path)]) == 2
    assert f"line 2 of {tmp_path / 'metrics.jsonl'} is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize("module", [tables, benchmarks, calibration, figures])
def test_no_file_is_told_what_to_give(module: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main([]) == 2
    assert f"usage: python -m {module.__name__}" in capsys.readouterr().err
