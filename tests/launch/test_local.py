"""launch/local.sh with a Python that only pretends: what it installs, when, and what it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = ["bash", "uname", "cat", "cksum", "mkdir", "rm", "dirname", "basename", "sed", "sleep"]
TOOLS += ["grep", "cp", "chmod", "kill", "env"]

# Writes down each of its calls; makes environments and installs by copying two small scripts.
FAKE_PYTHON = r"""#!/usr/bin/env bash
echo "$*" >>"$LOG"
case "$*" in
  "-c "*) echo "${FAKE_VERSION:-3.12}" ;;
  "-m venv "*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
  "-m pip config list") echo "global.index-url='here'" ;; # keeps uv out
  *" --editable "*)
    case ${FAKE_PIP:-} in
      fails) echo "no matching distribution" >&2; exit 1 ;;
      dies) kill -9 "$PPID"; exit 1 ;;
      slow) sleep 1 ;;
    esac
    printf '#!/usr/bin/env bash\nprintf "%%s\\n" "$@"\nexit ${FAKE_EXIT:-0}\n' >"${0%/*}/jaxformer"
    chmod +x "${0%/*}/jaxformer" ;;
  "-m pytest"*) printf '%s\n' "$@"; exit "${FAKE_EXIT:-0}" ;;
esac
"""


class Machine:
    """A copy of what local.sh needs, in a folder with a space, on a PATH with nothing else."""

    def __init__(self, folder: Path):
        self.root = folder / "my work" / "jaxformer"
        self.bin, self.log, self.home = folder / "bin", folder / "log", folder / "else where"
        for path in (self.root / "launch", self.root / "experiments", self.bin, self.home):
            path.mkdir(parents=True)
        for name in ("launch/local.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(REPOSITORY / name, self.root / name)
        (self.root / "experiments" / "tiny.py").touch()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.add("python3.12", FAKE_PYTHON)
        self.environment = {"PATH": str(self.bin), "LOG": str(self.log), "JAX_PLATFORMS": "cpu"}

    def add(self, name: str, text: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [self.root / "launch" / "local.sh", *arguments],
            cwd=self.home,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    @property
    def installs(self) -> list[str]:
        """What was installed from the repository, by its extras: "" or "[test]"."""
        return [call.rpartition("jaxformer")[2] for call in self.calls if " --editable " in call]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_an_experiment_stands_for_its_config_and_workdir(machine):
    result = machine.run("train", "experiments/tiny.py", "--config.data.text=two  words", "$HOME *")
    experiment = f"{machine.root}/experiments/tiny.py"
    words = ["--config", experiment, "--workdir", "runs/tiny", "--config.data.text=two  words"]
    assert result.stdout.splitlines() == ["train", *words, "$HOME *"]
    assert machine.installs == [""]


def test_a_file_of_the_caller_goes_before_one_of_the_repository(machine):
    (machine.home / "experiments").mkdir()
    (machine.home / "experiments" / "tiny.py").touch()
    result = machine.run("evaluate", "experiments/tiny.py", "--workdir=x")
    assert result.stdout.splitlines() == [
        "evaluate", "--config", "experiments/tiny.py", "--workdir=x",
    ]  # fmt: skip


def test_other_arguments_and_the_exit_code_pass_through(machine):
    result = machine.run("visualize", "loss", "a.py", "", FAKE_EXIT="7")
    assert result.stdout.splitlines() == ["visualize", "loss", "a.py", ""]
    assert result.returncode == 7


def test_the_second_start_installs_nothing(machine):
    machine.run("train")
    before = machine.calls
    assert before
    assert machine.run("train").returncode == 0
    assert machine.calls == before


def test_tests_get_their_extra_and_what_they_need_contains_what_a_run_needs(machine):
    machine.run("train")
    result = machine.run("test", "fast", "-k", "a or b", FAKE_EXIT="5")
    side_by_side = ["--numprocesses", "auto", "--maxprocesses", "8", "--dist", "worksteal"]
    pytest_words = ["-m", "pytest", *side_by_side]
    assert result.stdout.splitlines() == [*pytest_words, "-m", "not slow", "-k", "a or b"]
    assert result.returncode == 5
    assert machine.installs == ["", "[test]"]
    assert machine.run("test").stdout.splitlines() == pytest_words
    assert machine.run("train").returncode == 0
    assert machine.installs == ["", "[test]"]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_change_of_what_is_needed_installs_again(machine, name):
    machine.run("train")
    with (machine.root / name).open("a") as file:
        file.write("# new\n")
    machine.run("train")
    assert machine.installs == ["", ""]


def test_an_interrupted_install_is_done_again_from_the_start(machine):
    assert machine.run("train", FAKE_PIP="dies").returncode == -9
    leftover = machine.root / ".venv" / "bin" / "leftover"
    leftover.touch()
    result = machine.run("train")
    assert result.returncode == 0
    assert "did not finish" in result.stderr
    assert not leftover.exists()
    assert machine.installs == ["", ""]


def test_a_failed_install_says_why_and_is_tried_again(machine):
    result = machine.run("train", FAKE_PIP="fails")
    assert result.returncode == 1
    assert "no matching distribution" in result.stderr
    assert "the install failed" in result.stderr
    assert result.stdout == ""
    assert machine.run("train").returncode == 0


def test_a_moved_checkout_gets_a_new_environment(machine):
    machine.run("train")
    moved = machine.root.rename(machine.root.with_name("jaxformer_moved"))
    machine.root = moved
    (moved / ".venv" / "bin" / "leftover").touch()
    assert machine.run("train").returncode == 0
    assert not (moved / ".venv" / "bin" / "leftover").exists()


def test_two_starts_at_once_install_once(machine):
    first = machine.start("train", FAKE_PIP="slow")
    while not (machine.root / ".venv" / ".installing").exists():
        assert first.poll() is None
        time.sleep(0.01)
    second = machine.run("train")
    assert first.wait(timeout=60) == 0
    assert second.returncode == 0
    assert "waiting for the install" in second.stderr
    assert machine.installs == [""]


def test_too_old_a_python_is_named_in_one_line(machine):
    result = machine.run("train", FAKE_VERSION="3.9")
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert "3.11 or newer" in line
    assert "python3.12 is 3.9" in line
    (machine.bin / "python3.12").unlink()
    assert "no Python at all" in machine.run("train").stderr


def test_the_python_that_was_asked_for_is_taken(machine):
    machine.add("snake", FAKE_PYTHON)
    machine.add("python3.12", "#!/usr/bin/env bash\nexit 1\n")
    assert machine.run("train", PYTHON="snake").returncode == 0


def test_a_device_brings_its_extra(machine):
    machine.add("nvidia-smi", '#!/usr/bin/env bash\n[[ $1 == -L ]] && echo "GPU 0"\n')
    machine.add("uname", "#!/usr/bin/env bash\necho Linux\n")
    machine.run("train", JAX_PLATFORMS="")
    machine.run("test", JAX_PLATFORMS="")
    machine.run("train", JAX_PLATFORMS="cpu")
    assert machine.installs == ["[cuda]", "[cuda,test]"]


def test_no_command_shows_the_usage(machine):
    result = machine.run()
    assert result.returncode == 2
    assert "launch/local.sh train experiments/" in result.stdout
    assert machine.run("--help").returncode == 0
    assert not machine.calls


SCRIPTS = [*(REPOSITORY / "launch").glob("*.sh"), *(REPOSITORY / "launch").glob("*.sbatch")]
SCRIPTS += [REPOSITORY / ".ci" / "run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert result.stdout == ""
